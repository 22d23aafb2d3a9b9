"""Entropies of soft assignments; see README.md in this folder."""

from vqkernels.ops.soft_assignment_entropy.api import (
    METRICS,
    SMOOTHINGS,
    SoftEntropy,
    soft_assignment_entropy,
    unrounded_entropies,
)

__all__ = ["METRICS", "SMOOTHINGS", "SoftEntropy", "soft_assignment_entropy", "unrounded_entropies"]
