"""`kill -9` of sweeps at random moments, for `crashes`: what is read afterwards, and resumed.

With the sweep die the processes that it started.
"""

import random
import shutil
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reliability.killing import AT_ONCE, experiments, forked, torn
from skymask.errors import InputError
from skymask.records import TIME_FIELDS
from skymask.tables.cell import identity
from skymask.tables.plan import missing, rounds_left
from skymask.tables.record import Record, read_records
from skymask.tables.sweep import Event, sweep
from skymask.tables.work import Places, Task

ROUNDS = 40


def killed_sweeps(place: Path, kills: int, drawn: random.Random) -> dict[str, object]:
    """Sweeps of four cells, two at once. The record of a finished cell must stay as it is."""
    done = begun = finished = damaged = divergent = lost = 0
    made = experiments(ROUNDS)
    while done < kills:
        tasks = [Task(f"seed {e.seed}", e, identity(e)) for e in islice(made, 4)]
        whole, out = place / "whole", place / "swept"
        begin = time.monotonic()
        first = _swept(tasks, whole)
        usual = _Pace(first, time.monotonic() - begin - first)
        kept: dict[Path, bytes] = {}
        here = 0
        while len(kept) < len(tasks):
            moment = None
            if here < AT_ONCE and done < kills:
                moment = partial(_until_some_moment, tasks, Places(out), usual, drawn)
            killed = forked(partial(_swept, tasks, out), moment)
            done += killed
            here += killed
            damaged += sum(torn(folder) for folder in out.glob("runs/*/")) + _torn_record(out)
            gone = [path for path in kept if not path.exists() or path.read_bytes() != kept[path]]
            lost += ROUNDS * len(gone)
            kept = {path: path.read_bytes() for path in out.glob("cells/*.json")}
            if not killed and len(kept) < len(tasks):
                break  # it ended by itself, and not well
        records, theirs = read_records(out), read_records(whole)
        begun += len(tasks)
        finished += len(records)
        for key, record in records.items():
            divergent += _without_times(record) != _without_times(theirs[key])
            lost += ROUNDS - record.summary["rounds"]
        shutil.rmtree(whole)
        shutil.rmtree(out)
    return {
        "kills": done,
        "begun": begun,
        "finished afterwards": finished,
        "torn files read": damaged,
        "divergent resumes": divergent,
        "lost rounds": lost,
    }


def _swept(tasks: list[Task], out: Path) -> float:
    """Do what is left of a sweep; the seconds until its first round."""
    begin = time.monotonic()
    rounds: list[float] = []

    def watch(event: Event) -> None:
        rounds.append(time.monotonic() - begin)

    left = missing(tasks, read_records(out), Places(out), "cpu")
    sweep(left, out, ["cpu"], 2, watch=watch)
    return rounds[0]


class _Pace(NamedTuple):
    """How long an undisturbed sweep takes, in seconds."""

    start: float
    """Until its first round."""
    work: float
    """From there to its end."""


def _until_some_moment(
    tasks: list[Task], places: Places, usual: _Pace, drawn: random.Random
) -> None:
    """Wait while processes start, one time in five; else into the rounds that are left."""
    if drawn.random() < 0.2:
        time.sleep(drawn.uniform(0, usual.start))
        return
    left, begin = _left(tasks, places), time.monotonic()
    while _left(tasks, places) == left and time.monotonic() < begin + 5 * usual.start:
        time.sleep(0.01)
    time.sleep(drawn.uniform(0, usual.work * left / (len(tasks) * ROUNDS)))


def _left(tasks: list[Task], places: Places) -> int:
    """Rounds and records that a sweep has still to write."""
    return sum(
        rounds_left(task, places) + 1 for task in tasks if not places.record(task.key).exists()
    )


def _torn_record(out: Path) -> bool:
    """Whether anybody who looks at a killed sweep finds a record that makes no sense."""
    try:
        read_records(out)
    except InputError:
        return True
    return False


def _without_times(record: Record) -> dict[str, Any]:
    """What two runs of a cell have in common."""
    told = {k: v for k, v in record.told.items() if k not in TIME_FIELDS}
    return {**told, "summary": {k: v for k, v in record.summary.items() if k not in TIME_FIELDS}}
