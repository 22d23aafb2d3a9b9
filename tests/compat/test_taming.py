"""taming-transformers' quantizers beside the installed originals, over training steps and checkpoints both ways.

Oracle: the original in float64; for the EMA quantizer, which the original cannot construct, its formulas on N x K
matrices. What the adapters do differently is in ``test_image_tokenizers.py``.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import import_library
from torch import nn
from torch.nn import functional as F
from vqp_oracle import assert_trains_alike

from vqkernels import replace_quantizers
from vqkernels.compat.taming.modules.vqvae import quantize as adapters
from vqkernels.nn import scores
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

MAP = (3, 8, 4, 5)


class Flat(nn.Module):
    """A quantizer with a result that is flat and begins with value, indices and loss."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
        z_q, loss, (perplexity, _, indices), *logits = self.quantizer(z, **options)
        return z_q, indices, loss, *([] if perplexity is None else [perplexity]), *logits


@pytest.fixture
def originals() -> Any:
    return import_library("taming.modules.vqvae.quantize")


@pytest.fixture
def used(tmp_path: Path) -> str:
    path = tmp_path / "used.npy"
    np.save(path, np.array([3, 17, 4, 30, 9, 0, 12, 22, 21, 5, 6]))
    return str(path)


def pair(originals: Any, name: str, *args: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The original and the adapter, built from one seed, in equal states."""
    built = []
    for library in (originals, adapters):
        torch.manual_seed(1)
        built.append(getattr(library, name)(*args, **options))
    states = [module.state_dict() for module in built]
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert_bitwise_equal(states[1][key], value)
    return built[0], built[1]


def spread(module: nn.Module) -> nn.Module:
    """Codes as far apart as the vectors are, so that all are in use."""
    with torch.no_grad():
        module.embedding.weight.normal_()
    return module


VQ2_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "beta where it belongs": {"legacy": False},
    "sane": {"sane_index_shape": True},
    "remap, number": {"remap": True, "unknown_index": 7},
    "remap, extra": {"remap": True, "unknown_index": "extra", "sane_index_shape": True, "legacy": False},
}


@pytest.mark.parametrize("case", VQ2_CASES)
def test_vector_quantizer_2_trains_like_the_original(case: str, originals: Any, used: str) -> None:
    options = {name: used if name == "remap" else value for name, value in VQ2_CASES[case].items()}
    theirs, ours = pair(originals, "VectorQuantizer2", 32, 8, 0.25, **options)
    assert_trains_alike(Flat(spread(theirs)), Flat(ours), MAP)
    for name in ("n_e", "e_dim", "beta", "legacy", "remap", "re_embed", "sane_index_shape"):
        assert getattr(ours, name) == getattr(theirs, name)
    if "unknown_index" in options:
        assert ours.unknown_index == theirs.unknown_index


def test_vector_quantizer_trains_like_the_original(originals: Any) -> None:
    theirs, ours = pair(originals, "VectorQuantizer", 32, 8, 0.25)
    assert_trains_alike(Flat(spread(theirs)), Flat(ours), MAP)
    z = torch.randn(MAP)
    (_, one_hot, indices), (_, lazy, _) = theirs(z)[2], ours(z)[2]
    assert_bitwise_equal(lazy.to_dense(), one_hot)
    for shape in (None, (3, 4, 5, 8)):
        theirs_back, ours_back = (q.get_codebook_entry(indices[:, 0], shape) for q in (theirs, ours))
        assert_bitwise_equal(ours_back, theirs_back)


@pytest.mark.parametrize("unknown_index", ["random", "extra", 2])
def test_indices_are_renamed_like_the_original_does(unknown_index: str | int, originals: Any, used: str) -> None:
    theirs, ours = pair(originals, "VectorQuantizer2", 32, 8, 0.25, remap=used, unknown_index=unknown_index)
    indices = torch.arange(32).reshape(4, 8)
    want, got = theirs.remap_to_used(indices.clone()), ours.remap_to_used(indices.clone())
    known = torch.isin(indices, ours.used)
    assert known.sum() == len(ours.used) == 11
    assert torch.equal(got[known], want[known])
    if unknown_index == "random":
        assert ((got >= 0) & (got < ours.re_embed)).all()
        assert len(got[~known].unique()) > 5
    else:
        assert torch.equal(got, want)
    positions = torch.randint(0, ours.re_embed, (2, 9))
    assert torch.equal(ours.unmap_to_all(positions.clone()), theirs.unmap_to_all(positions.clone()))
    for shape in ((2, 3, 3, 8), (1, 9, 2, 8)):
        want, got = (q.get_codebook_entry(positions.reshape(-1), shape) for q in (theirs, ours))
        assert_bitwise_equal(got, want)


class Noise:
    """Gumbel noise that is a function of the place, for both implementations in either precision."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "exponential_", lambda like: self.exponential_(like))
        monkeypatch.setattr(scores, "random_uniform", self.random_uniform)

    def __deepcopy__(self, _: Any) -> Noise:
        return self

    def of(self, z: torch.Tensor, num_codes: int) -> None:
        key = torch.arange(1, 1 + z[:, 0].numel()).reshape(z[:, 0].shape)  # [B, H, W]
        places = torch.arange(1, num_codes + 1)
        # away from 0 and 1, where float32 numbers are too far apart for the logarithm of a logarithm
        self.uniform = (key[..., None] * places * 2654435761 % 999983).double() / 1.2e6 + 0.1  # [B, H, W, K]

    def exponential_(self, like: torch.Tensor) -> torch.Tensor:
        return like.copy_(-self.uniform.log().permute(0, 3, 1, 2))

    def random_uniform(self, seed: Any, shape: tuple[int, ...], device: Any) -> torch.Tensor:
        return self.uniform.reshape(shape).to(torch.float32)


class WithNoise(Flat):
    def __init__(self, quantizer: nn.Module, noise: Noise) -> None:
        super().__init__(quantizer)
        self.noise = noise

    def forward(self, z: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
        self.noise.of(z, self.quantizer.re_embed)
        return super().forward(z, **options)


GUMBEL_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "soft": ({"straight_through": False, "kl_weight": 0.3}, {}),
    "temperature": ({"temp_init": 0.5}, {}),
    "temperature of a call": ({"kl_weight": 1.0}, {"temp": 2.0}),
    "logits": ({}, {"return_logits": True}),
    "remap": ({"remap": True, "kl_weight": 0.1}, {"return_logits": True}),
    "remap, soft": ({"remap": True, "straight_through": False}, {}),
}


@pytest.mark.parametrize("case", GUMBEL_CASES)
def test_gumbel_quantize_trains_like_the_original(
    case: str, originals: Any, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, options = GUMBEL_CASES[case]
    arguments = {name: used if name == "remap" else value for name, value in arguments.items()}
    theirs, ours = pair(originals, "GumbelQuantize", 8, 6, 32, **arguments)
    noise = Noise(monkeypatch)
    assert_trains_alike(WithNoise(theirs, noise), WithNoise(ours, noise), MAP, options)


def test_gumbel_quantize_keeps_the_digits_of_a_small_divergence(originals: Any) -> None:
    """It is a difference of log K and an entropy. Oracle: the original, whose sum has small terms."""
    theirs, ours = pair(originals, "GumbelQuantize", 8, 6, 4096, kl_weight=1.0)
    batches = [0.01 * torch.randn(3, 8, 4, 5) for _ in range(4)]
    plain, got = (torch.stack([quantizer(z)[1].detach() for z in batches]) for quantizer in (theirs, ours))
    truth = torch.stack([theirs.double()(z.double())[1].detach() for z in batches])
    assert_within_budget(got, truth, plain, factor=1.0)


def test_gumbel_quantize_decodes_like_the_original(originals: Any) -> None:
    theirs, ours = pair(originals, "GumbelQuantize", 8, 6, 32, use_vqinterface=False)
    indices = torch.randint(0, 32, (24,))
    want, got = (q.get_codebook_entry(indices, (2, 3, 4, 6)) for q in (theirs, ours))
    assert_bitwise_equal(got, want)
    z = torch.randn(MAP)
    assert len(ours(z)) == len(theirs(z)) == 3


class EmbeddingStatement(nn.Module):
    """The state of the EMA quantizer."""

    def __init__(self, num_codes: int, dim: int, decay: float, eps: float) -> None:
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        for name, value in (
            ("weight", torch.randn(num_codes, dim)),
            ("cluster_size", torch.zeros(num_codes)),
            ("embed_avg", torch.randn(num_codes, dim)),
        ):
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))


class EmaStatement(nn.Module):
    """The formulas of the EMA quantizer, on one-hot matrices."""

    def __init__(self, num_codes: int, dim: int, beta: float, decay: float, eps: float) -> None:
        super().__init__()
        self.beta, self.remap, self.re_embed = beta, None, num_codes
        self.embedding = EmbeddingStatement(num_codes, dim, decay, eps)

    def forward(self, z: torch.Tensor) -> tuple[Any, ...]:
        state = self.embedding
        rows = z.movedim(1, -1)
        indices = (rows[..., None, :] - state.weight).square().sum(-1).argmin(-1)
        one_hot = F.one_hot(indices, len(state.weight)).to(z.dtype)
        codes = one_hot @ state.weight
        value = rows + (codes - rows).detach()
        loss = self.beta * F.mse_loss(rows, codes)
        one_hot, rows = one_hot.flatten(0, -2), rows.detach().flatten(0, -2)
        share = one_hot.mean(0)
        if self.training:
            for running, new in ((state.cluster_size, one_hot.sum(0)), (state.embed_avg, one_hot.T @ rows)):
                running.copy_(state.decay * running + (1 - state.decay) * new)
            n, k = state.cluster_size.sum(), len(state.weight)
            size = (state.cluster_size + state.eps) / (n + k * state.eps) * n
            state.weight.copy_(state.embed_avg / size[:, None])
        perplexity = (-(share * (share + 1e-10).log()).sum()).exp()
        return value.movedim(-1, 1), loss, (perplexity, one_hot, indices.reshape(-1))


for _kind, _name in ((EmbeddingStatement, "EmbeddingEMA"), (EmaStatement, "EMAVectorQuantizer")):
    # they stand in for the originals
    _kind.__module__, _kind.__qualname__ = "taming.modules.vqvae.quantize", _name


@pytest.mark.parametrize("sizes", [0.0, 1.0])
def test_ema_vector_quantizer_trains_by_its_formulas(sizes: float) -> None:
    torch.manual_seed(2)
    statement = EmaStatement(32, 8, beta=0.25, decay=0.9, eps=1e-3)
    statement.embedding.cluster_size.fill_(sizes)
    ours = adapters.EMAVectorQuantizer(32, 8, 0.25, decay=0.9, eps=1e-3)
    assert_trains_alike(Flat(statement), Flat(ours), MAP)
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == []
    z = torch.randn(MAP)
    (_, one_hot, _), (_, lazy, _) = statement.eval()(z)[2], ours.eval()(z)[2]
    assert_bitwise_equal(lazy.to_dense(), one_hot)


def test_the_parts_of_an_ema_update_make_the_whole() -> None:
    torch.manual_seed(0)
    parts, whole = (adapters.EmbeddingEMA(16, 4, decay=0.9) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(50, 4)
    indices = torch.randint(0, 16, (50,))
    one_hot = F.one_hot(indices, 16).float()
    parts.cluster_size_ema_update(one_hot.sum(0))
    parts.embed_avg_ema_update(one_hot.T @ x)
    parts.weight_update(16)
    whole.take_in_(x, indices)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
    assert_bitwise_equal(parts(torch.tensor([[3], [5]])), parts.weight[torch.tensor([[3], [5]])])


@pytest.mark.parametrize("name", ["VectorQuantizer", "VectorQuantizer2", "GumbelQuantize"])
def test_a_quantizer_inside_a_model_is_replaced(name: str, originals: Any, used: str) -> None:
    remap = {} if name == "VectorQuantizer" else {"remap": used, "unknown_index": "extra"}
    sizes = (8, 6, 32) if name == "GumbelQuantize" else (32, 8, 0.25)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), getattr(originals, name)(*sizes, **remap)).eval()
    original = copy.deepcopy(model)
    assert replace_quantizers(model).replaced == {"1": f"taming.modules.vqvae.quantize.{name}"}
    assert type(model[1]) is getattr(adapters, name)
    for key in ("n_e", "n_embed", "beta", "temperature", "re_embed", "unknown_index"):
        assert not hasattr(original[1], key) or getattr(model[1], key) == getattr(original[1], key)
    if name != "GumbelQuantize":
        x = torch.randn(2, 3, 4, 5)
        (got, _, (*_, indices)), (want, _, (*_, expected)) = model(x), original(x)
        torch.testing.assert_close(got, want)
        assert torch.equal(indices, expected)
    original.load_state_dict(model.state_dict())


def test_an_ema_quantizer_inside_a_model_is_replaced() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), EmaStatement(32, 8, beta=0.3, decay=0.8, eps=1e-3))
    original = copy.deepcopy(model)
    assert replace_quantizers(model).replaced == {"1": "taming.modules.vqvae.quantize.EMAVectorQuantizer"}
    assert type(model[1].embedding) is adapters.EmbeddingEMA
    x = torch.randn(2, 3, 4, 5)
    for quantizers in (model, original):
        quantizers[1].embedding.cluster_size.fill_(1)
        quantizers(x)
    torch.testing.assert_close(model.state_dict(), original.state_dict())
    original.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["VectorQuantizer", "VectorQuantizer2", "GumbelQuantize"])
def test_signatures_are_those_of_the_original(name: str, originals: Any) -> None:
    theirs, ours = getattr(originals, name), getattr(adapters, name)
    for method in ("__init__", "forward", "get_codebook_entry"):
        want, got = (inspect.signature(getattr(kind, method)).parameters.values() for kind in (theirs, ours))
        assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in want]
