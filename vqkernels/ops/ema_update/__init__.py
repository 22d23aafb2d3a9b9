"""Exponential moving average update of a codebook; see README.md in this folder."""

from vqkernels.ops.ema_update.api import ema_update_, no_step_if_empty

__all__ = ["ema_update_", "no_step_if_empty"]
