"""What the report makes of a federation's ledger."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from skymask.errors import InputError
from skymask.report import render_table, write_report
from skymask.report.read import read_runs
from tests.report.folders import EVIL, Page, make_closeup, make_ledger


def test_verdicts_standing_and_times(tmp_path: Path) -> None:
    (run,) = read_runs([make_ledger(tmp_path / "ledger.jsonl")])
    assert (run.kind, run.rounds, run.clients, run.malicious) == ("federation", 2, 3, None)
    codes = dict(zip(run.verdicts.clients, run.verdicts.codes.tolist(), strict=True))
    assert codes == {"11": [0, 0], "12": [1, 2], "13": [3, 3]}
    assert run.series["left_out"] == [1 / 3, 1 / 3]
    assert run.stages == {"clients": 2.0, "defence": 0.5}
    assert run.totals["seconds"] == 5.0
    assert run.standing == {"11": "asked", "12": "excluded for 19 more rounds", "13": "asked"}
    assert run.label("11") == "clinic-1 (11)"
    assert run.rejections["12"].total() == 1


def test_the_page_names_who_is_out_and_since_when(tmp_path: Path) -> None:
    page = Page(write_report([make_ledger(tmp_path / "ledger.jsonl")]))
    assert "Federation: SkyMask around FedAvg" in page.text
    assert "nodes 3 excluded now 1 ever rejected 1" in page.text
    assert ["12", "1", "excluded for 19 more rounds", "too long"] in page.rows
    assert "skymask run" not in page.text
    assert page.clients[0]["labels"] == ["12", "clinic-1 (11)", "13"]
    assert (tmp_path / "report.html").exists()


def test_a_folder_with_a_ledger_will_do(tmp_path: Path) -> None:
    make_ledger(tmp_path / "ledger.jsonl")
    assert read_runs([tmp_path])[0].rounds == 2
    assert render_table([tmp_path]).columns[1].header.plain == tmp_path.name  # type: ignore[union-attr]


def test_closeups_and_the_servers_own_evaluation(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger.jsonl")
    lines = [make_closeup(index, 2) | {"clients": ["11", "12"]} for index in (2, 3)]
    lines.append({"round": 2, "server_evaluation": {"loss": 0.3, "accuracy": 0.75}})
    text = "".join(json.dumps(line) + "\n" for line in lines)  # round 3 has not ended
    (tmp_path / "ledger.closeups.jsonl").write_text(text)
    (run,) = read_runs([ledger])
    (closeup,) = run.closeups
    assert (closeup.round, closeup.clients) == (1, ("11", "12"))
    assert run.series["accuracy"] == [None, 0.75]
    assert run.totals["accuracy"] == 0.75


def test_the_last_of_several_runs_is_shown(tmp_path: Path) -> None:
    one = make_ledger(tmp_path / "one.jsonl").read_text()
    two = make_ledger(tmp_path / "two.jsonl", start={"defence": "Median"}).read_text()
    (tmp_path / "both.jsonl").write_text(one + two)
    page = Page(write_report([tmp_path / "both.jsonl"]))
    assert "Federation: Median around FedAvg" in page.text
    assert "The ledger holds 1 earlier runs, which are not shown." in page.text


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger.jsonl")
    with ledger.open("a") as file:
        file.write('{"round": 3, "nod')
    assert read_runs([ledger])[0].rounds == 2


def test_names_are_never_trusted(tmp_path: Path) -> None:
    nodes = {EVIL: {"verdict": "rejected", "reason": EVIL, "name": EVIL}}
    ledger = make_ledger(tmp_path / "l.jsonl", {"round": 3, "nodes": nodes, "warnings": [EVIL]})
    plain = Page(write_report([make_ledger(tmp_path / "plain.jsonl")], tmp_path / "plain.html"))
    page = Page(write_report([ledger]))
    assert page.code == plain.code
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert page.text.count(EVIL) >= 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"round": "x", "nodes": {}}, "line 4 has round 'x' but it must be a number"),
        ({"round": 3, "nodes": []}, "line 4 has nodes [] but it must give a verdict a node"),
        ({"round": 3, "nodes": {"1": {"verdict": 7}}}, "must give a verdict a node"),
        ({"round": 3, "nodes": {"1": {"verdict": "accepted", "strikes": "x"}}}, "strikes 'x'"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        read_runs([make_ledger(tmp_path / "ledger.jsonl", line)])


@pytest.mark.parametrize("line", ['{"round": 2, "clients": 7}', '{"clients": []}', '{"round": []}'])
def test_damaged_close_ups_are_named(tmp_path: Path, line: str) -> None:
    ledger = make_ledger(tmp_path / "ledger.jsonl")
    (tmp_path / "ledger.closeups.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"closeups\.jsonl line 1 is not what is known"):
        read_runs([ledger])


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl is no ledger"):
        read_runs([tmp_path / "x.jsonl"])


def test_a_round_that_is_there_twice_is_refused(tmp_path):
    twice = {"round": 2, "nodes": {"11": {"verdict": "accepted"}}}
    path = make_ledger(tmp_path / "ledger.jsonl", twice)
    with pytest.raises(InputError, match="is of round 2, which is in the run already"):
        read_runs([path])
