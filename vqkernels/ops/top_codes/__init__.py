"""The M nearest codes, exactly and in order; see README.md in this folder."""

from vqkernels.ops.top_codes.api import TopCodes, top_codes

__all__ = ["TopCodes", "top_codes"]
