"""The quantizer of diffusers beside the original, and what the original gets wrong.

Oracles: the original in float64 (:mod:`vqp_oracle`), plain torch in float64, or the adapter itself under conditions
that must not matter.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import import_library
from vqp_oracle import assert_trains_alike

from vqkernels.compat.diffusers import VectorQuantizer
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, peak_memory_growth

vae = import_library("diffusers.models.autoencoders.vae")

USED = [3, 1, 15, 7, 8, 3, 0, 12]


class Flat(torch.nn.Module):
    """A quantizer whose result is ``(quantized, indices, loss)``, as it is for the others."""

    def __init__(self, quantizer: torch.nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z_q, loss, (perplexity, min_encodings, indices) = self.quantizer(z)
        assert perplexity is None
        assert min_encodings is None
        return z_q, indices, loss


def pair(**options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The original and the adapter with codes of the size of vectors."""
    theirs, ours = (kind(16, 8, **{"beta": 0.25, **options}) for kind in (vae.VectorQuantizer, VectorQuantizer))
    torch.nn.init.normal_(theirs.embedding.weight)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture
def remap(tmp_path: Path) -> str:
    np.save(tmp_path / "used.npy", np.array(USED))
    return str(tmp_path / "used.npy")


CASES: dict[str, dict[str, Any]] = {
    "legacy": {},
    "fixed": {"legacy": False, "beta": 0.4},
    "shaped indices": {"sane_index_shape": True},
    "extra": {"unknown_index": "extra"},
    "a number, shaped": {"unknown_index": 5, "sane_index_shape": True},
}


@pytest.mark.parametrize("case", CASES)
def test_trains_like_the_original(case: str, remap: str) -> None:
    """Outputs, losses, gradients and weights of three steps and an evaluation; checkpoints both ways, strict."""
    options = CASES[case] | ({"remap": remap} if "unknown_index" in CASES[case] else {})
    theirs, ours = pair(**options)
    assert theirs.re_embed == ours.re_embed
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert_trains_alike(Flat(theirs), Flat(ours), (2, 8, 4, 5))


def test_starts_like_the_original() -> None:
    built = []
    for kind in (vae.VectorQuantizer, VectorQuantizer):
        torch.manual_seed(0)
        built.append(kind(16, 8, 0.25).embedding.weight)
    assert_bitwise_equal(*built)


@pytest.mark.parametrize("unknown_index", [None, "extra", 3])
def test_codes_by_index_like_the_original(unknown_index: str | int | None, remap: str) -> None:
    theirs, ours = pair(**({} if unknown_index is None else {"remap": remap, "unknown_index": unknown_index}))
    z = torch.randn(2, 8, 4, 5)
    indices = ours(z)[2][2]
    got = ours.get_codebook_entry(indices, (2, 4, 5, 8))
    assert_bitwise_equal(got, theirs.get_codebook_entry(indices.clone(), (2, 4, 5, 8)))
    if unknown_index is None:
        assert_bitwise_equal(got, ours(z)[0])
        assert_bitwise_equal(ours.get_codebook_entry(indices, None), theirs.get_codebook_entry(indices, None))


def test_unknown_indices_at_random(remap: str) -> None:
    """Oracle: the list; known indices keep their first place in it, others get any."""
    _, ours = pair(remap=remap)
    given = torch.arange(16).expand(200, 16)
    got = ours.remap_to_used(given)
    for index in range(16):
        if index in USED:
            assert set(got[:, index].tolist()) == {USED.index(index)}
        else:
            assert set(got[:, index].tolist()) == set(range(len(USED)))


def test_decoding_leaves_the_indices_alone(remap: str) -> None:
    theirs, ours = pair(remap=remap, unknown_index="extra")
    extra = torch.full((1, 4), len(USED))
    written = extra.clone()
    theirs.get_codebook_entry(written, (1, 2, 2, 8))
    assert not torch.equal(written, extra)  # the original writes them
    ours.get_codebook_entry(given := extra.clone(), (1, 2, 2, 8))
    assert_bitwise_equal(given, extra)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_lookup_is_exact(offset: float) -> None:
    ours = VectorQuantizer(200, 16, 0.25)
    torch.nn.init.normal_(ours.embedding.weight, mean=offset)
    z = torch.randn(2, 16, 8, 8) + offset
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = ours(z)[2][2]
    rows, codes = z.permute(0, 2, 3, 1).reshape(-1, 16), ours.embedding.weight.detach()
    distance = (rows.double() - codes[indices].double()).square().sum(1)
    assert_exact_lookup(rows, codes, indices, distance.float())


def test_values_are_the_codes() -> None:
    """The original adds and subtracts the input."""
    theirs, ours = pair()
    z = torch.randn(2, 8, 4, 5) * 1000
    value, _, (_, _, indices) = ours(z)
    codes = ours.embedding.weight.detach()[indices].view(2, 4, 5, 8).permute(0, 3, 1, 2)
    assert_bitwise_equal(value.detach(), codes)
    assert not torch.equal(theirs(z)[0], codes)


def test_a_vector_that_is_not_finite_spoils_no_other() -> None:
    """Oracle: the batch without it, in numbers whose sums are not rounded."""
    _, ours = pair()
    with torch.no_grad():
        ours.embedding.weight.copy_(torch.randint(-9, 9, (16, 8)))
    z = torch.randint(-9, 9, (1, 8, 4, 5)).float()
    bad = torch.cat([z, torch.full((1, 8, 4, 1), torch.nan)], dim=3)
    results = []
    for given in (bad, z):
        ours.zero_grad()
        x = given.clone().requires_grad_()
        z_q, loss, (_, _, indices) = ours(x)
        (z_q[..., :5].square().sum() + loss).backward()
        gradient = x.grad
        assert gradient is not None
        assert not gradient[..., 5:].any()
        assert not indices.view(4, -1)[:, 5:].any()
        results.append((loss.detach(), gradient[..., :5], ours.embedding.weight.grad, indices.view(4, -1)[:, :5]))
    for got, want in zip(*results, strict=True):
        assert_bitwise_equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Oracle: the same vectors and codes in float32. The original has no distances in half precision on a CPU."""
    _, wide = pair()
    narrow = copy.deepcopy(wide).to(dtype)
    wide = copy.deepcopy(narrow).float()
    z = torch.randn(2, 8, 4, 5).to(dtype)
    (value, loss, (*_, indices)), (want, want_loss, (*_, want_indices)) = narrow(z), wide(z.float())
    assert value.dtype == dtype
    assert loss.dtype == torch.float32
    assert_bitwise_equal(indices, want_indices)
    assert_bitwise_equal(value.float(), want)
    assert_bitwise_equal(loss, want_loss)


def test_memory_is_not_vectors_times_codes() -> None:
    setup = """
import torch
from vqkernels.compat.diffusers import VectorQuantizer
torch.set_num_threads(1)
quantizer = VectorQuantizer(4096, 8, 0.25)
VectorQuantizer(64, 8, 0.25)(torch.randn(1, 8, 4, 4))
z = torch.randn(1, 8, 64, 64, requires_grad=True)
"""
    # a byte for each pair of a vector and a code
    assert peak_memory_growth(setup, "z_q, loss, _ = quantizer(z); (z_q.sum() + loss).backward()") < 4096 * 4096


def test_arguments_are_checked(tmp_path: Path, remap: str) -> None:
    with pytest.raises(ValueError, match=r"z: expected vectors of dim=8 along dimension 1, got shape \[2, 4, 5, 5\]"):
        VectorQuantizer(16, 8, 0.25)(torch.randn(2, 4, 5, 5))
    with pytest.raises(ValueError, match=r"remap: expected a list of indices in \[0, 9\)"):
        VectorQuantizer(9, 8, 0.25, remap=remap)
    with pytest.raises(ValueError, match=r"inds: expected at least 2 dimensions, got shape \[3\]"):
        VectorQuantizer(16, 8, 0.25, remap=remap).remap_to_used(torch.zeros(3, dtype=torch.int64))
