"""The quantizers of taming-transformers: same names, signatures, results and state dicts.

``from vqkernels.compat.taming.modules.vqvae.quantize import VectorQuantizer2`` replaces the import of the original.
Differences are intended and listed in ``vqkernels/compat/README.md``.
"""

from vqkernels.compat.taming.modules.vqvae.quantize import (
    EMAVectorQuantizer,
    EmbeddingEMA,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)

__all__ = ["EMAVectorQuantizer", "EmbeddingEMA", "GumbelQuantize", "VectorQuantizer", "VectorQuantizer2"]
