"""The report: one HTML file, the terminal's tables, the verdict in words, and the progress of a run."""

from pruneaug.report.compare import comparison_table
from pruneaug.report.console import console_report, summary_table
from pruneaug.report.data import VERSION, read_report
from pruneaug.report.html import render_comparison, render_html
from pruneaug.report.progress import Progress, Stage
from pruneaug.report.verdict import headline, outcome, verdict

__all__ = [
    "VERSION",
    "Progress",
    "Stage",
    "comparison_table",
    "console_report",
    "headline",
    "outcome",
    "read_report",
    "render_comparison",
    "render_html",
    "summary_table",
    "verdict",
]
