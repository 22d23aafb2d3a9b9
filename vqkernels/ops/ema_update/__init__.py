"""Exponential moving average update of a codebook; see README.md in this folder."""

from vqkernels.ops.ema_update.api import ema_update_

__all__ = ["ema_update_"]
