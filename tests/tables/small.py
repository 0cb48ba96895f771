"""Small experiments and records for the tests of tables; as a script, a sweep to be killed.

`python -m tests.tables.small OUT` runs `TASKS`, two at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

import skymask as sm
from skymask.experiment import to_json
from skymask.tables.cell import Cell
from skymask.tables.record import Record, runs
from skymask.tables.sweep import sweep
from skymask.tables.work import Task


def experiment(**fields: Any) -> sm.Experiment:
    """Twelve clients on digits, a few hundredths of a second a round."""
    usual = {"data": "digits", "clients": 12, "malicious": 0.25, "rounds": 4, "eval_every": 2}
    return sm.Experiment(**{**usual, **fields})


def task(seed: int = 1, label: str = "row", **fields: Any) -> Task:
    return Task.of(Cell(label, "column", experiment(**fields)), seed)


LONG = task(attack=sm.MinSum(), defence=sm.SkyMask(), model="logistic", rounds=30)
TASKS = [LONG, task(attack=sm.FangTrim(), defence=sm.FLDetector(), rounds=15), task(rounds=3)]


class Dies(sm.NoAttack):
    """Ends the process that it is in, as one does that has no memory left."""

    def poison_data(self, data, malicious, generator):
        os._exit(3)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What two runs of a cell have in common."""
    kept = {k: v for k, v in record.items() if k not in ("seconds", "stages", "command", "jobs")}
    summary = {k: v for k, v in record["summary"].items() if k != "seconds"}
    return {**kept, "summary": summary}


def made_up(
    experiment: sm.Experiment,
    accuracy: float,
    wrong: tuple[list[int], list[int]] = ([0], [0]),
    success: float | None = None,
    **told: Any,
) -> Record:
    """A record with this accuracy and these false positives and negatives among 10 and 4."""
    whole = experiment.resolved()
    positives, negatives = wrong
    rounds = len(positives)
    summary = {
        "accuracy_last5": accuracy,
        "attack_success": success,
        "rounds": rounds,
        "fallbacks": 0,
    }
    counts = {
        "honest": [10] * rounds,
        "malicious": [4] * rounds,
        "false_positives": positives,
        "false_negatives": negatives,
    }
    usual = {
        "experiment": to_json(whole),
        "summary": summary,
        "rounds": {name: runs(values) for name, values in counts.items()},
        "evidence": {},
        "versions": {"python": "3.11"},
        "source": "abc",
        "device": "1x GPU",
        "jobs": 2,
        "seconds": 10.0,
        "command": "skymask table x",
        "warnings": [],
    }
    return Record({**usual, **told})


if __name__ == "__main__":
    sweep(TASKS, Path(sys.argv[1]), ["cpu"], 2)
