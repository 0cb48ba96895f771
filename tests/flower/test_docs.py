"""What docs/flower.md shows is run as it stands there."""

import json
import re
from pathlib import Path

import pytest
from flwr.app import ArrayRecord

import skymask.flower
from skymask.flower.replies import Kind
from tests.flower.federation import NODES, Federation, client_app, model, root

DOCS = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def test_the_strategy_runs_and_writes_the_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    inputs, labels = root()
    names = {
        "Net": model,
        "inputs": inputs,
        "labels": labels,
        "grid": Federation(client_app()),
        "initial_arrays": ArrayRecord(model().state_dict()),
    }
    exec(code.replace("num_rounds=50", "num_rounds=2"), names)
    assert names["result"].train_metrics_clientapp[2]["skymask-accepted"] == NODES
    line = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    (shown,) = map(json.loads, blocks("json"))
    assert shown.keys() == line.keys()
    assert shown["nodes"]["7312"].keys() == next(iter(line["nodes"].values())).keys()


def test_every_verdict_is_explained():
    told = re.findall(r"^\| `(\w+)` \|", DOCS, re.MULTILINE)
    assert sorted(told) == sorted(Kind.__args__)


@pytest.mark.parametrize("name", ["Policy", "RobustStrategy", "TooFewNodes", "drills"])
def test_names_exist(name):
    assert name in DOCS
    assert hasattr(skymask.flower, name) or __import__(f"skymask.flower.{name}")
