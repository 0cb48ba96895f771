"""The paper's tables and figures, and a table for the targets of detection: presets and a sweep.

published.py   the paper's numbers
cell.py        cells, and tables with their views
paper.py       Tables I to IV
detection.py   the cases that detection is held to
record.py      what is kept of a cell
work.py        one cell, resumed and recorded
sweep.py       many cells in processes
plan.py        what is missing, and how long it takes
measures.py    what is read off records
render.py      records as Markdown
figures.py     Figures 1 and 3 to 8
closeup.py     what Figures 1 and 3 look at
series.py      the numbers of a figure
drawing.py     a page of it as plotly.js takes it
output.py      its files
"""

from collections.abc import Callable, Mapping

from skymask.tables.cell import Cell, Sheet, Table, identity
from skymask.tables.detection import table_detection
from skymask.tables.figures import FIGURES, Figure
from skymask.tables.paper import table_1, table_2, table_3, table_4

TABLES: Mapping[str, Callable[[], Table]] = {
    "1": table_1,
    "2": table_2,
    "3": table_3,
    "4": table_4,
    "detection": table_detection,
}
"""Name -> what makes the table."""

__all__ = ["FIGURES", "TABLES", "Cell", "Figure", "Sheet", "Table", "identity"]
