"""The codebook of SNAC: derived from the original, looks codes up here and keeps all else.

``from vqkernels.compat.snac import VectorQuantize`` gets the class of ``snac.vq`` with another lookup;
:func:`vqkernels.replace_quantizers` puts it into a model. The library is imported when the name is asked for.
Differences are intended and listed in ``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from torch import nn

from vqkernels.compat._derived import OfLatents, Original, derived

# CLASSES makes the name
__all__ = ["VectorQuantize"]  # noqa: F822

CLASSES = {"VectorQuantize": Original("snac.vq", OfLatents, ("ResidualVectorQuantize",))}


def __getattr__(name: str) -> type[nn.Module]:
    return derived(name, CLASSES, globals())


def __dir__() -> list[str]:
    return __all__
