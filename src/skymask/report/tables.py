"""A table that `skymask table` wrote, as a page: a figure and the numbers of each measure."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from skymask.errors import InputError
from skymask.records import read_object
from skymask.report.figures import base_layout, colour
from skymask.report.run import number, require_shallow
from skymask.report.summary import clean

SHOWN = ("accuracy", "attack_success", "fpr", "fnr", "fnr_since")
"""The measures that are drawn, where a table has them."""
_SHAPES = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon")


@dataclass(frozen=True)
class Value:
    """A measure of a cell over its seeds."""

    value: float
    spread: float | None
    published: float | None


@dataclass(frozen=True, eq=False)
class Table:
    """What the report needs of a table, checked."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    measures: Mapping[str, str]
    """Name -> what it means."""
    values: Mapping[str, Mapping[tuple[str, str], Value]]
    """Measure -> (row, column) -> value."""
    targets: Mapping[str, str]
    """Row -> which of its targets are missed, or that all are met."""
    facts: Mapping[str, str]
    commands: Sequence[str]


def is_table(path: Path) -> bool:
    """Whether a path is a file that `skymask table` may have written, by its name."""
    return path.is_file() and path.suffix == ".json"


def read_table(path: Path) -> Table:
    """The table in a JSON file. Raises `InputError` where the file holds something else."""
    try:
        told = read_object(path)
    except OSError as error:
        raise InputError(f"the table {path} cannot be read: {error}") from error
    cells, measures = told.get("cells"), told.get("measures")
    if not isinstance(cells, list) or not isinstance(measures, dict) or "table" not in told:
        raise InputError(f"{path} is no table that `skymask table` wrote")
    require_shallow(str(path), told)
    values: dict[str, dict[tuple[str, str], Value]] = {}
    targets: dict[str, str] = {}
    for index, cell in enumerate(cells):
        where = f"{path} cell {index}"
        if not isinstance(cell, dict) or not all(
            isinstance(cell.get(name), str) for name in ("row", "column")
        ):
            raise InputError(f"{where} is {reprlib.repr(cell)} but it must name a row and a column")
        place = cell["row"], cell["column"]
        for measure, value in _measured(where, cell, measures):
            values.setdefault(measure, {})[place] = value
        if isinstance(cell.get("target"), str):
            targets[cell["row"]] = cell["target"]
    conditions = told.get("conditions")
    known: Mapping[str, Any] = conditions if isinstance(conditions, dict) else {}
    return Table(
        str(told.get("title", told["table"])),
        list(dict.fromkeys(cell["row"] for cell in cells)),
        list(dict.fromkeys(cell["column"] for cell in cells)),
        {str(name): str(meaning) for name, meaning in measures.items()},
        values,
        targets,
        _facts(str(path), told, known),
        [str(command) for command in _keys(known.get("commands"))],
    )


def _measured(
    where: str, cell: Mapping[str, Any], measures: Mapping[str, Any]
) -> Iterator[tuple[str, Value]]:
    published = cell.get("published")
    for name in measures:
        found = cell.get(name)
        if not isinstance(found, dict):
            continue
        value, spread = number(where, found, "value"), number(where, found, "spread")
        beside = number(where, published, name) if isinstance(published, dict) else None
        if value is not None:
            yield name, Value(value, spread, beside)


def _facts(where: str, told: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    lacks = told.get("lacks")
    missing = number(where, lacks, "missing") if isinstance(lacks, dict) else None
    cells = number(where, lacks, "cells") if isinstance(lacks, dict) else None
    seconds = number(where, known, "seconds")
    found = {
        "cells": "-" if cells is None or missing is None else f"{cells - missing:g} of {cells:g}",
        "seeds wanted": str(told.get("seeds", "-")),
        "rounds run": str(known.get("rounds", "-")),
        "seconds in rounds": "-" if seconds is None else f"{seconds:,.0f}",
        "devices": ", ".join(map(str, _keys(known.get("devices")))) or "-",
    }
    if told.get("rounds") is not None:
        found["cut to"] = f"{told['rounds']} rounds a cell"
    return found


def _keys(counted: Any) -> list[Any]:
    return list(counted) if isinstance(counted, dict) else []


def drawing(table: Table, measure: str) -> dict[str, Any]:
    """A measure as a figure: a line a row, a mark a column, with the spread over seeds."""
    traces = []
    values = table.values[measure]
    known = [row for row in table.rows if any((row, c) in values for c in table.columns)]
    columns = [c for c in table.columns if any((row, c) in values for row in known)]
    for place, column in enumerate(columns):
        rows = [index for index, row in enumerate(known) if (row, column) in values]
        found = [values[known[index], column] for index in rows]
        # Beside one another, so that equal values do not hide each other.
        aside = 0.6 * (place - (len(columns) - 1) / 2) / len(columns)
        shade, shape = colour(place), _SHAPES[place % len(_SHAPES)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _text(column),
                "x": [each.value for each in found],
                "y": [index + aside for index in rows],
                "text": [_text(known[index]) for index in rows],
                "error_x": {"array": [each.spread or 0.0 for each in found], "thickness": 1},
                "marker": {"color": shade, "symbol": shape, "size": 9},
                "hovertemplate": "%{text}: %{x:.1%}",
            }
        )
    axis = {"zeroline": False, "tickvals": list(range(len(known)))}
    layout = base_layout(True) | {
        "hovermode": "closest",
        "height": 130 + max(26, 12 * len(columns)) * len(known),
        "margin": {"l": 12, "r": 16, "t": 12, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "xaxis": {
            "tickformat": ".0%",
            "zeroline": False,
            "rangemode": "normal" if measure == "accuracy" else "tozero",
        },
        "yaxis": axis
        | {
            "automargin": True,
            "range": [len(known) - 0.5, -0.5],
            "ticktext": [_text(row) for row in known],
        },
    }
    return {"data": traces, "layout": layout}


def _text(text: str) -> str:
    return escape(clean(text), quote=False)


def shown(table: Table) -> list[str]:
    """The measures that the page draws."""
    return [name for name in SHOWN if table.values.get(name)]
