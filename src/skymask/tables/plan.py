"""What is missing of a table, in which order it is run, and how long it should take."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skymask.experiment import to_json
from skymask.tables.cell import Cell
from skymask.tables.record import Record
from skymask.tables.work import Places, Task


def tasks_of(cells: Iterable[Cell], seeds: Iterable[int]) -> list[Task]:
    """The tasks of cells, seed after seed; one that several cells share is there once."""
    cells = list(cells)
    wanted = (Task.of(cell, seed) for seed in seeds for cell in cells)
    found: dict[str, Task] = {}
    for task in wanted:
        found.setdefault(task.key, task)
    return list(found.values())


def missing(tasks: Iterable[Task], records: Mapping[str, Record], places: Places) -> list[Task]:
    """Those without a record: first what was begun, the nearest to its end first."""
    left = [task for task in tasks if task.key not in records]
    begun = {task.key: rounds_left(task, places) for task in left if places.rounds_done(task.key)}
    return sorted(left, key=lambda task: begun.get(task.key, math.inf))


def rounds_left(task: Task, places: Places) -> int:
    """The rounds that are still to be run."""
    return max(0, task.rounds - places.rounds_done(task.key))


@dataclass(frozen=True)
class Estimate:
    """Device time, by the records of cells alike."""

    seconds: float
    """What the cells that are known take on one device, at as many at once as recorded."""
    unknown: int
    """Cells that nothing alike was recorded of."""


def estimate(
    tasks: Sequence[Task], records: Iterable[Record], device: str, places: Places
) -> Estimate:
    """How long `tasks` take on `device` (as records name it)."""
    exact: dict[tuple[Any, ...], list[float]] = {}
    alike: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        if record.told["device"] == device and record.summary["rounds"]:
            told = record.told["experiment"]
            each = record.told["seconds"] / record.told["jobs"] / record.summary["rounds"]
            exact.setdefault((*_kind(told), told["attack"]["name"]), []).append(each)
            if not _rehearses(told):
                alike.setdefault(_kind(told), []).append(each)
    seconds, unknown = 0.0, 0
    for task in tasks:
        told = to_json(task.experiment)
        found = exact.get((*_kind(told), told["attack"]["name"]))
        if found is None and not _rehearses(told):
            found = alike.get(_kind(told))
        if found is None:
            unknown += 1
        else:
            seconds += statistics.fmean(found) * rounds_left(task, places)
    return Estimate(seconds, unknown)


def _kind(told: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides how long a round takes, but for the attack."""
    fields = tuple(told[name] for name in ("data", "model", "clients", "participation"))
    return *fields, told["local"]["steps"], told["local"]["batch"], told["defence"]["name"]


def _rehearses(told: Mapping[str, Any]) -> bool:
    """Whether the attack calls a defence itself, many times a round."""
    return "defence" in told["attack"]["settings"]
