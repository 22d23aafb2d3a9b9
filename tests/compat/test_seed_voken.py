"""Open-MAGVIT2's LFQ beside the package, IBQ beside its formulas on N x K matrices. Truth is float64."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import import_library
from pairs import Largest
from torch import nn
from torch.nn import functional as F
from vqp_oracle import assert_trains_alike

from vqkernels import replace_quantizers
from vqkernels.compat.seed_voken import LFQ, IndexPropagationQuantize
from vqkernels.nn import scores
from vqkernels.testing import assert_bitwise_equal

original = import_library("open_magvit2.taming.modules.vqvae.lookup_free_quantize")

MAP = (3, 6, 4, 5)


class FlatLFQ(nn.Module):
    """A result that is flat and begins with value, indices and loss; vectors small beside the temperature."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (quantized, loss, indices), parts = self.quantizer(x * 0.005, return_loss_breakdown=True)
        first, *others = indices if isinstance(indices, tuple) else (indices,)
        return quantized, first, loss + parts.commitment, *others, *parts[:3]


LFQS: dict[str, dict[str, Any]] = {
    "released": {"dim": 6, "codebook_size": 64},
    "weights": {"dim": 6, "codebook_size": 64, "sample_minimization_weight": 0.5, "batch_maximization_weight": 2.0},
    "two codebooks": {"dim": 6, "codebook_size": 8, "num_codebooks": 2},
    "factorized": {"dim": 6, "codebook_size": 64, "token_factorization": True, "factorized_bits": [2, 4]},
}
each_lfq = pytest.mark.parametrize("case", LFQS)


@each_lfq
def test_lfq_trains_like_the_original(case: str) -> None:
    assert_trains_alike(FlatLFQ(original.LFQ(**LFQS[case])), FlatLFQ(LFQ(**LFQS[case])), MAP, factor=8.0)


@each_lfq
def test_lfq_gives_the_numbers_of_the_original(case: str) -> None:
    """Codes and indices, there and back; a quantizer inside a model is replaced."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), original.LFQ(**LFQS[case]))
    theirs = copy.deepcopy(model)
    path = "open_magvit2.taming.modules.vqvae.lookup_free_quantize.LFQ"
    assert replace_quantizers(model) == ({"1": path}, {})
    assert type(model[1]) is LFQ
    theirs.load_state_dict(model.state_dict())
    assert model.state_dict().keys() == theirs.state_dict().keys()
    ours, plain = model.eval()[1], theirs.eval()[1]
    x = torch.randn(MAP)
    (value, loss, indices), (want, _, labels) = ours(x), plain(x)
    assert_bitwise_equal(value, torch.where(x > 0, 1.0, -1.0))
    torch.testing.assert_close(value, want)
    assert loss == 0
    pairs = [(indices, labels, None)]
    if ours.token_factorization:
        pairs = [(indices[0], labels[0], "pre"), (indices[1], labels[1], "post")]
    for mine, other, order in pairs:
        assert_bitwise_equal(mine, other)
        bits = {"pre": 2, "post": 4}.get(order or "", ours.codebook_dim)
        maps = mine[:24].reshape(2, 12), (2, 3, 4, bits), order
        assert_bitwise_equal(ours.get_codebook_entry(*maps), plain.get_codebook_entry(*maps))
    codes = torch.arange(ours.codebook_size).reshape(-1, ours.num_codebooks)
    assert_bitwise_equal(ours.decode(codes), plain.decode(codes))
    assert_bitwise_equal(ours.codebook, plain.codebook)
    assert_bitwise_equal(ours.indices_to_bits(codes), plain.indices_to_bits(codes))
    assert_bitwise_equal(ours.bits_to_indices(ours.indices_to_bits(codes)), codes)


def test_a_mask_of_lfq_is_that_of_its_commitment() -> None:
    x, mask = torch.randn(2, 6, 20), torch.rand(2, 20) < 0.6
    (_, loss, _), parts = LFQ(dim=6)(x, return_loss_breakdown=True, mask=mask)
    (_, want, _), expected = original.LFQ(dim=6, codebook_size=64)(x, return_loss_breakdown=True, mask=mask)
    torch.testing.assert_close((loss, *parts), (want, *expected))
    assert LFQ(dim=6)(x, return_loss=False)[1] == 0


def test_lfq_leaves_out_what_is_not_finite() -> None:
    """Oracle: the batch without it."""
    x = 0.01 * torch.randn(1, 6, 20)
    bad = torch.cat([x, torch.full((1, 6, 1), torch.nan)], dim=2).requires_grad_()
    (value, loss, indices), parts = LFQ(dim=6)(bad, return_loss_breakdown=True)
    (_, want, labels), expected = LFQ(dim=6)(x, return_loss_breakdown=True)
    torch.testing.assert_close((loss, *parts), (want, *expected))
    assert indices.tolist() == [*labels.tolist(), 0]
    (value.sum() + loss + parts.commitment).backward()
    assert bad.grad is not None
    assert not bad.grad[..., -1].any()
    assert bool(bad.grad.isfinite().all())


def test_lfq_needs_no_number_for_each_vector_and_code() -> None:
    quantizer = LFQ(dim=18, codebook_size=2**18)
    x = torch.randn(1, 18, 100, requires_grad=True)
    with Largest() as largest:
        quantizer(x)[1].backward()
    assert largest.size <= 2**18


class Statement(nn.Module):
    """IBQ by its formulas."""

    def __init__(
        self, n_e: int, e_dim: int, beta: float = 0.25, use_entropy_loss: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.use_entropy_loss = n_e, e_dim, 0.25, use_entropy_loss
        self.embedding = nn.Embedding(n_e, e_dim)
        self.cosine_similarity, self.remap = False, None
        self.entropy_temperature = options.get("entropy_temperature", 0.01)
        self.sample_minimization_weight = options.get("sample_minimization_weight", 1.0)
        self.batch_maximization_weight = options.get("batch_maximization_weight", 1.0)

    def forward(self, z: torch.Tensor) -> tuple[Any, ...]:
        rows, codes = z.movedim(1, -1).flatten(0, -2), self.embedding.weight
        logits = rows @ codes.t()
        indices, soft = logits.argmax(1), logits.softmax(1)
        code = codes[indices]
        # the gradient of the hard choice and of the soft one
        value = code + (soft @ codes.detach() - (soft @ codes).detach())
        loss = F.mse_loss(value, rows) + F.mse_loss(code.detach(), rows) + self.beta * F.mse_loss(code, rows.detach())
        result: Any = loss
        if self.use_entropy_loss:
            log_p = (logits / self.entropy_temperature).log_softmax(1)
            mean = log_p.exp().mean(0)
            sample, average = -(log_p.exp() * log_p).sum(1).mean(), -(mean * (mean + 1e-5).log()).sum()
            result = (
                loss,
                sample,
                average,
                self.sample_minimization_weight * sample - self.batch_maximization_weight * average,
            )
        return value.reshape(*z.movedim(1, -1).shape).movedim(-1, 1), result, (None, None, indices)


Statement.__module__, Statement.__qualname__ = "src.IBQ.modules.vqvae.quantize", "IndexPropagationQuantize"


class FlatIBQ(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z_q, loss, (_, _, indices) = self.quantizer(z)
        parts = loss if isinstance(loss, tuple) else (loss,)
        return z_q, indices, parts[0] + parts[-1], *parts


IBQS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entropy": {
        "use_entropy_loss": True,
        "entropy_temperature": 2.0,
        "sample_minimization_weight": 0.5,
        "batch_maximization_weight": 2.0,
    },
}


@pytest.mark.parametrize("case", IBQS)
def test_ibq_trains_by_its_formulas(case: str) -> None:
    built = []
    for kind in (Statement, IndexPropagationQuantize):
        torch.manual_seed(1)
        built.append(kind(32, 6, **IBQS[case]))
    assert_bitwise_equal(built[0].embedding.weight, built[1].embedding.weight)
    assert_trains_alike(*map(FlatIBQ, built), MAP, factor=8.0)


def test_ibq_inside_a_model_is_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Statement(32, 6, use_entropy_loss=True))
    theirs = copy.deepcopy(model)
    assert replace_quantizers(model) == ({"1": "src.IBQ.modules.vqvae.quantize.IndexPropagationQuantize"}, {})
    assert type(model[1]) is IndexPropagationQuantize
    x = torch.randn(2, 3, 4, 5)
    (got, losses, (*_, indices)), (want, expected, (*_, labels)) = model(x), theirs(x)
    assert torch.equal(indices, labels)
    torch.testing.assert_close((got, *losses), (want, *expected), rtol=1e-4, atol=1e-5)
    theirs.load_state_dict(model.state_dict())


def test_ibq_takes_the_codes_in_use(tmp_path: Path) -> None:
    """Oracle: a quantizer that has no others."""
    used = np.array([3, 30, 7, 12])
    np.save(tmp_path / "used.npy", used)
    quantizer = IndexPropagationQuantize(32, 6, remap=str(tmp_path / "used.npy"), use_entropy_loss=True)
    small = IndexPropagationQuantize(4, 6, use_entropy_loss=True)
    with torch.no_grad():
        small.embedding.weight.copy_(quantizer.embedding.weight[used])
    z = torch.randn(MAP)
    (got, losses, (*_, indices)), (want, expected, (*_, labels)) = quantizer(z), small(z)
    assert indices.shape == (60, 1)
    assert_bitwise_equal(indices[:, 0], labels)
    assert_bitwise_equal(got, want)
    torch.testing.assert_close(losses, expected)
    assert_bitwise_equal(quantizer.get_codebook_entry(indices, (3, 4, 5, 6)), got)


def test_ibq_leaves_out_what_is_not_finite() -> None:
    """Oracle: the batch without it."""
    quantizer = IndexPropagationQuantize(32, 6, use_entropy_loss=True, entropy_temperature=2.0)
    z = torch.randn(1, 6, 4, 5)
    results = []
    for given in (torch.cat([z, torch.full_like(z[..., :1], torch.nan)], dim=3), z):
        quantizer.zero_grad()
        x = given.clone().requires_grad_()
        z_q, losses, (*_, indices) = quantizer(x)
        (z_q[..., :5].square().sum() + losses[0] + losses[3]).backward()
        assert x.grad is not None
        assert not x.grad[..., 5:].any()
        results.append((*losses, x.grad[..., :5], quantizer.embedding.weight.grad, indices.view(4, -1)[:, :5]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_ibq_needs_no_number_for_each_vector_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_PAIRS", 2000)
    quantizer = IndexPropagationQuantize(500, 4, use_entropy_loss=True)
    z = torch.randn(1, 4, 10, 20, requires_grad=True)
    with Largest() as largest:
        z_q, losses, _ = quantizer(z)
        (z_q.square().sum() + losses[0] + losses[3]).backward()
    assert largest.size < 200 * 500 / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_in_half_precision(dtype: torch.dtype) -> None:
    z = torch.randn(1, 6, 2, 3).to(dtype)
    z_q, loss, (*_, indices) = IndexPropagationQuantize(32, 6).to(dtype)(z)
    assert (z_q.dtype, loss.dtype) == (dtype, torch.float32)
    quantized, entropy, labels = LFQ(dim=6).to(dtype)(z)
    assert (quantized.dtype, entropy.dtype) == (dtype, torch.float32)
    assert indices.shape == labels.shape == (6,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IndexPropagationQuantize(8, 4)(torch.zeros(1, 5, 2, 2)), "z: expected vectors of dim=4 along"),
        (lambda: LFQ(dim=4)(torch.zeros(1, 5, 2, 2)), "x: expected vectors of dim=4 along dimension 1, got"),
        (lambda: LFQ(), "dim: expected a number where codebook_size is None, got None"),
        (lambda: LFQ(codebook_size=6), "codebook_size: expected a power of 2, got 6"),
        (lambda: LFQ(dim=5, codebook_size=16), "dim: expected the 4 bits of 1 codebooks, got 5"),
        (lambda: LFQ(dim=4, token_factorization=True), "factorized_bits: expected two numbers that add up to 4, got"),
        (lambda: LFQ(dim=4).get_codebook_entry(torch.zeros(1, 6).long(), (1, 2, 2, 4), None), "bhwc: expected that"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_signatures_are_those_of_the_original() -> None:
    for method in ("__init__", "forward", "get_codebook_entry", "decode", "indices_to_bits", "bits_to_indices"):
        ours, theirs = (inspect.signature(getattr(kind, method)).parameters for kind in (LFQ, original.LFQ))
        assert list(ours) == list(theirs)
        # a list there
        defaults = [{k: v.default for k, v in p.items() if k != "factorized_bits"} for p in (ours, theirs)]
        assert defaults[0] == defaults[1]
