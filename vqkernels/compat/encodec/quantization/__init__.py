"""Residual vector quantization whose depth follows from a bandwidth."""

from vqkernels.compat.encodec.quantization.vq import QuantizedResult, ResidualVectorQuantizer

__all__ = ["QuantizedResult", "ResidualVectorQuantizer"]
