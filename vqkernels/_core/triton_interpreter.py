"""Two repairs of the interpreter of Triton 3.6, applied once, when it is first used here."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from triton import language
from triton.runtime import interpreter


def mend_interpreter() -> None:
    """Make loop bounds work under numpy 2.4, and launches and calls of device functions cheap."""
    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        # a scalar is an array of one element, of which numpy 2.4 makes no integer
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    @functools.cache
    def patch_for_good() -> None:
        # the language as every kernel and device function sees it; a process that interprets never compiles
        patch_language(SimpleNamespace(__globals__={"tl": language, "core": language.core}))

    def patch_once(function: Any) -> Any:
        patch_for_good()
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._patch_lang = patch_once
