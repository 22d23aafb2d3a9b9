"""Exact nearest-code lookup; see README.md in this folder."""

from vqkernels.ops.nearest_code.api import NearestCode, nearest_code

__all__ = ["NearestCode", "nearest_code"]
