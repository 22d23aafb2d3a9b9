"""The libraries that the adapters stand in for, as far as they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def encodec(name: str) -> Any:
    """A submodule of ``encodec.quantization``.

    The package itself loads audio files and wants torchaudio for that; its quantizers do not, and are imported beside
    an empty package of the same name.
    """
    if "encodec" not in sys.modules:
        spec = importlib.util.find_spec("encodec")
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip("the original is not installed", allow_module_level=True)
        package = types.ModuleType("encodec")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["encodec"] = package
    return importlib.import_module(f"encodec.quantization.{name}")
