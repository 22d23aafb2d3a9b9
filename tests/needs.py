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


def import_library(name: str) -> Any:
    """A module of a library that a machine for GPU tests may lack; what asks for it is skipped without it."""
    return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed")


def encodec(name: str) -> Any:
    """A submodule of ``encodec.quantization``.

    The package itself loads audio files and wants torchaudio for that; its quantizers do not, and are imported beside
    an empty package of the same name.
    """
    spec = importlib.util.find_spec("encodec") if "encodec" not in sys.modules else None
    if spec is not None:
        package = types.ModuleType("encodec")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["encodec"] = package
    return import_library(f"encodec.quantization.{name}")


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
