"""How large the addends of per-code sums are, and how many; see README.md in this folder."""

from vqkernels.ops.code_range.api import code_range

__all__ = ["code_range"]
