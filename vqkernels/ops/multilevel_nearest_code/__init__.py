"""Exact lookup by a weighted sum of distances; see README.md in this folder."""

from vqkernels.ops.multilevel_nearest_code.api import multilevel_nearest_code

__all__ = ["multilevel_nearest_code"]
