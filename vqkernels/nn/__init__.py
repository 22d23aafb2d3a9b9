"""Quantizer modules: one composable :class:`VectorQuantizer`, its codebook kinds, its usage statistics."""

from vqkernels.nn.config import CodebookConfig, Ema, Frozen, Learned, OnlineClustering
from vqkernels.nn.quantizer import QuantizerOutput, VectorQuantizer
from vqkernels.nn.usage import Usage

__all__ = [
    "CodebookConfig",
    "Ema",
    "Frozen",
    "Learned",
    "OnlineClustering",
    "QuantizerOutput",
    "Usage",
    "VectorQuantizer",
]
