"""A table's page."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from skymask.errors import InputError
from skymask.report import export, write_report
from skymask.report.tables import drawing, read_table
from tests.report.folders import EVIL, Page, make_run

go = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")


def cell(row: str, column: str, accuracy: float, **more: Any) -> dict[str, Any]:
    statistic = {"value": accuracy, "spread": 0.01, "seeds": 3}
    return {"row": row, "column": column, "accuracy": statistic} | more


def make_table(path: Path, *cells: dict[str, Any], **changed: Any) -> Path:
    """A table's JSON file, by hand: two rows of two rules unless told otherwise."""
    usual = [
        cell("har none", "FedAvg", 0.95, published={"accuracy": 0.96}),
        cell("har none", "SkyMask", 0.94, target="met", fpr={"value": 0.5, "spread": None}),
        cell("har min-sum", "FedAvg", 0.5),
        cell("har min-sum", "SkyMask", 0.93, target="FPR 50 % > 1 %"),
    ]
    told = {
        "table": "9",
        "title": "Rules",
        "seeds": 3,
        "rounds": None,
        "measures": {"accuracy": "at the end", "fpr": "of the honest", "fnr": "of the others"},
        "cells": list(cells) or usual,
        "lacks": {"cells": 6, "missing": 2},
        "conditions": {"seconds": 12.0, "rounds": 90, "devices": {"cpu": 4}, "commands": {"go": 4}},
    }
    path.write_text(json.dumps(told | changed))
    return path


def test_the_page_has_a_figure_and_the_numbers_of_each_measure_that_is_there(tmp_path: Path):
    page = Page(write_report([make_table(tmp_path / "table.json")]))
    assert set(page.figures) == {"measure-accuracy", "measure-fpr"}
    assert ["har none", "95.0 ± 1.0 % (96 %)", "94.0 ± 1.0 %", "met"] in page.rows
    assert ["har min-sum", "50.0 ± 1.0 %", "93.0 ± 1.0 %", "FPR 50 % > 1 %"] in page.rows
    assert ["har none", "-", "50.0 %"] in page.rows
    assert "cells 4 of 6" in page.text
    for figure in page.figures.values():
        go.Figure(figure)  # raises for an attribute it does not know


def test_rules_that_are_equal_do_not_hide_each_other(tmp_path: Path):
    table = read_table(make_table(tmp_path / "t.json", cell("a", "x", 0.5), cell("a", "y", 0.5)))
    first, second = drawing(table, "accuracy")["data"]
    assert first["x"] == second["x"]
    assert first["y"] != second["y"]


def test_only_what_is_there_is_drawn(tmp_path: Path):
    figure = drawing(read_table(make_table(tmp_path / "table.json")), "fpr")
    assert [trace["name"] for trace in figure["data"]] == ["SkyMask"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["har none"]


def test_no_text_of_a_table_becomes_markup(tmp_path: Path):
    plain = Page(write_report([make_table(tmp_path / "plain.json")], tmp_path / "plain.html"))
    evil = cell(EVIL, EVIL, 0.5, target=EVIL)
    table = make_table(tmp_path / "t.json", evil, title=EVIL, measures={"accuracy": EVIL})
    page = Page(write_report([table]))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert page.scripts[1:] == plain.scripts[1:]
    assert page.text.count(EVIL) >= 4


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"cells": 7}, "is no table that `skymask table` wrote"),
        ({"measures": None}, "is no table that `skymask table` wrote"),
        ({"cells": [{"row": "a"}]}, "cell 0 is {'row': 'a'} but it must name a row and a column"),
        ({"cells": [cell("a", "b", "good")]}, "value 'good' but it must be a number"),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, told: dict[str, Any], says: str):
    with pytest.raises(InputError, match=re.escape(says)):
        write_report([make_table(tmp_path / "table.json", **told)])
    assert not (tmp_path / "report.html").exists()


def test_a_table_is_reported_by_itself(tmp_path: Path):
    with pytest.raises(InputError, match="a table is reported by itself"):
        write_report([make_table(tmp_path / "table.json"), make_run(tmp_path / "run")])


def test_its_cells_are_exported(tmp_path: Path):
    export([make_table(tmp_path / "table.json")], tmp_path / "out", ["csv"])
    with (tmp_path / "out" / "cells.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 5
    assert rows[0]["published"] == "0.96"
