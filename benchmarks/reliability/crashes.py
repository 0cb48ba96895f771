"""`kill -9` at random moments of runs, sweeps and reports: what is read afterwards, and resumed.

The process that is killed is a fork of this one, so that a kill costs the time of some rounds and
not of starting Python. It calls what the command line calls. Checkpoints are written every round
instead of every five seconds, so that kills hit them, too.
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from skymask import simulation
from skymask.attacks import Mixed, SignFlip
from skymask.attacks.mimic import Mimic
from skymask.defences import FLDetector, SkyMask
from skymask.errors import InputError
from skymask.experiment import Experiment
from skymask.records import RunFolder
from skymask.report import write_report
from skymask.simulation import simulate
from skymask.types import Attack, Defence

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
AT_ONCE = 6
"""Kills before a run may come to its end."""
ROUNDS = 12


def experiments() -> Iterator[Experiment]:
    """Small runs whose memories differ: of the rule, of the attack, of both, of who takes part."""
    rules: list[tuple[Defence, Attack, float]] = [
        (SkyMask(), SignFlip(), 1.0),
        (FLDetector(), SignFlip(), 1.0),
        (SkyMask(), Mimic(), 0.7),
        (SkyMask(), Mixed((SignFlip(), Mimic())), 1.0),
    ]
    seed = 0
    while True:
        defence, attack, share = rules[seed % len(rules)]
        seed += 1
        yield Experiment(
            data="synthetic",
            clients=10,
            malicious=0.3,
            rounds=ROUNDS,
            eval_every=3,
            seed=seed,
            defence=defence,
            attack=attack,
            participation=share,
        ).resolved()


def measure(seed: int, *, thorough: bool) -> list[dict[str, object]]:
    """Kill runs and reports: 200 times in all if `thorough`, else 10 times."""
    drawn = random.Random(seed)
    runs, reports = (160, 40) if thorough else (8, 2)
    with tempfile.TemporaryDirectory() as name, _frequent_checkpoints():
        torch.set_num_threads(1)  # a fork has no other threads
        return [
            {"what": "runs", **_killed_runs(Path(name), runs, drawn)},
            {"what": "reports being written", **_killed_reports(Path(name), reports, drawn)},
        ]


def _killed_runs(place: Path, kills: int, drawn: random.Random) -> dict[str, object]:
    done = begun = finished = torn = divergent = lost = 0
    made = experiments()
    while done < kills:
        experiment = next(made)
        whole, folder = place / "whole", place / "killed"
        begin = time.monotonic()
        simulate(experiment, "cpu", whole)
        usual = time.monotonic() - begin
        here = 0
        while not _finished(folder):
            stop = here < AT_ONCE and done < kills
            after = drawn.uniform(0, usual) if stop else None
            killed = _forked(lambda folder=folder, e=experiment: _go_on(e, folder), after)
            if not killed and not _finished(folder):
                break  # it ended by itself, and not well
            done += killed
            here += killed
            torn += _torn(folder)
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
        "torn files read": torn,
        "divergent resumes": divergent,
        "lost rounds": lost,
    }


def _killed_reports(place: Path, kills: int, drawn: random.Random) -> dict[str, object]:
    run, page = place / "reported", place / "reported" / "report.html"
    simulate(next(experiments()), "cpu", run)
    begin = time.monotonic()
    write_report([run])
    usual, whole = time.monotonic() - begin, page.read_bytes()
    done = torn = 0
    while done < kills:
        done += _forked(lambda: write_report([run]), drawn.uniform(0, 1.5 * usual))
        torn += page.read_bytes() != whole
    write_report([run])
    return {
        "kills": done,
        "begun": 1,
        "finished afterwards": int(page.read_bytes() == whole),
        "torn files read": torn,
        "divergent resumes": "-",
        "lost rounds": "-",
    }


def _go_on(experiment: Experiment, folder: Path) -> None:
    """What a person does: continue the run if there is one, else start it."""
    begun = (folder / "manifest.json").exists()
    simulate(experiment, "cpu", folder, resume=begun)


def _forked(work: Callable[[], object], seconds: float | None) -> bool:
    """Do `work` in a fork that is killed after `seconds`, if any; whether it was."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _torn(folder: Path) -> int:
    """Whether anybody who looks at a killed run finds a file that makes no sense."""
    if not (folder / "manifest.json").exists():
        return 0
    try:
        write_report([folder], folder.parent / "look.html")
        RunFolder(folder).load(torch.device("cpu"))
    except InputError:
        return 1
    return 0


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return RunFolder(folder).rounds() if folder.exists() else []


def _same(whole: Path, other: Path) -> bool:
    """The same records, but for times, and the same model to the last bit."""
    if not _finished(other):
        return False
    timed = {"seconds", "stages"}
    first, second = (
        [{k: v for k, v in record.items() if k not in timed} for record in _rounds(folder)]
        for folder in (whole, other)
    )
    one, two = (RunFolder(folder).load(torch.device("cpu")) for folder in (whole, other))
    if first != second or one is None or two is None:
        return False
    closeups = [(folder / "closeups.jsonl").read_text() for folder in (whole, other)]
    return one.params.equal(two.params) and closeups[0] == closeups[1]


@contextmanager
def _frequent_checkpoints() -> Iterator[None]:
    names = ("_CHECKPOINT_SECONDS", "_CHECKPOINT_COST")
    before = {name: getattr(simulation, name) for name in names}
    for name in names:
        setattr(simulation, name, 0.0)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(simulation, name, value)


if __name__ == "__main__":
    print(json.dumps(measure(1, thorough=False), indent=2))
