"""A figure's files."""

import csv
import json
from xml.etree import ElementTree

import pytest

from skymask.errors import InputError
from skymask.tables.output import HEADER, write_figure
from tests.tables.drawn import FIGURE, RECORDS


def test_csv_and_json_hold_what_is_drawn_and_what_is_missing(tmp_path):
    written = write_figure(FIGURE, RECORDS, tmp_path, 2, ["csv"])
    names = ["figure-x-curves.csv", "figure-x-look.csv"]
    assert [path.name for path in written.files["csv"]] == names
    with (tmp_path / "figure-x-curves.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == HEADER
    assert rows[1] == ["left", "testing accuracy", "FedAvg", "1 2", "2", "0.3", "0.2", "0.4"]
    assert ["left", "missed", "SkyMask", "1", "2", "0.25", "", ""] in rows
    assert ["right", "FPR", "Min-Sum", "1 2", "0.1", "0.5", "0", "1"] in rows
    assert len(rows) == 1 + 4 + 4 + 2
    told = json.loads((tmp_path / "figure-x.json").read_text())
    # Two seeds of three experiments: one of SkyMask and both of Krum are not there.
    assert written.lacks == {"cells": 8, "missing": 4, "empty_pages": []}
    curves, look = told["pages"]
    assert curves["caption"].endswith("Seeds 1, 2. 3 of 6 cells are missing, each seed counted.")
    assert look["caption"].endswith("Round 4. Seed 1. 1 of 2 cells are missing, each seed counted.")
    assert told["conditions"]["records"] == 4
    assert len(curves["records"]) == 3


def test_without_records_there_is_no_picture_but_it_is_said(tmp_path):
    written = write_figure(FIGURE, {}, tmp_path, 1)
    assert written.files["svg"] == []
    assert written.lacks["empty_pages"] == ["curves", "look"]
    assert [path.name for path in tmp_path.iterdir()] == ["figure-x.json"]


@pytest.mark.long
def test_pictures_have_the_lines_and_their_names(tmp_path):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    try:
        written = write_figure(FIGURE, RECORDS, tmp_path, 1, ["svg"])
    except InputError as error:
        pytest.skip(str(error))
    first = written.files["svg"][0]
    assert ElementTree.parse(first).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = first.read_text()
    assert all(name in text for name in ("FedAvg", "SkyMask", "not run yet", "left"))
