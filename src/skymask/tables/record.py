"""What is kept of a cell: a compact record, `cells/IDENTITY.json`, and how it is read.

A record has the experiment, the run's summary, how many verdicts were wrong in each round, accuracy
at each evaluation, and the conditions: versions, a digest of the source, device, seconds, command.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from skymask.errors import InputError
from skymask.errors import told as shown
from skymask.metrics import mean_of
from skymask.records import read_object
from skymask.tables.cell import identity

Rates = list[float | None]
"""One value a round; None where nobody could be judged wrongly."""


def compact(
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    *,
    jobs: int,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of a run that has ended; `jobs` cells shared its device."""
    evaluated = [r for r in rounds if "accuracy" in r]
    names = dict.fromkeys(name for r in rounds for name in r["evidence"])
    honest = [r["clients"] - r["malicious"] for r in rounds]
    wrong = {"false_positives": honest, "false_negatives": [r["malicious"] for r in rounds]}
    counted = {
        name: [round((r[rate] or 0) * many) for r, many in zip(rounds, of, strict=True)]
        for (name, of), rate in zip(wrong.items(), ("fpr", "fnr"), strict=True)
    }
    stages = dict.fromkeys(name for r in rounds for name in r["stages"])
    return {
        "cell": identity(manifest["experiment"]),
        "experiment": dict(manifest["experiment"]),
        "summary": dict(summary),
        "rounds": {
            "honest": runs(honest),
            "malicious": runs(wrong["false_negatives"]),
            **{name: runs(values) for name, values in counted.items()},
        },
        "evaluations": {
            name: [r[name] for r in evaluated]
            for name in ("accuracy", "attack_success")
            if any(name in r for r in evaluated)
        },
        "evidence": {name: mean_of([r["evidence"] for r in rounds], name) for name in names},
        "stages": {name: sum(r["stages"].get(name, 0.0) for r in rounds) for name in stages},
        "versions": manifest["versions"],
        "source": source(),
        "device": manifest["device"],
        "jobs": jobs,
        "seconds": summary["seconds"],
        "command": manifest["command"],
        "warnings": list(warnings),
    }


@dataclass(frozen=True, eq=False)
class Record:
    """A record that was read."""

    told: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.told["experiment"]["seed"])

    @cached_property
    def fpr(self) -> Rates:
        """Share of the honest clients that were rejected, in each round."""
        return self._rates("false_positives", "honest")

    @cached_property
    def fnr(self) -> Rates:
        """Share of the malicious clients that were accepted, in each round."""
        return self._rates("false_negatives", "malicious")

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run's summary (`simulation.Result`)."""
        found: Mapping[str, Any] = self.told["summary"]
        return found

    def _rates(self, wrong: str, of: str) -> Rates:
        counts = (unrolled(self.told["rounds"][name]) for name in (wrong, of))
        return [some / many if many else None for some, many in zip(*counts, strict=True)]


def read_records(folder: Path) -> dict[str, Record]:
    """Identity -> record, of all that `folder/cells` holds.

    Raises `InputError` for a file that is no record, or one that this version cannot read.
    """
    found = {}
    for path in sorted((folder / "cells").glob("*.json")):
        told = read_object(path)
        try:
            record = Record(told)
            if not isinstance(told["summary"], dict):
                raise ValueError("its summary is no object")
            _ = record.seed, record.fpr, record.fnr  # a damaged one shows now, with its name
            found[identity(told["experiment"])] = record
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a record that can be read: {error}") from error
    return found


def runs(values: Iterable[int]) -> list[Any]:
    """Counts as JSON holds them: three or more equal ones in a row are a pair [value, times]."""
    packed: list[Any] = []
    for value, group in groupby(values):
        times = len(list(group))
        packed += [[value, times]] if times > 2 else [value] * times
    return packed


_MOST_ROUNDS = 10_000_000
"""Rounds with the same count in a row that a record may claim."""


def unrolled(packed: Iterable[Any]) -> list[int]:
    """What `runs` was given."""
    values: list[int] = []
    for item in packed:
        value, times = item if isinstance(item, list) else (item, 1)
        if type(value) is not int or type(times) is not int or not 0 < times <= _MOST_ROUNDS:
            raise ValueError(f"{shown(item)} is no count of a round, nor a pair of it and a number")
        values += [value] * times
    return values


@cache
def source() -> str:
    """Twelve digits of the SHA-256 of all of the package's modules, by name.

    Two records with the same ones were made by the same code, whatever the version says.
    """
    digest = hashlib.sha256()
    home = Path(__file__).parent.parent
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
