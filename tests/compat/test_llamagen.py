"""LlamaGen's quantizer over training steps and checkpoints both ways.

Oracle: its formulas on N x K matrices, in float64. What the adapter does differently is in
``test_image_tokenizers.py``.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vqp_oracle import assert_trains_alike

from vqkernels import replace_quantizers
from vqkernels.compat.llamagen import VectorQuantizer
from vqkernels.testing import assert_bitwise_equal

MAP = (3, 8, 4, 5)
WINDOW = 65536


class Statement(nn.Module):
    """The formulas: distances of all pairs, their softmax at temperature 0.01, and two entropies."""

    def __init__(self, n_e: int, e_dim: int, beta: float, ratio: float, l2_norm: bool, show_usage: bool) -> None:
        super().__init__()
        self.beta, self.ratio, self.l2_norm, self.show_usage = beta, ratio, l2_norm, show_usage
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        if l2_norm:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data)
        if show_usage:
            self.register_buffer("codebook_used", torch.full((WINDOW,), -1))

    def forward(self, z: torch.Tensor) -> tuple[Any, ...]:
        rows, codes = z.movedim(1, -1), self.embedding.weight
        if self.l2_norm:
            rows, codes = F.normalize(rows, dim=-1), F.normalize(codes, dim=-1)
        distance = (rows[..., None, :] - codes).square().sum(-1).flatten(0, -2)
        indices = distance.argmin(-1)
        chosen = codes[indices].reshape(rows.shape)
        losses: tuple[Any, ...] = (None, None, None, 0)
        if self.training:
            p = (-distance / 0.01).softmax(-1)
            log_p = (-distance / 0.01).log_softmax(-1)
            mean = p.mean(0)
            entropy = -(p * log_p).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()
            usage = 0
            if self.show_usage:
                self.codebook_used = torch.cat([self.codebook_used, indices])[-WINDOW:]
                used = set(self.codebook_used.tolist()) - {-1}
                usage = torch.tensor(len(used) / len(codes), dtype=z.dtype)
            losses = (
                F.mse_loss(chosen, rows.detach()),
                self.beta * F.mse_loss(rows, chosen.detach()),
                self.ratio * entropy,
                usage,
            )
        return (rows + (chosen - rows).detach()).movedim(-1, 1), losses, (None, None, indices)


class Flat(nn.Module):
    """A quantizer with a result that is flat and begins with value, indices and the sum of the losses."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z_q, losses, (_, _, indices) = self.quantizer(z)
        if not self.training:
            assert losses == (None, None, None, 0)
            return z_q, indices
        usage = [losses[3]] if isinstance(losses[3], torch.Tensor) else []
        return z_q, indices, sum(losses[:3]), *losses[:3], *usage


CASES: dict[str, tuple[float, float, bool, bool]] = {
    "released": (0.25, 0.0, True, True),
    "entropy": (0.25, 0.1, True, True),
    "entropy, not normalised": (1.0, 0.5, False, False),
    "neither": (0.25, 0.0, False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_by_its_formulas(case: str) -> None:
    built = []
    for kind in (Statement, VectorQuantizer):
        torch.manual_seed(1)
        built.append(kind(32, 8, *CASES[case]))
    statement, ours = built
    torch.testing.assert_close(ours.embedding.weight, statement.embedding.weight, rtol=1e-6, atol=0)
    with torch.no_grad():
        # codes as far apart as vectors are, and not of unit length
        statement.embedding.weight.mul_(1.5 if case in ("released", "entropy") else 32)
    # the bound of the entropy's logits counts D + 8 roundings where those of a matrix product often cancel
    factor = 16.0 if "entropy" in case else 4.0
    # the window has another integer type, which loading converts
    assert_trains_alike(Flat(statement), Flat(ours), MAP, skip=lambda name: "codebook_used" in name, factor=factor)
    if ours.show_usage:
        assert torch.equal(ours.codebook_used.long(), statement.codebook_used)


@pytest.mark.parametrize("l2_norm", [False, True])
def test_entries_come_in_either_layout(l2_norm: bool) -> None:
    quantizer = VectorQuantizer(32, 8, 0.25, 0.0, l2_norm, False).eval()
    z_q, _, (_, _, indices) = quantizer(torch.randn(MAP))
    assert indices.shape == (60,)
    assert_bitwise_equal(quantizer.get_codebook_entry(indices, MAP), z_q)
    assert_bitwise_equal(quantizer.get_codebook_entry(indices, (3, 4, 5, 8), channel_first=False), z_q.movedim(1, -1))
    assert_bitwise_equal(quantizer.get_codebook_entry(indices), z_q.movedim(1, -1).reshape(60, 8))


class Original(Statement):
    """The formulas under the name and with the attributes of LlamaGen's class."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.n_e, self.e_dim = self.embedding.weight.shape
        self.entropy_loss_ratio = self.ratio


Original.__module__, Original.__qualname__ = "tokenizer.tokenizer_image.vq_model", "VectorQuantizer"


def test_a_quantizer_inside_a_model_is_replaced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Original(32, 8, 0.25, 0.1, True, True))
    original = copy.deepcopy(model)
    assert replace_quantizers(model).replaced == {"1": "tokenizer.tokenizer_image.vq_model.VectorQuantizer"}
    assert type(model[1]) is VectorQuantizer
    x = torch.randn(2, 3, 4, 5)
    (got, losses, (*_, indices)), (want, expected, (*_, labels)) = model(x), original(x)
    assert torch.equal(indices, labels)
    torch.testing.assert_close((got, *losses), (want, *expected), rtol=1e-4, atol=1e-5)
    original.load_state_dict(model.state_dict())


def test_signatures_are_those_of_the_original() -> None:
    names = {
        "__init__": "n_e, e_dim, beta, entropy_loss_ratio, l2_norm, show_usage",
        "forward": "z",
        "get_codebook_entry": "indices, shape=None, channel_first=True",
    }
    for method, expected in names.items():
        _, *parameters = inspect.signature(getattr(VectorQuantizer, method)).parameters.values()
        plain = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        assert ", ".join(plain) == expected
