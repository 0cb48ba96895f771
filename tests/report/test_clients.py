"""Verdicts binned for the heat map, and the figures of close-ups."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skymask.report.clients import (
    NOT_ASKED,
    NOT_THERE,
    binned,
    explorer,
    groups,
    heat_map,
    ones,
    packed,
    scatter,
)
from skymask.report.read import read_runs
from skymask.report.run import ABSENT, EXCLUDED, REJECTED, Run, VerdictLog, Verdicts
from tests.report.folders import make_closeup, make_run

go = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
KINDS = {"u1": np.uint8, "i4": np.int32, "f4": np.float32}


def unpacked(array: dict[str, Any]) -> Any:
    flat = np.frombuffer(base64.b64decode(array["bdata"]), KINDS[array["dtype"]])
    return flat.reshape([int(x) for x in array["shape"].split(",")]) if "shape" in array else flat


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four rounds of eight clients, close-ups of two; 3 and 7 are malicious."""
    closeups = [make_closeup(index) for index in (0, 1)]
    folder = make_run(tmp_path / "run", closeups=closeups, malicious_clients=[3, 7])
    (found,) = read_runs([folder])
    return found


@pytest.mark.parametrize("dtype", list(KINDS))
def test_arrays_come_back_as_they_were_packed(dtype: str) -> None:
    values = np.arange(6).reshape(2, 3)
    assert unpacked(packed(values, dtype)).tolist() == values.tolist()
    assert packed(values[0], dtype).keys() == {"dtype", "bdata"}


def test_verdicts_are_sorted_malicious_first_then_by_how_often_they_were_left_out(
    run: Run,
) -> None:
    assert run.verdicts.clients == ("7", "3", "0", "1", "2", "4", "5", "6")
    assert (run.verdicts.codes == REJECTED).sum(1).tolist() == [3, 1, 0, 0, 0, 0, 0, 0]


def test_who_was_not_drawn_is_absent() -> None:
    log = VerdictLog()
    log.add(["1", "2"], {"2": REJECTED})
    log.add(None, {"10": EXCLUDED})
    found = log.verdicts(["3"], ())
    assert found.clients == ("2", "10", "1", "3")
    codes = dict(zip(found.clients, found.codes.tolist(), strict=True))
    assert codes == {"1": [0, 0], "2": [1, 0], "3": [ABSENT, 0], "10": [ABSENT, EXCLUDED]}


def test_a_round_is_a_column_while_there_are_few() -> None:
    codes = np.array([[0, REJECTED, EXCLUDED, ABSENT]], np.uint8)
    cells, edges = binned(Verdicts(("1",), codes))
    assert (cells.tolist(), edges) == ([[0, 100, NOT_ASKED, NOT_THERE]], [0, 1, 2, 3])


def test_many_rounds_share_a_column_and_no_rejection_gets_lost() -> None:
    rounds = 1501
    codes = np.zeros((2, rounds), np.uint8)
    codes[0, 700] = REJECTED
    codes[1] = EXCLUDED
    codes[1, 0] = REJECTED
    cells, edges = binned(Verdicts(("1", "2"), codes))
    assert len(edges) == cells.shape[1] == 500
    assert (edges[0], edges[-1] < rounds) == (0, True)
    assert (cells[0] > 0).sum() == 1
    assert 25 <= cells[0].max() <= 50  # one of three or four rounds
    assert cells[1, 0] == 100  # of the rounds in which it was judged
    assert set(cells[1, 1:].tolist()) == {NOT_ASKED}


def test_many_clients_share_a_row() -> None:
    clients = 1000
    codes = np.zeros((clients, 2), np.uint8)
    codes[:4, 0] = [REJECTED, 0, 0, ABSENT]
    codes[4:8] = ABSENT
    names = tuple(map(str, range(clients)))
    figure = heat_map(_run(Verdicts(names, codes)))
    cells = unpacked(figure["data"][0]["z"])
    assert (cells.shape, figure["group"]) == ((250, 2), 4)
    assert cells[0].tolist() == [34, 0]  # a third of those who were there, rounded up
    assert cells[1].tolist() == [NOT_THERE, NOT_THERE]
    assert figure["data"][0]["text"][:2] == ["4 clients from 0 on", "4 clients from 4 on"]


def _run(verdicts: Verdicts) -> Run:
    nothing: dict[str, Any] = dict.fromkeys(("accuracy", "fpr", "fnr"), None)
    return Run(
        "simulation",
        "run",
        Path("run"),
        {"experiment": {}},
        True,
        nothing,
        verdicts.codes.shape[1],
        {},
        {},
        len(verdicts.clients),
        None,
        0,
        {},
        verdicts,
    )


def test_points_are_grouped_by_truth_and_verdict(run: Run) -> None:
    first, second = run.closeups
    assert groups(run, first) == {
        "honest": [0, 1, 2, 4, 5, 6],
        "malicious-out": [7],
        "malicious": [3],
        "root": [8],
    }
    assert groups(run, second)["malicious-out"] == [3, 7]


def test_every_point_is_drawn_once_hollow_in_the_other_cluster(run: Run) -> None:
    traces = scatter(run, run.closeups[1])["data"]
    rows = [row for trace in traces for row in unpacked(trace["customdata"]).tolist()]
    assert sorted(rows) == list(range(9))
    (out,) = (trace for trace in traces if trace["marker"]["symbol"] == "x-open")
    assert unpacked(out["x"]).tolist() == [3.0, 2.0]
    assert unpacked(out["y"]).tolist() == [9.0, 9.0]


def test_shares_of_ones_are_means_with_their_range(run: Run) -> None:
    figure = ones(run, run.closeups[0])
    honest = figure["data"][0]
    assert honest["name"] == "honest, accepted"
    assert honest["y"] == [0.3, 0.5]  # of clients 0, 1, 2, 4, 5 and 6
    assert honest["error_y"]["array"] == [0.3, 0.0]
    assert figure["layout"]["xaxis"]["ticktext"] == ["a.weight", "b.weight"]


def test_all_figures_are_what_plotly_accepts(run: Run) -> None:
    closeup = run.closeups[0]
    heat = heat_map(run)
    for figure in (
        {"data": heat["data"], "layout": heat["layout"]},
        scatter(run, closeup),
        ones(run, closeup),
    ):
        go.Figure(figure)  # raises for an attribute it does not know


def test_the_page_gets_every_client_and_round(run: Run) -> None:
    found = explorer(run)
    assert found["clients"][:2] == ["7", "3"]
    assert found["told"][0].startswith("malicious; left out in 3 of 4 rounds")
    assert unpacked(found["cells"]).shape == (8, 4)
    first = found["kept"][0]
    assert (first["round"], first["gain"]) == (1, 2.5)
    place = {c: i for i, c in enumerate(found["clients"])}
    assert unpacked(first["clients"]).tolist() == [place[str(client)] for client in range(8)]
    why = unpacked(first["why"]).tolist()
    assert [row for row, reason in enumerate(why) if reason >= 0] == [7]
    assert "outside the benign cluster" in first["reasons"][why[7]]
    assert unpacked(first["values"]["score (above 0 is trusted)"]).tolist()[7] == 3.0
    assert unpacked(first["single"])[7].tolist() == [140, 100]  # in two-hundredths


def test_of_several_runs_fewer_rounds_are_kept(tmp_path: Path) -> None:
    closeups = [make_closeup(index) for index in range(50)]
    records = [{"fpr": 0.0, "fnr": 0.0}] * 50
    (run,) = read_runs([make_run(tmp_path / "run", records=records, closeups=closeups)])
    rounds = [kept["round"] for kept in explorer(run, 10)["kept"]]
    assert (len(rounds), rounds[0], rounds[-1]) == (10, 1, 50)
