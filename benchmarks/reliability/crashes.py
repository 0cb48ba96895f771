"""`kill -9` at random moments of runs, sweeps and reports: what is read afterwards, and resumed.

What is killed calls what the command line calls, as a fork of this process (`killing`).
"""

import json
import random
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.killing import (
    AT_ONCE,
    experiments,
    forked,
    frequent_checkpoints,
    torn,
)
from benchmarks.reliability.sweeps import killed_sweeps
from skymask.experiment import Experiment
from skymask.records import TIME_FIELDS, RunFolder
from skymask.report import write_report
from skymask.simulation import simulate

TITLE = "`kill -9` at random moments"
COLUMNS = (
    "what",
    "kills",
    "begun",
    "finished afterwards",
    "torn files read",
    "divergent resumes",
    "lost rounds",
)
ROUNDS = 12


def measure(seed: int, *, thorough: bool) -> list[dict[str, object]]:
    """Kill runs, sweeps and reports: 200 times in all if `thorough`, else 10 times."""
    return [
        {"what": what, **killed(what, many if thorough else few, seed)}
        for what, (_, many, few) in WHAT.items()
    ]


def killed(what: str, kills: int, seed: int) -> dict[str, object]:
    """Kill one of `WHAT` so many times, and count what became of it."""
    with tempfile.TemporaryDirectory() as place, frequent_checkpoints():
        torch.set_num_threads(1)  # a fork has no other threads
        return WHAT[what][0](Path(place), kills, random.Random(f"{seed} {what}"))


def _killed_runs(place: Path, kills: int, drawn: random.Random) -> dict[str, object]:
    done = begun = finished = damaged = divergent = lost = 0
    made = experiments(ROUNDS)
    while done < kills:
        experiment = next(made)
        whole, folder = place / "whole", place / "killed"
        begin = time.monotonic()
        simulate(experiment, "cpu", whole)
        usual = time.monotonic() - begin
        here = 0
        while not _finished(folder):
            stop = here < AT_ONCE and done < kills
            moment = partial(time.sleep, drawn.uniform(0, usual)) if stop else None
            killed = forked(partial(_go_on, experiment, folder), moment)
            if not killed and not _finished(folder):
                break  # it ended by itself, and not well
            done += killed
            here += killed
            damaged += torn(folder)
        begun += 1
        finished += _finished(folder)
        divergent += not _same(whole, folder)
        lost += ROUNDS - len(_rounds(folder))
        shutil.rmtree(whole)
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "kills": done,
        "begun": begun,
        "finished afterwards": finished,
        "torn files read": damaged,
        "divergent resumes": divergent,
        "lost rounds": lost,
    }


def _killed_reports(place: Path, kills: int, drawn: random.Random) -> dict[str, object]:
    run, page = place / "reported", place / "reported" / "report.html"
    simulate(next(experiments(ROUNDS)), "cpu", run)
    begin = time.monotonic()
    write_report([run])
    usual, whole = time.monotonic() - begin, page.read_bytes()
    done = damaged = 0
    while done < kills:
        moment = partial(time.sleep, drawn.uniform(0, 1.5 * usual))
        done += forked(partial(write_report, [run]), moment)
        damaged += page.read_bytes() != whole
    write_report([run])
    return {
        "kills": done,
        "begun": 1,
        "finished afterwards": int(page.read_bytes() == whole),
        "torn files read": damaged,
        "divergent resumes": "-",
        "lost rounds": "-",
    }


def _go_on(experiment: Experiment, folder: Path) -> None:
    """What a person does: continue the run if there is one, else start it."""
    begun = (folder / "manifest.json").exists()
    simulate(experiment, "cpu", folder, resume=begun)


def _finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return RunFolder(folder).rounds() if folder.exists() else []


def _same(whole: Path, other: Path) -> bool:
    """The same records, but for times, and the same model to the last bit."""
    if not _finished(other):
        return False
    first, second = (
        [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in _rounds(folder)]
        for folder in (whole, other)
    )
    one, two = (RunFolder(folder).load(torch.device("cpu")) for folder in (whole, other))
    if first != second or one is None or two is None:
        return False
    closeups = [(folder / "closeups.jsonl").read_text() for folder in (whole, other)]
    return one.params.equal(two.params) and closeups[0] == closeups[1]


WHAT = {
    "runs": (_killed_runs, 120, 6),
    "sweeps": (killed_sweeps, 50, 2),
    "reports being written": (_killed_reports, 30, 2),
}
"""Who kills them, and how often: thoroughly, and otherwise."""

if __name__ == "__main__":
    print(json.dumps(measure(1, thorough=False), indent=2))
