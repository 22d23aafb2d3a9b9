"""Two repairs of the interpreter of Triton 3.6, applied once, when it is first used here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from triton import language
from triton.runtime import interpreter


def mend_interpreter() -> None:
    """Make loop bounds work under numpy 2.4, and calls of device functions cheap."""
    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        # a scalar is an array of one element, of which numpy 2.4 makes no integer
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def patch_both_modules(function: Any) -> Any:
        # all that any device function may use, so that the calls inside a launch need not patch again
        return patch_language(SimpleNamespace(__globals__={"tl": language, "core": language.core}))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._patch_lang = patch_both_modules
    interpreter.InterpretedFunction.__call__ = call
