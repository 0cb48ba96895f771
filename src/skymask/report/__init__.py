"""What happened in a run, or in several side by side: one HTML page, or a table in a terminal.

    run.py        what is known of a run
    read.py       simulations, read from their folders and checked; ledger.py: federations;
                  closeups.py: what is known of each client in a round
    summary.py    what is said of a run, and the table for a terminal
    figures.py    curves over rounds, as plotly.js takes them; clients.py: single clients
    tables.py     a table that `skymask table` wrote
    page.py       the HTML pages: page.html and table.html with style.css and scripts inside them
    plotly/       plotly.js as published (npm: plotly.js-cartesian-dist-min 4.1.1), MIT licence
    live.py       the same page while a run goes on (live.js), and in a terminal
    export.py     the figures as files

A run's folder may come from anybody, so none of its text is trusted: see `page`.
"""

from skymask.report.export import FORMATS, export
from skymask.report.figures import SMOOTHING
from skymask.report.live import Watched, is_loopback, served, terminal
from skymask.report.page import write_report
from skymask.report.summary import render_table
from skymask.report.tables import is_table

__all__ = [
    "FORMATS",
    "SMOOTHING",
    "Watched",
    "export",
    "is_loopback",
    "is_table",
    "render_table",
    "served",
    "terminal",
    "write_report",
]
