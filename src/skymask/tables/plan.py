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


def missing(
    tasks: Iterable[Task], records: Mapping[str, Record], places: Places, device: str
) -> list[Task]:
    """Those without a record, in the order in which they are to be run.

    First what was begun, the nearest to its end first. Then seed after seed and data set after
    data set, and there the longest first, by what `device` took for cells alike, before which come
    those that nothing is known of: a long one that begins last has the others wait for its end.
    """
    left = [task for task in tasks if task.key not in records]
    pace = Pace.of(records.values(), device)
    data_sets = [*dict.fromkeys(str(task.experiment.data) for task in left)]

    def place(task: Task) -> tuple[float, ...]:
        rounds = rounds_left(task, places)
        if places.rounds_done(task.key):
            return (rounds,)
        seconds = pace.seconds(task, rounds)
        behind = data_sets.index(str(task.experiment.data))
        return math.inf, task.experiment.seed, behind, -math.inf if seconds is None else -seconds

    return sorted(left, key=place)


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


@dataclass(frozen=True)
class Pace:
    """Seconds a round of a device, as recorded of cells alike."""

    exact: Mapping[tuple[Any, ...], list[float]]
    """Of cells of a kind (`_kind`) under an attack."""
    alike: Mapping[tuple[Any, ...], list[float]]
    """Of cells of a kind under any attack, but for those that call a defence."""

    @classmethod
    def of(cls, records: Iterable[Record], device: str) -> "Pace":
        """That of `device`, as records name it."""
        exact: dict[tuple[Any, ...], list[float]] = {}
        alike: dict[tuple[Any, ...], list[float]] = {}
        for record in records:
            if record.told["device"] == device and record.summary["rounds"]:
                told = record.told["experiment"]
                each = record.told["seconds"] / record.told["jobs"] / record.summary["rounds"]
                exact.setdefault((*_kind(told), told["attack"]["name"]), []).append(each)
                if not _rehearses(told):
                    alike.setdefault(_kind(told), []).append(each)
        return cls(exact, alike)

    def seconds(self, task: Task, rounds: int) -> float | None:
        """What `rounds` of `task` take, as many at once as recorded; None if nothing is known."""
        told = to_json(task.experiment)
        found = self.exact.get((*_kind(told), told["attack"]["name"]))
        if found is None and not _rehearses(told):
            found = self.alike.get(_kind(told))
        return None if found is None else statistics.fmean(found) * rounds


def estimate(
    tasks: Sequence[Task], records: Iterable[Record], device: str, places: Places
) -> Estimate:
    """How long `tasks` take on `device` (as records name it)."""
    pace = Pace.of(records, device)
    known = [pace.seconds(task, rounds_left(task, places)) for task in tasks]
    seconds = [each for each in known if each is not None]
    return Estimate(sum(seconds), len(known) - len(seconds))


def _kind(told: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides how long a round takes, but for the attack."""
    fields = tuple(told[name] for name in ("data", "model", "clients", "participation"))
    local = told["local"]
    precision = local.get("precision", "float32")  # older records do not say
    return *fields, local["steps"], local["batch"], precision, told["defence"]["name"]


def _rehearses(told: Mapping[str, Any]) -> bool:
    """Whether the attack calls a defence itself, many times a round."""
    return "defence" in told["attack"]["settings"]
