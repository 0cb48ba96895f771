"""`skymask table` and `skymask figure` as a person uses them."""

import csv
import json
import sys
from functools import partial

import pytest

from skymask.cli import main
from skymask.cli.sweeping import command
from skymask.experiment import to_json
from skymask.tables import FIGURES, TABLES
from skymask.tables.work import Task
from tests.tables.small import made_up

SMALL = [
    "detection",
    *("--rows", "digits q=0.5 min-sum", "--columns", "SkyMask"),
    *("--rounds", "5", "--device", "cpu"),
]
HONEST = ["--columns", "honest*"]


@pytest.fixture
def skymask(capsys, monkeypatch, tmp_path):
    """Call `skymask` in a folder of its own; gives exit status, last line's JSON, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["skymask", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        lines = written.out.splitlines()
        told = json.loads(lines[-1]) if "--json" in arguments and not left.value.code else None
        return left.value.code or 0, told, written.err

    return call


@pytest.fixture
def table(skymask):
    return partial(skymask, "table")


@pytest.fixture
def figure(skymask):
    return partial(skymask, "figure")


def test_a_table_is_planned_run_and_rendered(table, tmp_path):
    _, plan, _ = table(*SMALL, *HONEST, "--seeds", "2", "--dry-run", "--json")
    assert (plan["cells"], plan["to_run"], plan["rounds"]) == (4, 4, 20)
    assert plan["cells_of_unknown_time"] == 4
    assert not (tmp_path / "results").exists()

    status, done, said = table(*SMALL, *HONEST, "--seeds", "1", "--jobs", "1", "--json")
    assert status == 0
    assert (done["run"], done["failed"], done["left"]) == (2, {}, 0)
    assert "2 of 2: digits q=0.5 min-sum, " in said
    folder = tmp_path / "results" / "tables"
    markdown = (folder / "table-detection-5-rounds.md").read_text()
    assert "| digits q=0.5 min-sum |" in markdown
    assert "skymask table detection --rows 'digits q=0.5 min-sum'" in markdown
    assert len(list((folder / "cells").iterdir())) == 2
    assert done["files"]["md"] == "results/tables/table-detection-5-rounds.md"

    _, plan, _ = table(*SMALL, *HONEST, "--seeds", "2", "--dry-run", "--json")
    assert (plan["cells"], plan["to_run"], plan["cells_of_unknown_time"]) == (4, 2, 0)
    assert plan["device_seconds"] > 0

    _, again, said = table(*SMALL, *HONEST, "--seeds", "1", "--json")
    assert (again["run"], again["left"], said) == (0, 0, "")
    status, _, _ = table("detection", "--rounds", "5", "--seeds", "1", "--render")
    assert status == 0
    assert (folder / "table-detection-5-rounds.md").read_text() == markdown


def test_a_failing_cell_is_named_and_the_exit_status_says_so(table, tmp_path):
    """The checkpoint of its run is not one."""
    folder = tmp_path / "results" / "tables"
    cells = TABLES["detection"]().cut(5).select(["digits q=0.5 min-sum"], ["SkyMask"])
    task = Task.of(cells[0], 1)
    run = folder / "runs" / task.key
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"experiment": to_json(task.experiment)}))
    (run / "checkpoint.safetensors").write_text("no")
    status, _, said = table(*SMALL, "--seeds", "1", "--jobs", "1")
    assert status == 1
    assert f"failed: {task.label}: InputError: " in said
    assert "is not a checkpoint of a run" in said
    assert (folder / "failed" / f"{task.key}.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["5"], "table '5' is not known"),
        (["detecton"], "did you mean 'detection'?"),
        (["1", "--rows", "mnist*"], "--rows 'mnist*' matches none of 35"),
        (["1", "--columns", "SkyMsk"], "--columns 'SkyMsk' matches none of 9"),
        (["1", "--seeds", "0"], "seeds is 0 but must be at least 1"),
        (["1", "--minutes", "0"], "minutes is 0.0 but must be above 0"),
        (["1", "--jobs", "0"], "jobs is 0 but must be at least 1"),
        (["1", "--rounds", "0"], "rounds is 0 but must be at least 1"),
        (["1", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["1", "--rows", "har none", "--data-dir", "nowhere"], "data set 'har' is not in nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    table, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.setattr("skymask.data.sources.SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.setattr("skymask.data.sources.download.download", _offline)
    status, _, said = table(*arguments)
    assert status == 2
    assert says in said
    assert not (tmp_path / "results").exists()


def _offline(*_: object) -> None:
    from skymask.errors import InputError

    raise InputError("no network")


def test_a_record_names_no_folder_of_the_machine():
    words = ["table", "1", "--out", "/here", "--rows", "har*", "--data-dir=/there", "--seeds=2"]
    assert command(words) == "skymask table 1 --rows 'har*' --seeds=2"
    assert command(["table", "2", "--minutes", "8"]) == "skymask table 2"


# Figures

DIGITS = ["--rows", "digits q=0.5 40% min-sum", "--rounds", "5", "--device", "cpu", "--seeds", "1"]
TWO = [*DIGITS, "--columns", "FedAvg", "--columns", "SkyMask", "--jobs", "1"]


def test_a_figure_is_planned_run_and_drawn_from_its_records(figure, tmp_path):
    _, plan, _ = figure("4", *TWO, "--dry-run", "--json")
    assert (plan["figure"], plan["cells"], plan["to_run"], plan["rounds"]) == ("4", 2, 2, 10)
    assert not (tmp_path / "results").exists()

    status, done, _ = figure("4", *TWO, "--format", "csv", "--json")
    assert (status, done["run"], done["left"]) == (0, 2, 0)
    assert done["files"] == {
        "json": ["results/tables/figure-4-5-rounds.json"],
        "csv": ["results/tables/figure-4-5-rounds-digits-q0.5.csv"],
    }
    folder = tmp_path / "results" / "tables"
    with (tmp_path / done["files"]["csv"][0]).open(newline="") as file:
        drawn = {row["line"]: (row["x"], float(row["y"])) for row in csv.DictReader(file)}
    recorded = {}
    for path in (folder / "cells").iterdir():
        told = json.loads(path.read_text())
        rule = {"fedavg": "FedAvg", "skymask": "SkyMask"}[told["experiment"]["defence"]["name"]]
        recorded[rule] = ("5", pytest.approx(told["evaluations"]["accuracy"][-1], abs=1e-5))
    assert drawn == recorded
    assert len(drawn) == 2

    _, again, _ = figure("4", *TWO, "--format", "csv", "--json")
    assert (again["run"], again["missing"]) == (0, done["missing"])
    _, shown, _ = figure("4", "--rounds", "5", "--render", "--format", "csv", "--json")
    assert "run" not in shown
    assert shown["cells"] - shown["missing"] == 2


def test_a_cell_of_a_table_is_not_run_again_for_a_figure(table, figure, tmp_path):
    rows = ["--rows", "har min-sum", "--rounds", "1", "--seeds", "1", "--device", "cpu"]
    _, of_table, _ = table("2", *rows, "--dry-run", "--json")
    made = FIGURES["5"]().cut(1).select(["har min-sum"])
    cells = tmp_path / "results" / "tables" / "cells"
    cells.mkdir(parents=True)
    for cell in made:
        known = made_up(cell.seeded(1), 0.5, evaluations={"accuracy": [0.5]})
        (cells / f"{known.key}.json").write_text(json.dumps(known.told))
    for call, name in ((table, "2"), (figure, "5")):
        _, plan, _ = call(name, *rows, "--dry-run", "--json")
        assert (plan["cells"], plan["to_run"]) == (of_table["cells"], 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["2"], "figure '2' is not known"),
        (["44"], "did you mean '4'?"),
        (["4", "--format", "pdf"], "format is 'pdf' but must be one of svg, png, csv"),
        (["4", "--rows", "mnist*"], "--rows 'mnist*' matches none of"),
        (["4", "--seeds", "0"], "seeds is 0 but must be at least 1"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(figure, tmp_path, arguments, says):
    status, _, said = figure(*arguments)
    assert status == 2
    assert says in said
    assert not (tmp_path / "results").exists()


def test_without_kaleido_nothing_is_run_unless_csv_will_do(figure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    status, _, said = figure("4", *TWO)
    assert status == 2
    assert "pip install 'skymask[export]'" in said
    assert not (tmp_path / "results").exists()
