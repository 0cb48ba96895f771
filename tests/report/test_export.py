"""Figures as files."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import pytest

from skymask.errors import InputError
from skymask.report import export
from tests.report.folders import make_closeup, make_ledger, make_run


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    closeups = [make_closeup(index) for index in (0, 3)]
    return make_run(tmp_path / "run", closeups=closeups, malicious_clients=[3, 7])


def test_csv_holds_every_number(run: Path, tmp_path: Path) -> None:
    files = export([run], tmp_path / "out", ["csv"])
    assert {file.name for file in files} == {
        "rounds.csv", "verdicts.csv", "masks.csv", "stages.csv"
    }  # fmt: skip
    by_round = rows(tmp_path / "out" / "rounds.csv")
    assert [row["accuracy"] for row in by_round] == ["", "0.625", "", "0.875"]
    assert [row["fnr"] for row in by_round] == ["0.5", "0.0", "0.0", ""]
    verdicts = rows(tmp_path / "out" / "verdicts.csv")
    assert len(verdicts) == 8 * 4
    out = {(row["client"], row["round"]) for row in verdicts if row["verdict"] == "left out"}
    assert out == {("7", "1"), ("7", "2"), ("3", "2"), ("7", "3")}
    assert {row["client"] for row in verdicts if row["malicious"] == "True"} == {"3", "7"}
    masks = rows(tmp_path / "out" / "masks.csv")
    score = [r for r in masks if (r["round"], r["client"], r["quantity"]) == ("4", "7", "score")]
    assert [row["value"] for row in score] == ["3.0"]
    assert {row["client"] for row in masks if row["quantity"] == "first component"} >= {"0", "root"}


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    nodes = {"11": {"verdict": "accepted", "strikes": 0, "resting": 0, "name": "=1+1"}}
    ledger = make_ledger(tmp_path / "ledger.jsonl", {"round": 3, "nodes": nodes})
    export([ledger], tmp_path / "out", ["csv"])
    names = {row["client"] for row in rows(tmp_path / "out" / "verdicts.csv")}
    assert "'=1+1 (11)" in names


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"formats": ["pdf"]}, "format is 'pdf' but must be one of svg, png, csv"),
        ({"round": 0}, "round is 0 but must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(run: Path, tmp_path: Path, settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        export([run], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_without_kaleido_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(InputError, match=r"pip install 'skymask\[export\]'"):
        export([run], tmp_path / "out", ["svg"])


@pytest.mark.long
def test_pictures_are_drawn_of_every_figure(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    try:
        files = export([run, make_run(tmp_path / "other")], tmp_path / "out", ["svg", "png"], 1)
    except InputError as error:
        pytest.skip(str(error))
    names = {file.stem for file in files}
    assert names == {"accuracy", "rates", "masks-1", "ones-1", "verdicts-1", "verdicts-2"}
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawing = ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        assert drawing.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "a.weight" in (tmp_path / "out" / "ones-1.svg").read_text()
