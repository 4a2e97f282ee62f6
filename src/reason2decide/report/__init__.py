"""Reports of evaluations and comparisons: one self-contained HTML file each, and their plots and tables as files."""

from reason2decide.report.comparison_page import render_comparison
from reason2decide.report.evaluation_page import render_report
from reason2decide.report.writing import write_comparison_files, write_report_files

__all__ = ["render_comparison", "render_report", "write_comparison_files", "write_report_files"]
