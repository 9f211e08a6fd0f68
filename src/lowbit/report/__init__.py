"""What a run says about itself: tables for the terminal, pages for the browser, figures."""

from lowbit.report.comparison import write_comparison
from lowbit.report.page import demo_report, write_report
from lowbit.report.table import checkpoints_table, comparison_table, layers_table, limits_table, measures_table

__all__ = [
    "checkpoints_table",
    "comparison_table",
    "demo_report",
    "layers_table",
    "limits_table",
    "measures_table",
    "write_comparison",
    "write_report",
]
