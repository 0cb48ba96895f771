"""What happened in a run, or in several side by side: one HTML page, or a table in a terminal.

    read.py      run folders, checked
    summary.py   what is said of a run, and the table for a terminal
    figures.py   what is drawn, as plotly.js takes it
    page.py      the HTML page, with style.css and page.js inside it

A run's folder may come from anybody, so none of its text is trusted: see `page`.
"""

from skymask.report.figures import SMOOTHING
from skymask.report.page import write_report
from skymask.report.summary import render_table

__all__ = ["SMOOTHING", "render_table", "write_report"]
