"""``gather_codes`` on every backend. Oracle: plain indexing, differentiated by autograd in float64."""

from __future__ import annotations

import pytest
import torch

from vqkernels import gather_codes
from vqkernels.testing import assert_bitwise_equal, assert_within_budget, strided

OPS = ("gather_codes", "code_stats")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def plain(codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [G, K, D], [N, G] -> [N, G, D]
    masked = torch.cat([codebook, torch.zeros_like(codebook[:, :1])], dim=1)  # index -1 reads the zero row
    return torch.stack([masked[g][indices[:, g]] for g in range(codebook.shape[0])], dim=1)


def plain_gradient(
    codebook: torch.Tensor, indices: torch.Tensor, upstream: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    leaf = codebook.detach().to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(plain(leaf, indices), leaf, upstream.to(dtype))
    return gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "g", "k", "d"), [(0, 1, 3, 2), (1, 1, 1, 1), (50, 3, 1, 5), (2000, 2, 17, 33), (300, 4, 700, 8)]
)
def test_values_and_gradient(n: int, g: int, k: int, d: int, dtype: torch.dtype, backend: str) -> None:
    codebook = torch.randn(g, k, d).to(dtype).requires_grad_()
    indices = torch.randint(-1, k, (n, g))
    upstream = torch.randn(n, g, d).to(dtype)
    codes = gather_codes(codebook, indices, backend=backend)
    assert_bitwise_equal(codes, plain(codebook, indices))
    codes.backward(upstream)
    assert codebook.grad is not None
    assert codebook.grad.dtype == dtype
    assert_within_budget(
        codebook.grad,
        plain_gradient(codebook, indices, upstream, torch.float64),
        plain_gradient(codebook, indices, upstream, dtype),
    )


def test_gradcheck(backend: str) -> None:
    codebook = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 1], [-1, 1], [4, 4]])
    assert torch.autograd.gradcheck(lambda c: gather_codes(c, indices, backend=backend), codebook)


@pytest.mark.slow_interpreted
def test_gradient_is_the_same_bits_at_any_thread_count(backend: str) -> None:
    codebook = torch.randn(30, 40, requires_grad=True)
    indices, upstream = torch.randint(-1, 30, (5000,)), torch.randn(5000, 40)
    gradients = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        (gradient,) = torch.autograd.grad(gather_codes(codebook, indices, backend=backend), codebook, upstream)
        gradients.append(gradient)
    assert_bitwise_equal(gradients[0], gradients[1])
    assert_bitwise_equal(gradients[0], gradients[2])


def test_only_used_rows_have_a_gradient(backend: str) -> None:
    codebook = torch.randn(6, 4, requires_grad=True)
    gather_codes(codebook, torch.tensor([1, 4, 4, -1]), backend=backend).sum().backward()
    assert codebook.grad is not None
    assert codebook.grad.sum(1).tolist() == [0.0, 4.0, 0.0, 0.0, 8.0, 0.0]


def test_a_nan_gradient_stays_visible(backend: str) -> None:
    codebook = torch.randn(3, 2, requires_grad=True)
    upstream = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    gather_codes(codebook, torch.tensor([0, 2]), backend=backend).backward(upstream)
    assert codebook.grad is not None
    assert codebook.grad.isnan().tolist() == [[False, True], [False, False], [False, False]]


def test_nonfinite_codes_are_read_as_they_are(backend: str) -> None:
    codebook = torch.tensor([[torch.nan, 1.0], [torch.inf, -0.0]])
    assert_bitwise_equal(
        gather_codes(codebook, torch.tensor([1, 0, -1]), backend=backend),
        torch.tensor([[torch.inf, -0.0], [torch.nan, 1.0], [0.0, 0.0]]),
    )


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
def test_shapes(index_dtype: torch.dtype, backend: str) -> None:
    flat, grouped = torch.randn(7, 5), torch.randn(3, 7, 5)
    for lead in ((), (0,), (2, 3)):
        indices = torch.randint(0, 7, lead, dtype=index_dtype)
        assert_bitwise_equal(gather_codes(flat, indices, backend=backend), flat[indices.long()])
        grouped_indices = torch.randint(0, 7, (*lead, 3), dtype=index_dtype)
        expected = torch.stack([grouped[g][grouped_indices[..., g].long()] for g in range(3)], dim=-2)
        assert_bitwise_equal(gather_codes(grouped, grouped_indices, backend=backend), expected)


def test_strides_do_not_matter(backend: str) -> None:
    codebook, indices = torch.randn(2, 9, 4), torch.randint(-1, 9, (20, 2))
    expected = plain(codebook, indices)
    assert_bitwise_equal(gather_codes(strided(codebook), strided(indices), backend=backend), expected)
    leaf = codebook.mT.contiguous().mT.requires_grad_()
    # the gradient of a sum arrives expanded, all strides zero
    gather_codes(leaf, indices, backend=backend).sum().backward()
    assert leaf.grad is not None
    assert_bitwise_equal(leaf.grad, plain_gradient(codebook, indices, torch.ones(20, 2, 4), torch.float32))


@pytest.mark.parametrize("bad", [-2, 3, 2**31])
def test_index_out_of_range(bad: int, backend: str) -> None:
    indices = torch.zeros(100, dtype=torch.int64)
    indices[57] = bad
    with pytest.raises(IndexError, match=rf"indices: expected values in \[-1, 3\), got {bad}$"):
        gather_codes(torch.zeros(3, 2), indices, backend=backend)
