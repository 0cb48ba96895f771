"""The paper's tables, and one for the targets of detection, run again: presets and a sweep.

published.py   the paper's numbers
cell.py        cells, views, tables
paper.py       Tables I to IV
detection.py   the cases that detection is held to
record.py      what is kept of a cell
work.py        one cell, resumed and recorded
sweep.py       many cells in processes
plan.py        what is missing, and how long it takes
measures.py    what is read off records
render.py      records as Markdown
"""

from collections.abc import Callable, Mapping

from skymask.tables.cell import Cell, Table, identity
from skymask.tables.detection import table_detection
from skymask.tables.paper import table_1, table_2, table_3, table_4

TABLES: Mapping[str, Callable[[], Table]] = {
    "1": table_1,
    "2": table_2,
    "3": table_3,
    "4": table_4,
    "detection": table_detection,
}
"""Name -> what makes the table."""

__all__ = ["TABLES", "Cell", "Table", "identity"]
