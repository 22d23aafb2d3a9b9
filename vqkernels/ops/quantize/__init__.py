"""Lookup, gather and gradient estimator in one call; see README.md in this folder."""

from vqkernels.ops.quantize.api import Quantized, quantize
from vqkernels.ops.quantize.estimator import GRADIENTS, estimate_gradient

__all__ = ["GRADIENTS", "Quantized", "estimate_gradient", "quantize"]
