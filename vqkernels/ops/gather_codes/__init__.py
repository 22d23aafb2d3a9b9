"""Codes of given indices, with a deterministic backward; see README.md in this folder."""

from vqkernels.ops.gather_codes.api import gather_codes

__all__ = ["gather_codes"]
