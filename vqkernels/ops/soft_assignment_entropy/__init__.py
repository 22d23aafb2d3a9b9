"""Entropies of soft assignments; see README.md in this folder."""

from vqkernels.ops.soft_assignment_entropy.api import SoftEntropy, soft_assignment_entropy

__all__ = ["SoftEntropy", "soft_assignment_entropy"]
