"""Count and sum of the vectors assigned to each code; see README.md in this folder."""

from vqkernels.ops.code_stats.api import CodeStats, code_stats

__all__ = ["CodeStats", "code_stats"]
