"""What came out of a run, for people: the viewer's page in one HTML file, and tables for Markdown and the terminal.

Reads only files of a run folder; computes no result, loads no model.
"""

from dialoom.report.page import write_page, write_report
from dialoom.report.safe import visible
from dialoom.report.table import results_table

__all__ = ["results_table", "visible", "write_page", "write_report"]
