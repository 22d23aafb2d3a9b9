"""The codebook of moshi (Mimi): derived from the original, looks codes up here and keeps all else.

``from vqkernels.compat.moshi import EuclideanCodebook`` gets the class of ``moshi.quantization.core_vq`` with
another lookup; :func:`vqkernels.replace_quantizers` puts it into a
model. The library is imported when the name is asked for. Differences are intended and listed in
``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from torch import nn

from vqkernels.compat._derived import OfRunningSums, Original, derived

# CLASSES makes the name
__all__ = ["EuclideanCodebook"]  # noqa: F822

CLASSES = {
    "EuclideanCodebook": Original(
        "moshi.quantization.core_vq",
        OfRunningSums,
        (
            "VectorQuantization",
            "ResidualVectorQuantization",
            "moshi.quantization.vq.ResidualVectorQuantizer",
            "moshi.quantization.vq.SplitResidualVectorQuantizer",
        ),
    )
}


def __getattr__(name: str) -> type[nn.Module]:
    return derived(name, CLASSES, globals())


def __dir__() -> list[str]:
    return __all__
