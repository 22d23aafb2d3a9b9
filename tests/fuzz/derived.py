"""Lookups of the classes that are derived from those of other libraries: how to call them rightly."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from functions import Arguments, Function, Pick
from needs import beside_empty, higgs_audio, import_library

from vqkernels.compat import _derived, dac, moshi, snac, transformers

# all that constructors of transformers read
CONFIG = SimpleNamespace(
    codebook_size=6, codebook_dim=4, hidden_size=4, num_embeddings=6, embed_dim=4, beta=0.25, num_patches=2
)
MADE: dict[str, Callable[[Any], Any]] = {
    "transformers": lambda kind: kind(CONFIG),
    "dac": lambda kind: kind(8, 6, 4),
    "snac": lambda kind: kind(8, 6, 4),
    "moshi": lambda kind: kind(4, 6),
}
CLASSES = {
    "transformers": transformers.CLASSES,
    "dac": dac.CLASSES,
    "snac": snac.CLASSES,
    "moshi": moshi.CLASSES,
}
# the method, and a right argument
ASKED: dict[type, tuple[str, Callable[[Pick], torch.Tensor]]] = {
    _derived.Euclidean: ("quantize", lambda pick: torch.randn(pick(5, 1, 0), 4)),
    _derived.OfRunningSums: ("_quantize", lambda pick: torch.randn(pick(5, 1, 0), 4)),
    _derived.OfFrames: ("forward", lambda pick: torch.randn(pick(2, 0), 3, 4, 2, 2)),
    _derived.OfLogits: ("forward", lambda pick: torch.randn(pick(2, 0), 4, 3, 2)),
    _derived.OfMaps: ("forward", lambda pick: torch.randn(pick(2, 0), 4, 3, 2)),
    _derived.OfUnitMaps: ("forward", lambda pick: torch.randn(pick(2, 0), 4, 3, 2)),
    _derived.Factorised: ("decode_latents", lambda pick: torch.randn(pick(2, 0), 4, 5)),
    _derived.OfLatents: ("decode_latents", lambda pick: torch.randn(pick(2, 0), 4, 5)),
}


@functools.cache
def module(library: str, name: str) -> Any:
    """One of six codes of four numbers, built when it is first called."""
    if "Higgs" in name:
        higgs_audio()
    elif library == "dac":
        beside_empty("dac.nn.quantize", "dac", "dac.nn")
    elif library == "moshi":
        beside_empty("moshi.quantization", "moshi")
    else:
        import_library(library)
    torch.manual_seed(0)
    return MADE[library](getattr(importlib.import_module(f"vqkernels.compat.{library}"), name)).eval()


def function(library: str, name: str) -> Function:
    method, right = ASKED[CLASSES[library][name].lookup]
    lookup = getattr(CLASSES[library][name].lookup, method)
    (argument,) = (parameter for parameter in inspect.signature(lookup).parameters if parameter != "self")

    def call(**arguments: Any) -> Any:
        return getattr(module(library, name), method)(**arguments)

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY)]
    )

    def arguments(pick: Pick) -> Arguments:
        return {argument: right(pick)}

    return Function(call, arguments)


DERIVED = {f"{library}.{name}": function(library, name) for library in CLASSES for name in CLASSES[library]}
