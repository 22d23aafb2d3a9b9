"""The demo's report: one HTML file that needs nothing beside it, and the picture of the README."""

from models.report.page import write_report
from models.report.readme_picture import draw_readme_picture
from models.report.results import METRICS, finding, score_table

__all__ = ["METRICS", "draw_readme_picture", "finding", "score_table", "write_report"]
