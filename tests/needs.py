"""What a test may be skipped for. Where ``--complete`` is given, as `make test` does, nothing but the machine counts.

A reason that begins with ``the machine`` names something that no package brings.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import pytest

needs_extension = pytest.mark.skipif(
    os.environ.get("VQKERNELS_BUILD") == "none", reason="the extension is left out on purpose (VQKERNELS_BUILD=none)"
)

# of tests that hold what several processes compute against one
needs_one_order = pytest.mark.skipif(
    "OTHER_ORDER" in os.environ, reason="the machine adds in another order here than in processes of their own"
)


def import_library(name: str) -> Any:
    """A module of a library that a machine for GPU tests may lack; what asks for it is skipped without it."""
    return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed")


def beside_empty(module: str, *packages: str) -> Any:
    """A module of a library, beside empty packages of these names in the place of its own.

    They load and play audio, and want torchaudio and more for that; the quantizers in them do not.
    """
    for name in packages:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            package = types.ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations or ())
            sys.modules[name] = package
    return import_library(module)


def encodec(name: str) -> Any:
    """A submodule of ``encodec.quantization``."""
    return beside_empty(f"encodec.quantization.{name}", "encodec")


def higgs_audio() -> Any:
    """The model file of ``higgs_audio_v2_tokenizer`` in transformers.

    It loads torchaudio, which resamples what another model inside is given; its quantizers do not need it.
    """
    name = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
    import_library("transformers")
    absent = name not in sys.modules and importlib.util.find_spec("torchaudio") is None
    if absent:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        return importlib.import_module(name)
    finally:
        if absent:
            del sys.modules["torchaudio"]
