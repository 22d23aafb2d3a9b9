"""Lookups of float64 vectors from one end of float64 to the other.

Oracle: the same lookup of vectors and codes multiplied by powers of two, which no cosine sees.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from vqkernels import KMeans, kmeans, nearest_code, quantize, top_codes
from vqkernels.testing import assert_bitwise_equal, call_on, lookup_problem

OPS = ("nearest_code", "top_codes")
LENGTHS = (1e-322, 1e-300, 1e-200, 1e-154, 1e-30, 1.0, 1e30, 1e39, 1e154, 1e200, 1e300)


def of_any_length(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors at all lengths, and powers of two that make each a vector of usual length again, exactly."""
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)[torch.arange(len(vectors)) % len(LENGTHS)]
    there = np.frexp(lengths[:, None].numpy())[1]
    # entries of few digits: even the shortest vectors have them all
    digits = (vectors * 8).round().clamp(-64, 64).double()
    far = torch.from_numpy(np.ldexp(digits.numpy(), there))
    assert_bitwise_equal(torch.from_numpy(np.ldexp(far.numpy(), -there)), digits)
    return far, digits


@pytest.mark.parametrize("d", [2, 19])
def test_a_cosine_is_right_at_any_length(d: int, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 44, 33, d)
    x[5] = 0
    (far, near), (far_codes, near_codes) = of_any_length(x), of_any_length(codebook)
    want = nearest_code(near, near_codes, metric="cosine", backend="reference")
    assert bool(want.distance.isfinite().all())
    many = top_codes(near, near_codes, 33, metric="cosine", backend="reference")
    for vectors in (far, near):
        for codes in (far_codes, near_codes):
            got = call_on(backend, partial(nearest_code, metric="cosine"), vectors, codes)
            all_of_them = call_on(backend, partial(top_codes, m=33, metric="cosine"), vectors, codes)
            for actual, expected in zip([*got, *all_of_them], [*want, *many], strict=True):
                assert_bitwise_equal(actual, expected)


def test_vectors_or_codes_alone_may_be_float64() -> None:
    x, codebook = lookup_problem("gaussian", 44, 33, 3)
    (far, near), (far_codes, near_codes) = of_any_length(x), of_any_length(codebook)
    want = nearest_code(near, near_codes, metric="cosine")
    for vectors, codes in ((far, near_codes.float()), (near.float(), far_codes)):
        got = nearest_code(vectors, codes, metric="cosine")
        assert_bitwise_equal(got.indices, want.indices)
        assert_bitwise_equal(got.distance, want.distance)


def test_quantize_takes_them_too() -> None:
    x, codebook = lookup_problem("gaussian", 44, 33, 3)
    (far, near), (far_codes, near_codes) = of_any_length(x), of_any_length(codebook)
    quantized, indices, distance = quantize(far, far_codes, metric="cosine", gradient="none")
    want = nearest_code(near, near_codes, metric="cosine")
    assert_bitwise_equal(quantized, far_codes[indices])
    assert_bitwise_equal(indices, want.indices)
    assert_bitwise_equal(distance, want.distance)


def test_rows_of_any_length_are_clustered_by_their_direction() -> None:
    far, near = of_any_length(torch.randn(110, 3))
    got, want = (kmeans(rows, 5, metric="cosine") for rows in (far, near))
    assert_bitwise_equal(got.centroids, want.centroids)
    assert_bitwise_equal(got.count, want.count)
    model = KMeans(5, metric="cosine").fit(near)
    assert_bitwise_equal(model.predict(far), model.predict(near))
    assert float((model.transform(far) - model.transform(near)).abs().max()) <= 2.0**-50


def test_squared_distances_beyond_float64(backend: str) -> None:
    """The nearest is right as long as one of them fits; the distance is that beyond float32, infinite."""
    x = torch.tensor([[1e200, 0.0], [0.0, -1e300], [3.0, 0.0], [torch.nan, 0.0]], dtype=torch.float64)
    codes = torch.tensor([[torch.nan, 0.0], [-1e200, 0.0], [1e150, 0.0], [1e200, 1e20]], dtype=torch.float64)
    indices, distance = call_on(backend, nearest_code, x, codes[1:])
    assert indices.tolist() == [2, 0, 1, 0]
    inf, nan = torch.inf, torch.nan
    assert_bitwise_equal(distance, torch.tensor([inf, inf, inf, nan]))
    indices, distance = call_on(backend, partial(top_codes, m=4), x, codes)
    assert indices.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3], [2, 0, 1, 3], [0, 0, 0, 0]]
    want = [[inf, nan, inf, inf], [nan, inf, inf, inf], [inf, nan, inf, inf], [nan, nan, nan, nan]]
    assert_bitwise_equal(distance, torch.tensor(want))


def test_dot_products_beyond_float64_have_no_order(backend: str) -> None:
    x = torch.tensor([[1e200, 0.0], [1.0, 0.0]], dtype=torch.float64)
    codes = torch.tensor([[0.0, 1.0], [1e200, 0.0]], dtype=torch.float64)
    indices, distance = call_on(backend, partial(nearest_code, metric="dot"), x, codes)
    assert indices.tolist() == [0, 1]
    assert_bitwise_equal(distance, torch.tensor([torch.nan, -torch.inf]))
