"""What the figures hold."""

from pathlib import Path

import pytest

from skymask.experiment import to_json
from skymask.report import SMOOTHING, write_report
from tests.report.folders import EXPERIMENT, Page, make_run

go = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")


def test_figures_hold_every_value_at_its_round(tmp_path: Path) -> None:
    figures = Page(write_report([make_run(tmp_path / "run")])).figures
    (accuracy,) = figures["accuracy"]["data"]
    assert (accuracy["x"], accuracy["y"]) == ([2, 4], [0.625, 0.875])
    fpr, fnr = figures["rates"]["data"]
    assert (fpr["x"], fpr["y"], fpr["yaxis"]) == ([1, 2, 3, 4], [0.0, 0.5, 0.0, 0.1], "y")
    assert (fnr["x"], fnr["y"], fnr["yaxis"]) == ([1, 2, 3, 4], [0.5, 0.0, 0.0, None], "y2")


def test_a_run_without_a_round_has_no_figures(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run", summary=None, records=[])]))
    assert "No round has ended yet" in page.text
    assert "accuracy - last 5 evaluations - FPR - FNR -" in page.text
    assert page.figures == {}


def test_figures_are_what_plotly_accepts(tmp_path: Path) -> None:
    records = [{"fpr": 0.5, "fnr": None, "accuracy": 0.5}] * 40
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", records=records)]
    for figure in Page(write_report(folders)).figures.values():
        go.Figure(figure)  # raises for an attribute it does not know


def test_rates_of_many_rounds_are_smoothed(tmp_path: Path) -> None:
    values = [None if i % 7 == 0 else (i * 37 % 100) / 100 for i in range(50)]
    records = [{"fpr": value, "fnr": 0.0} for value in values]
    figures = Page(write_report([make_run(tmp_path / "run", records=records)])).figures
    points, line = figures["rates"]["data"][:2]
    defined = {i: v for i, v in enumerate(values, 1) if v is not None}
    assert points["mode"] == "markers"
    assert dict(zip(points["x"], points["y"], strict=True)) == defined
    there = [v for v in values[21 : 21 + SMOOTHING] if v is not None]
    assert line["y"][20 + SMOOTHING] == pytest.approx(sum(there) / len(there))
    assert line["y"][0] is None  # its one round has no value
    assert line["y"][1] == values[1]


def test_of_very_many_rounds_the_worst_ones_are_drawn(tmp_path: Path) -> None:
    records = [{"fpr": 0.01 * (i == 777), "fnr": 0.0} for i in range(1000)]
    figures = Page(write_report([make_run(tmp_path / "run", records=records)])).figures
    points = figures["rates"]["data"][0]
    assert len(points["x"]) <= 400
    assert dict(zip(points["x"], points["y"], strict=True))[778] == 0.01


def test_an_undefined_rate_is_said_to_be_so(tmp_path: Path) -> None:
    records = [{"fpr": 0.0, "fnr": None}]
    figures = Page(write_report([make_run(tmp_path / "run", records=records)])).figures
    (note,) = figures["rates"]["layout"]["annotations"]
    assert note["text"] == "undefined: no malicious client took part"


def test_two_runs_lie_over_each_other(tmp_path: Path) -> None:
    other = to_json(EXPERIMENT)["defence"] | {"name": "fedavg"}
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", experiment={"defence": other}, records=[{"accuracy": 0.25}])
    page = Page(write_report([one, two], tmp_path / "both.html"))
    assert "2 runs compared" in page.text
    assert "defence skymask" in page.text
    assert "defence fedavg" in page.text
    first, second = page.figures["accuracy"]["data"]
    assert (first["name"], second["name"]) == ("one", "two")
    assert (first["y"], second["y"]) == ([0.625, 0.875], [0.25])
    assert first["line"]["color"] != second["line"]["color"]
    assert first["line"]["dash"] != second["line"]["dash"]
    assert page.figures["accuracy"]["layout"]["showlegend"] is True
