"""The ledger: what is kept, what is dropped, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from skymask.errors import InputError
from skymask.flower.ledger import Ledger
from skymask.flower.policy import Standing
from skymask.types import Decision


def line(index: int, **strikes: int) -> dict:
    """A round's line: node `n7` with so many strikes."""
    nodes = {
        name[1:]: {"verdict": "rejected", "strikes": k, "resting": k // 3}
        for name, k in strikes.items()
    }
    return {"round": index, "nodes": nodes}


def rounds(path: Path) -> list:
    return [json.loads(text).get("round", "run") for text in path.read_text().splitlines()]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "deep" / "ledger.jsonl")


def test_every_run_says_what_it_is(ledger):
    ledger.start({"defence": "A"})
    ledger.append(line(1, n7=1))
    ledger.start({"defence": "B"})
    assert rounds(ledger.path) == ["run", 1, "run"]
    assert json.loads(ledger.path.read_text().splitlines()[0]) == {"ledger": 1, "defence": "A"}


def test_standings_are_those_of_the_last_round_of_each_node(ledger):
    ledger.start({})
    ledger.append(line(1, n7=1, n8=2))
    ledger.append(line(2, n7=3))
    ledger.append({"round": 2, "evaluation": {"7": {"kind": "silent"}}})
    assert ledger.standings() == {7: Standing(3, 1), 8: Standing(2, 0)}


def test_a_resumed_run_drops_the_rounds_that_are_run_again(ledger):
    ledger.start({})
    ledger.append(line(1))
    ledger.append(line(2))
    ledger.start({})
    for index in (1, 2, 3):
        ledger.append(line(index))
    ledger.start({}, 2)
    assert rounds(ledger.path) == ["run", 1, 2, "run", 1, 2]


def test_close_ups_lie_beside_it_and_are_those_of_the_last_run(ledger):
    kept = Decision(torch.zeros(2), torch.tensor([True]), torch.tensor([0.5]))
    ledger.start({"defence": "A"})
    for index in (1, 2, 3):
        ledger.append_closeup(index, [2**63 + 1], kept)
    assert len(ledger.path.read_text().splitlines()) == 1
    ledger.start({"defence": "A"}, kept=2)
    lines = [json.loads(text) for text in ledger.closeups.read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[0]["clients"] == [str(2**63 + 1)]
    assert lines[0]["values"] == {"score": [0.5]}
    ledger.start({"defence": "B"})
    assert ledger.closeups.read_text() == ""


def test_a_torn_last_line_is_dropped(ledger):
    ledger.start({})
    ledger.append(line(1, n7=1))
    with ledger.path.open("a") as file:
        file.write('{"round": 2, "no')
    assert ledger.standings() == {7: Standing(1, 0)}
    ledger.start({}, 1)
    ledger.append(line(2))
    assert rounds(ledger.path) == ["run", 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "no json\n",
        "[1, 2]\n",
        '{"neither": 1}\n',
        '{"round": 1, "nodes": {"x": {}}}\n',
        '{"round": 1, "nodes": [1]}\n',
    ],
)
def test_another_file_is_refused_and_left_alone(ledger, text):
    ledger.path.parent.mkdir()
    ledger.path.write_text(text)
    with pytest.raises(InputError, match=r"ledger\.jsonl"):
        ledger.standings()
    assert ledger.path.read_text() == text


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Ledger(tmp_path / "file" / "ledger.jsonl").start({})


@pytest.mark.parametrize("value", ['"1"', "null", "[1]", "Infinity"])
def test_a_resumed_ledger_with_a_round_that_is_no_number_is_refused(ledger, value):
    ledger.start({})
    with ledger.path.open("a") as file:
        file.write('{"nodes": {}, "round": ' + value + "}\n")
    with pytest.raises(InputError, match="line 2 has round"):
        ledger.start({}, 1)


def test_endless_strikes_are_no_line_of_a_ledger(ledger):
    ledger.start({})
    with ledger.path.open("a") as file:
        file.write('{"round": 1, "nodes": {"7": {"strikes": Infinity, "resting": 0}}}\n')
    with pytest.raises(InputError, match="line 2 is no line of a ledger"):
        ledger.standings()
