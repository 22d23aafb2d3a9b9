"""Every refusal of a public op: the exception, and one line that names the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from vqkernels import (
    code_stats,
    ema_update_,
    estimate_gradient,
    gather_codes,
    multilevel_nearest_code,
    nearest_code,
    quantize,
    reanchor_,
    top_codes,
)

zeros = torch.zeros
INDICES = torch.zeros(4, dtype=torch.int64)


def ema(**changes: Any) -> Callable[[], Any]:
    """A valid update of K = 3 codes of D = 2, but for the arguments in ``changes``."""
    arguments = {
        "codebook": zeros(3, 2),
        "cluster_size": zeros(3),
        "embed_sum": zeros(3, 2),
        "count": zeros(3),
        "total": zeros(3, 2),
        "decay": 0.9,
        **changes,
    }
    tensors = [arguments.pop(name) for name in ("codebook", "cluster_size", "embed_sum", "count", "total")]
    return lambda: ema_update_(*tensors, **arguments)


def multilevel(**changes: Any) -> Callable[[], Any]:
    """A valid lookup in two levels, but for the arguments in ``changes``."""
    arguments = {
        "xs": (zeros(4, 2), zeros(4, 1)),
        "codebooks": (zeros(3, 2), zeros(3, 1)),
        "weights": (1.0, 1.0),
        **changes,
    }
    levels = [arguments.pop(name) for name in ("xs", "codebooks", "weights")]
    return lambda: multilevel_nearest_code(*levels, **arguments)


def reanchor(**changes: Any) -> Callable[[], Any]:
    """A valid step of K = 3 codes of D = 2, but for the arguments in ``changes``."""
    arguments = {
        "codebook": zeros(3, 2),
        "usage": zeros(3),
        "x": zeros(4, 2),
        "indices": INDICES,
        "distance": zeros(4),
        "decay": 0.9,
        **changes,
    }
    return lambda: reanchor_(**arguments)


CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (partial(nearest_code, [0.0], zeros(3, 2)), TypeError, "x: expected a torch.Tensor, got list"),
    (
        partial(nearest_code, zeros(4, 2).long(), zeros(3, 2)),
        TypeError,
        "x: expected a floating point tensor, got torch.int64",
    ),
    (
        partial(nearest_code, zeros(4, 2).cfloat(), zeros(3, 2)),
        TypeError,
        "x: expected a floating point tensor, got torch.complex64",
    ),
    (partial(nearest_code, zeros(4, 2), None), TypeError, "codebook: expected a torch.Tensor, got NoneType"),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2).int()),
        TypeError,
        "codebook: expected a floating point tensor, got torch.int32",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(2)),
        ValueError,
        "codebook: expected [K, D] or [G, K, D], got shape [2]",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(1, 1, 3, 2)),
        ValueError,
        "codebook: expected [K, D] or [G, K, D], got shape [1, 1, 3, 2]",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(0, 2)),
        ValueError,
        "codebook: expected at least one code and one dimension, got shape [0, 2]",
    ),
    (
        partial(nearest_code, zeros(4, 0), zeros(3, 0)),
        ValueError,
        "codebook: expected at least one code and one dimension, got shape [3, 0]",
    ),
    (
        partial(nearest_code, zeros(4, 3), zeros(3, 2)),
        ValueError,
        "x: expected [..., D] ending in [2] for codebook [3, 2], got [4, 3]",
    ),
    (
        partial(nearest_code, zeros(()), zeros(3, 2)),
        ValueError,
        "x: expected [..., D] ending in [2] for codebook [3, 2], got []",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(5, 3, 2)),
        ValueError,
        "x: expected [..., G, D] ending in [5, 2] for codebook [5, 3, 2], got [4, 2]",
    ),
    (
        partial(nearest_code, zeros(4, 5, 3), zeros(5, 3, 2)),
        ValueError,
        "x: expected [..., G, D] ending in [5, 2] for codebook [5, 3, 2], got [4, 5, 3]",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2), metric="euclid"),
        ValueError,
        "metric: expected one of l2, cosine, dot, got 'euclid'",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2), backend="gpu"),
        ValueError,
        "backend: expected None or one of cuda, triton, cpu, reference, got 'gpu'",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2, device="meta")),
        ValueError,
        "device: expected one device, got x on cpu, codebook on meta",
    ),
    *(
        (partial(nearest_code, x, zeros(3, 2)), TypeError, f"x: expected {expected}")
        for x, expected in [
            (zeros(4, 2).to_sparse(), "a dense tensor, got one that is torch.sparse_coo"),
            (zeros(4, 2).to_sparse_csr(), "a dense tensor, got one that is torch.sparse_csr"),
            (
                torch.nested.nested_tensor([zeros(4, 2)], layout=torch.jagged),
                "a dense tensor, got one that is nested",
            ),
            (zeros(4, 2).numpy(), "a torch.Tensor, got ndarray"),
            (0.5, "a torch.Tensor, got float"),
            (zeros(4, 2).bool(), "a floating point tensor, got torch.bool"),
            # numbers for storage: torch itself cannot compare them, so no lookup is a lookup of them
            *(
                (zeros(4, 2).to(small), f"float32, float64, float16 or bfloat16, got {small}")
                for small in (torch.float8_e4m3fn, torch.float8_e5m2)
            ),
        ]
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2), metric=zeros(3, 2)),
        ValueError,
        "metric: expected one of l2, cosine, dot, got a tensor of torch.float32",
    ),
    (
        partial(nearest_code, zeros(4, 2), zeros(3, 2), metric="a\nb" * 100),
        ValueError,
        r"metric: expected one of l2, cosine, dot, got 'a\nba\nb",
    ),
    (
        partial(top_codes, zeros(4, 2), zeros(3, 2), 10**400),
        ValueError,
        "m: expected 1 <= m <= min(K, 1024) = 3, got an",
    ),
    (partial(top_codes, zeros(4, 2), zeros(3, 2), 0), ValueError, "m: expected 1 <= m <= min(K, 1024) = 3, got 0"),
    (partial(top_codes, zeros(4, 2), zeros(3, 2), 4), ValueError, "m: expected 1 <= m <= min(K, 1024) = 3, got 4"),
    (
        partial(top_codes, zeros(4, 2), zeros(9999, 2), 1025),
        ValueError,
        "m: expected 1 <= m <= min(K, 1024) = 1024, got 1025",
    ),
    (partial(top_codes, zeros(4, 2), zeros(3, 2), 2.0), TypeError, "m: expected an integer, got float"),
    (partial(top_codes, zeros(4, 2), zeros(3, 2), True), TypeError, "m: expected an integer, got bool"),
    (partial(top_codes, [0.0], zeros(3, 2), 1), TypeError, "x: expected a torch.Tensor, got list"),
    (
        partial(top_codes, zeros(4, 3), zeros(3, 2), 1),
        ValueError,
        "x: expected [..., D] ending in [2] for codebook [3, 2], got [4, 3]",
    ),
    (
        partial(top_codes, zeros(4, 2), zeros(3, 2), 1, metric="euclid"),
        ValueError,
        "metric: expected one of l2, cosine, dot, got 'euclid'",
    ),
    (partial(top_codes, zeros(4, 2), zeros(3, 2), 1, backend="x"), ValueError, "backend: expected None or one of"),
    (multilevel(xs=zeros(4, 2)), TypeError, "xs: expected a list or tuple of tensors, got Tensor"),
    (multilevel(codebooks=None), TypeError, "codebooks: expected a list or tuple of tensors, got NoneType"),
    (multilevel(xs=()), ValueError, "xs: expected 1 to 8 levels, got 0"),
    (multilevel(xs=[zeros(4, 2)] * 9), ValueError, "xs: expected 1 to 8 levels, got 9"),
    (multilevel(codebooks=[zeros(3, 2)]), ValueError, "codebooks: expected 2 levels as in xs, got 1"),
    (multilevel(xs=(zeros(4, 2), [0.0])), TypeError, "xs[1]: expected a torch.Tensor, got list"),
    (
        multilevel(codebooks=(zeros(3, 2).int(), zeros(3, 1))),
        TypeError,
        "codebooks[0]: expected a floating point tensor, got torch.int32",
    ),
    (
        multilevel(codebooks=(zeros(3, 2), zeros(4, 1))),
        ValueError,
        "codebooks[1]: expected [K, D] with K, D >= 1 and one K in every level, got shape [4, 1]",
    ),
    (
        multilevel(codebooks=(zeros(0, 2), zeros(0, 1))),
        ValueError,
        "codebooks[0]: expected [K, D] with K, D >= 1 and one K in every level, got shape [0, 2]",
    ),
    (
        multilevel(codebooks=(zeros(1, 3, 2), zeros(3, 1))),
        ValueError,
        "codebooks[0]: expected [K, D] with K, D >= 1 and one K in every level, got shape [1, 3, 2]",
    ),
    (multilevel(xs=(zeros(4, 2), zeros(4, 2))), ValueError, "xs[1]: expected shape [4, 1], got [4, 2]"),
    (multilevel(xs=(zeros(4, 2), zeros(5, 1))), ValueError, "xs[1]: expected shape [4, 1], got [5, 1]"),
    (multilevel(xs=(zeros(4, 3), zeros(4, 1))), ValueError, "xs[0]: expected shape [4, 2], got [4, 3]"),
    (multilevel(xs=(zeros(()), zeros(()))), ValueError, "xs[0]: expected shape [2], got []"),
    (multilevel(weights=(1.0,)), ValueError, "weights: expected 2 numbers, one per level, got (1.0,)"),
    (multilevel(weights=1.0), ValueError, "weights: expected 2 numbers, one per level, got 1.0"),
    (multilevel(weights=zeros(2, 2)), TypeError, "weights: expected numbers, got one of list"),
    (multilevel(weights=(1.0, "2")), TypeError, "weights: expected numbers, got one of str"),
    (multilevel(weights=(1.0, -0.5)), ValueError, "weights: expected finite numbers >= 0, got -0.5"),
    (multilevel(weights=(1.0, float("nan"))), ValueError, "weights: expected finite numbers >= 0, got nan"),
    (multilevel(weights=(1.0, float("inf"))), ValueError, "weights: expected finite numbers >= 0, got inf"),
    (multilevel(weights=(1.0, 10**400)), ValueError, "weights: expected finite numbers >= 0, got an integer of"),
    (multilevel(weights=(1.0, True)), TypeError, "weights: expected numbers, got one of bool"),
    (
        multilevel(weights=zeros(2, device="meta")),
        ValueError,
        "weights: expected a tensor with data, got one on meta",
    ),
    (multilevel(weights=(0.0, 0)), ValueError, "weights: expected at least one positive number, got none"),
    (multilevel(backend="x"), ValueError, "backend: expected None or one of"),
    (
        multilevel(xs=(zeros(4, 2), zeros(4, 1, device="meta"))),
        ValueError,
        "device: expected one device, got xs[0] on cpu, xs[1] on meta, codebooks[0] on cpu, codebooks[1] on cpu",
    ),
    (
        partial(gather_codes, zeros(3, 2).long(), INDICES),
        TypeError,
        "codebook: expected a floating point tensor, got torch.int64",
    ),
    (partial(gather_codes, zeros(3, 2), [0]), TypeError, "indices: expected a torch.Tensor, got list"),
    (
        partial(gather_codes, zeros(3, 2), INDICES.float()),
        TypeError,
        "indices: expected int64 or int32 indices, got torch.float32",
    ),
    (
        partial(gather_codes, zeros(3, 2), INDICES.bool()),
        TypeError,
        "indices: expected int64 or int32 indices, got torch.bool",
    ),
    (partial(gather_codes, zeros(2), INDICES), ValueError, "codebook: expected [K, D] or [G, K, D], got shape [2]"),
    (partial(gather_codes, zeros(5, 3, 2), INDICES), ValueError, "indices: expected [..., G=5], got shape [4]"),
    (partial(gather_codes, zeros(5, 3, 2), INDICES[0]), ValueError, "indices: expected [..., G=5], got shape []"),
    (
        partial(gather_codes, zeros(3, 2), INDICES, backend="c"),
        ValueError,
        "backend: expected None or one of cuda, triton, cpu, reference",
    ),
    (
        partial(gather_codes, zeros(3, 2), INDICES.to("meta")),
        ValueError,
        "device: expected one device, got codebook on cpu, indices on meta",
    ),
    (
        partial(code_stats, zeros(4, 2).int(), INDICES, 3),
        TypeError,
        "x: expected a floating point tensor, got torch.int32",
    ),
    (
        partial(code_stats, zeros(4, 2), INDICES.short(), 3),
        TypeError,
        "indices: expected int64 or int32 indices, got torch.int16",
    ),
    (partial(code_stats, zeros(4, 2), INDICES, 0), ValueError, "num_codes: expected at least 1, got 0"),
    (partial(code_stats, zeros(4, 2), INDICES, 2.0), TypeError, "num_codes: expected an integer, got float"),
    (partial(code_stats, zeros(4, 2), INDICES, 1 << 64), ValueError, "num_codes: expected a number of 64 bits, got"),
    (partial(code_stats, zeros(4, 2), INDICES, 1 << 50), ValueError, "num_codes: expected at most 2^45 numbers in a"),
    (
        partial(code_stats, zeros(4, 0), INDICES, 3),
        ValueError,
        "x: expected at least one dimension, got shape [4, 0]",
    ),
    (partial(code_stats, zeros(0, 2), INDICES[:0], 3, groups=0), ValueError, "groups: expected at least 1, got 0"),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, deterministic="no"),
        TypeError,
        "deterministic: expected True or False, got str",
    ),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, weight=1.0),
        TypeError,
        "weight: expected a torch.Tensor, got float",
    ),
    (partial(code_stats, zeros(()), INDICES, 3), ValueError, "x: expected [..., D], got shape []"),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, groups=3),
        ValueError,
        "x: expected [..., G=3, D], got shape [4, 2]",
    ),
    (partial(code_stats, zeros(4), INDICES, 3, groups=1), ValueError, "x: expected [..., G=1, D], got shape [4]"),
    (partial(code_stats, zeros(5, 2), INDICES, 3), ValueError, "indices: expected shape x.shape[:-1] = [5], got [4]"),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, weight=INDICES),
        TypeError,
        "weight: expected a floating point tensor, got torch.int64",
    ),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, weight=zeros(5)),
        ValueError,
        "weight: expected shape indices.shape = [4], got [5]",
    ),
    (
        partial(code_stats, zeros(4, 2), INDICES, 3, weight=zeros(4, device="meta")),
        ValueError,
        "device: expected one device, got x on cpu, indices on cpu, weight on meta",
    ),
    (partial(code_stats, zeros(4, 2), INDICES, 3, backend="x"), ValueError, "backend: expected None or one of"),
    (partial(quantize, zeros(4, 3), zeros(3, 2)), ValueError, "x: expected [..., D] ending in [2]"),
    (
        partial(quantize, zeros(4, 2), zeros(3, 2), metric="l1"),
        ValueError,
        "metric: expected one of l2, cosine, dot, got 'l1'",
    ),
    (
        partial(quantize, zeros(4, 2), zeros(3, 2), gradient="gumbel"),
        ValueError,
        "gradient: expected one of ste, rotation, none, got 'gumbel'",
    ),
    (
        partial(estimate_gradient, zeros(4), zeros(4), "x"),
        ValueError,
        "gradient: expected one of ste, rotation, none, got 'x'",
    ),
    (
        partial(estimate_gradient, zeros(4), zeros(5), "ste"),
        ValueError,
        "codes: expected the shape of x [4], got [5]",
    ),
    (partial(estimate_gradient, 1.0, zeros(5), "ste"), TypeError, "x: expected a torch.Tensor, got float"),
    (
        partial(estimate_gradient, zeros(5), zeros(5).long(), "ste"),
        TypeError,
        "codes: expected a floating point tensor",
    ),
    (reanchor(seed=1 << 63), ValueError, "seed: expected a number of 64 bits, got 9223372036854775808"),
    (reanchor(seed=zeros(())), TypeError, "seed: expected an integer, got a tensor of torch.float32"),
    (reanchor(seed=zeros(2).long()), ValueError, "seed: expected shape [] = [], got [2]"),
    (
        reanchor(codebook=zeros(1, 2).expand(3, 2)),
        ValueError,
        "codebook: expected a tensor that can be written, got an expanded one",
    ),
    (ema(codebook=[0]), TypeError, "codebook: expected a torch.Tensor, got list"),
    (ema(count=zeros(3).long()), TypeError, "count: expected a floating point tensor, got torch.int64"),
    (ema(codebook=zeros(3)), ValueError, "codebook: expected [K, D] or [G, K, D], got shape [3]"),
    (ema(cluster_size=zeros(4)), ValueError, "cluster_size: expected shape codebook.shape[:-1] = [3], got [4]"),
    (ema(embed_sum=zeros(2, 3)), ValueError, "embed_sum: expected shape codebook.shape = [3, 2], got [2, 3]"),
    (ema(count=zeros(1, 3)), ValueError, "count: expected shape codebook.shape[:-1] = [3], got [1, 3]"),
    (ema(total=zeros(3)), ValueError, "total: expected shape codebook.shape = [3, 2], got [3]"),
    (
        ema(embed_sum=zeros(3, 2).double()),
        ValueError,
        "embed_sum: expected the dtype of the codebook, torch.float32, got torch.float64",
    ),
    (ema(codebook=zeros(2, 3).t()), ValueError, "codebook: expected a contiguous tensor, got strides [1, 3]"),
    (ema(decay=1.5), ValueError, "decay: expected a number in [0, 1], got 1.5"),
    (ema(decay=float("nan")), ValueError, "decay: expected a number in [0, 1], got nan"),
    (ema(eps=-1e-5), ValueError, "eps: expected a finite number >= 0, got -1e-05"),
    (ema(eps=float("nan")), ValueError, "eps: expected a finite number >= 0, got nan"),
    (ema(decay=True), TypeError, "decay: expected a number, got bool"),
    (ema(decay=torch.tensor(0.9)), TypeError, "decay: expected a number, got Tensor"),
    (ema(eps=10**400), ValueError, "eps: expected a finite number >= 0, got an integer of 1329 bits"),
    (
        ema(cluster_size=zeros(1).expand(3)),
        ValueError,
        "cluster_size: expected a contiguous tensor, got strides [0]",
    ),
    (
        ema(embed_sum=torch._neg_view(zeros(3, 2))),
        ValueError,
        "embed_sum: expected a tensor that can be written, got a",
    ),
    (ema(backend="x"), ValueError, "backend: expected None or one of"),
    (
        ema(total=zeros(3, 2, device="meta")),
        ValueError,
        "device: expected one device, got codebook on cpu, cluster_size on cpu, embed_sum on cpu, count on cpu, "
        "total on meta",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), CASES, ids=[message[:60] for *_, message in CASES])
def test_refusal(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(NotImplementedError, match=r"^nearest_code: backend 'cuda' cannot run: .*tensor on cpu"):
        nearest_code(zeros(4, 2), zeros(3, 2), backend="cuda")


def test_refused_updates_write_nothing() -> None:
    codebook = torch.ones(3, 2)
    with pytest.raises(ValueError):
        ema(codebook=codebook, decay=2.0)()
    assert bool((codebook == 1).all())
