"""Repairs of the interpreter of Triton 3.6, applied once, when it is first used here."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from triton import language
from triton.runtime import interpreter


def mend_interpreter() -> None:
    """Make loop bounds work under numpy 2.4, and launches, calls of device functions, types and sums cheap."""
    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        # a scalar is an array of one element, of which numpy 2.4 makes no integer
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    @functools.cache
    def patch_for_good() -> None:
        # the language as every kernel and device function sees it; a process that interprets never compiles
        patch_language(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
        _share_types()
        # every sum of integers is formed a second time, wide, for an assertion that is made in debugging only
        assert not interpreter.interpreter_builder.options.debug
        language.semantic.TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None

    def patch_once(function: Any) -> Any:
        patch_for_good()
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._patch_lang = patch_once


@functools.cache
def _sizes(sizes: tuple[int, ...]) -> tuple[Any, int, Any, Any]:
    """The shape of a type and its number of elements, then those of a tensor: written to by nobody, so made once."""
    if not sizes:
        return (), 1, language.core.tuple([]), language.constexpr(1)
    plain = language.core.tuple(list(sizes))
    numel = language.core.validate_block_shape(plain)
    return plain, numel, language.core.tuple([language.constexpr(s) for s in sizes]), language.constexpr(numel)


def _share_types() -> None:
    """Types and shapes are half of what the interpreter spends its time on, and there are few different ones."""

    def block_init(self: Any, element_ty: Any, shape: Any) -> None:
        if not shape:
            raise TypeError("0d block_type is forbidden")
        self.element_ty = element_ty
        sizes = tuple(language.core._unwrap_if_constexpr(s) for s in shape)
        # 4.0 is no size, though it would be found as 4
        shared = all(type(size) is int for size in sizes)
        self.shape, self.numel, *_ = (_sizes if shared else _sizes.__wrapped__)(sizes)

    def tensor_init(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        *_, self.shape, self.numel = _sizes(tuple(type.shape) if type.is_block() else ())

    block, numpy_type = language.core.block_type, functools.cache(interpreter._get_np_dtype)

    def numpy_type_of(dtype: Any) -> Any:
        scalar = dtype.scalar
        return np.dtype(np.uint64) if scalar.is_ptr() else numpy_type(scalar)

    block.__init__, block.name = block_init, property(lambda self: f"<{self.shape}, {self.element_ty}>")
    language.core.tensor.__init__ = tensor_init
    interpreter._get_np_dtype = numpy_type_of
