"""A vector drawn for each code, by softmax of the distances; see README.md in this folder."""

from vqkernels.ops.draw_rows.api import DrawnRows, draw_rows

__all__ = ["DrawnRows", "draw_rows"]
