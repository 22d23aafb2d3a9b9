"""A plugin of pytest: matrix products and sums of torch add in another order, one for every combination of shapes.

``OTHER_ORDER=SEED pytest -p other_order`` (with ``tests`` on the path) stands for processors that are not at hand.
What is to be true of any kernel of torch, that it adds the same numbers, still is; what happens to be true of those
of one processor, say that a row comes out the same with more rows beside it, is not.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

_library = torch.library.Library("aten", "IMPL")


def _order(terms: int, *shapes: torch.Size) -> np.ndarray:
    name = f"{os.environ.get('OTHER_ORDER', '0')} {shapes}"
    return np.random.RandomState(zlib.crc32(name.encode())).permutation(terms)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [..., N, D], [..., D, M] -> [..., N, M]
    order = _order(a.shape[-1], a.shape, b.shape)
    return torch.from_numpy(np.matmul(_array(a)[..., order], _array(b)[..., order, :]))


def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _product(a, b).to(a.dtype)


def addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    product = alpha * _product(a, b)
    return (product if beta == 0 else beta * c + product).to(a.dtype)


def addmv(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: float) -> torch.Tensor:
    return addmm(c[..., None], a, b[:, None], **scales)[..., 0]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return mm(a[None], b[:, None])[0, 0]


def _reduced(x: torch.Tensor, dim: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(d % max(1, x.dim()) for d in (dim or range(x.dim())))


def _shuffled(x: torch.Tensor, dims: tuple[int, ...]) -> np.ndarray:
    array = _array(x)
    for d in dims if x.dim() else ():
        array = array.take(_order(x.shape[d], x.shape), axis=d)
    return array


def sum_(
    x: torch.Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.int64
    dims = _reduced(x, dim)
    x = x.to(torch.promote_types(dtype, torch.float32) if dtype in (torch.float16, torch.bfloat16) else dtype)
    total = _shuffled(x, dims).sum(axis=dims if x.dim() else None, keepdims=keepdim, dtype=_array(x).dtype)
    return torch.from_numpy(np.asarray(total)).to(dtype)


def norm(
    x: torch.Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    size = (x if dtype is None else x.to(dtype)).abs()
    wide = size.float() if size.dtype in (torch.float16, torch.bfloat16) else size
    if abs(ord) == torch.inf:
        extreme = (np.max if ord > 0 else np.min)(_array(wide), _reduced(x, dim), keepdims=keepdim)
        found = torch.from_numpy(np.asarray(extreme))
    elif ord == 0:
        found = sum_((wide != 0).to(wide.dtype), dim, keepdim)
    else:
        found = sum_(wide.pow(ord), dim, keepdim).pow(1 / ord)
    return found.to(size.dtype)


def _into(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def with_out(*args: object, out: torch.Tensor, **kwargs: object) -> torch.Tensor:
        result = compute(*args, **kwargs)
        if out.shape != result.shape:
            out.resize_(result.shape)
        return out.copy_(result)

    return with_out


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that kernels are replaced is the purpose
    for _names, _kernel in (
        (("mm", "mm.out"), mm),
        (("bmm", "bmm.out"), mm),
        (("addmm", "addmm.out"), addmm),
        (("baddbmm", "baddbmm.out"), addmm),
        (("addmv", "addmv.out"), addmv),
        (("dot",), dot),
        (("sum.dim_IntList", "sum.IntList_out"), sum_),
        (("linalg_vector_norm", "linalg_vector_norm.out"), norm),
    ):
        for _name in _names:
            _library.impl(_name, _into(_kernel) if "out" in _name else _kernel, "CPU")
