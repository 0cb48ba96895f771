"""What tables and figures are made of: cells, each of them an experiment."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from skymask.errors import InputError
from skymask.experiment import Experiment, from_json, to_json
from skymask.tables.published import Published


@dataclass(frozen=True)
class Target:
    """What a cell should reach; None asks for nothing. Shares, but for `inverted` and `caught`."""

    within: float | None = None
    """Accuracy at most this much below the yardstick's."""
    fpr: float | None = None
    """Mean FPR over all rounds, at most."""
    fnr: float | None = None
    """Mean FNR from the cell's round `since` on, at most."""
    worst: float | None = None
    """The largest FPR of a single round, at most."""
    inverted: int | None = None
    """Rounds among the first twenty in which both rates are one half or more, at most."""
    caught: int | None = None
    """Rounds until attackers that start late are caught, at most."""
    success: float | None = None
    """A backdoor's success, at most."""
    above: str | None = None
    """Accuracy not below that of this column of the row."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a table, to be repeated with several seeds."""

    row: str
    column: str
    experiment: Experiment
    """Its seed does not count: a sweep sets it."""
    yardstick: Experiment | None = None
    """What its accuracy is compared with: the experiment of another cell of the table."""
    published: Published = field(default_factory=dict)
    since: int | None = 20
    """The round from which `fnr_since` counts; None where attackers are honest most of the time."""
    starts: int | None = None
    """The attack's first round, for attackers that start late."""
    target: Target | None = None
    closeup: bool = False
    """Its record also holds what is known of single clients after the last round."""

    def seeded(self, seed: int) -> Experiment:
        """The experiment with this seed."""
        return dataclasses.replace(self.experiment, seed=seed)


@dataclass(frozen=True)
class Sheet:
    """Cells under a name: what a table and a figure have in common."""

    kind: ClassVar[str]
    """What it is called on the command line and in the names of its files."""
    name: str
    title: str
    cells: tuple[Cell, ...]
    rounds: int | None = field(default=None, kw_only=True)
    """What its rounds were cut to, if they were (`cut`)."""

    @property
    def rows(self) -> list[str]:
        """The rows' labels, in order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """The columns' labels, in order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def stem(self) -> str:
        """The name of its files; one with fewer rounds has others."""
        return f"{self.kind}-{self.name}" + (f"-{self.rounds}-rounds" if self.rounds else "")

    def cut(self, rounds: int | None) -> Self:
        """The same with at most `rounds` rounds a cell: other experiments, other records."""
        if rounds is None:
            return self

        def shorter(experiment: Experiment) -> Experiment:
            whole = experiment.resolved()
            return dataclasses.replace(whole, rounds=min(whole.rounds or rounds, rounds))

        cells = tuple(
            dataclasses.replace(
                cell,
                experiment=shorter(cell.experiment),
                yardstick=None if cell.yardstick is None else shorter(cell.yardstick),
            )
            for cell in self.cells
        )
        return dataclasses.replace(self, cells=cells, rounds=rounds)

    def select(self, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> list[Cell]:
        """The cells whose labels match one of the patterns (`*`, `?`); without any all of them.

        Case does not count. Raises `InputError` for a pattern that nothing matches.
        """
        wanted = (
            _matching("--rows", rows, self.rows),
            _matching("--columns", columns, self.columns),
        )
        return [cell for cell in self.cells if cell.row in wanted[0] and cell.column in wanted[1]]


@dataclass(frozen=True)
class Entry:
    """One column of a rendered table: a measure (`measures.MEASURES`) of one column's cells."""

    heading: str
    column: str
    measure: str


@dataclass(frozen=True)
class View:
    """One rendered table: which columns, and which rows (by a pattern)."""

    title: str
    entries: tuple[Entry, ...]
    rows: str = "*"


@dataclass(frozen=True)
class Table(Sheet):
    """A table by name: its cells, and how they are shown."""

    kind: ClassVar[str] = "table"
    views: tuple[View, ...]


def _matching(option: str, patterns: Sequence[str], labels: Iterable[str]) -> set[str]:
    labels = list(labels)
    found: set[str] = set() if patterns else set(labels)
    for pattern in patterns:
        hits = {label for label in labels if fnmatchcase(label.lower(), pattern.lower())}
        if not hits:
            some = ", ".join(map(repr, labels[:4])) + (", ..." if len(labels) > 4 else "")
            raise InputError(f"{option} {pattern!r} matches none of {len(labels)}: {some}")
        found |= hits
    return found


def identity(experiment: Experiment | Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that two experiments share if they are the same, seed included.

    Takes an experiment, or what `to_json` made of one. One that was written before a field or a
    setting existed is the same as one that has its default. Raises `InputError` for an experiment
    with something of the user's own in it, which no text identifies.
    """
    return _digest(_whole(experiment))


def seedless(experiment: Experiment | Mapping[str, Any]) -> str:
    """As `identity`, but shared by experiments that differ in their seeds alone."""
    return _digest({**_whole(experiment), "seed": None})


def _whole(experiment: Experiment | Mapping[str, Any]) -> dict[str, Any]:
    described = to_json(experiment.resolved()) if isinstance(experiment, Experiment) else experiment
    return to_json(from_json(dict(described)).resolved())


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
