"""What is kept of a cell: a compact record, `cells/IDENTITY.json`, and how it is read.

A record has the experiment, the run's summary, how many verdicts were wrong in each round, accuracy
at each evaluation, and the conditions: versions, a digest of the source, device, seconds, command.
Where a figure needs it there is also what is known of single clients after the last round.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from skymask.errors import InputError
from skymask.errors import told as shown
from skymask.metrics import mean_of
from skymask.records import read_object
from skymask.tables.cell import identity, seedless
from skymask.tables.closeup import Closeup

Rates = list[float | None]
"""One value a round; None where nobody could be judged wrongly."""


def compact(
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    *,
    jobs: int,
    warnings: Sequence[str] = (),
    closeup: Closeup | None = None,
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
    } | ({} if closeup is None else {"closeup": asdict(closeup)})


@dataclass(frozen=True, eq=False)
class Record:
    """A record that was read."""

    told: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What tells it from the records of other cells."""
        return key(identity(self.told["experiment"]), "closeup" in self.told)

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

    @cached_property
    def accuracy(self) -> list[tuple[int, float]]:
        """Rounds, counted from 1, and the testing accuracy after them."""
        rounds, every = self.told["experiment"]["rounds"], self.told["experiment"]["eval_every"]
        evaluated = chain(range(every, rounds, every), [rounds])  # however many it says there are
        values = [float(value) for value in self.told["evaluations"]["accuracy"]]
        return list(zip(evaluated, values, strict=True))

    @cached_property
    def closeup(self) -> Closeup | None:
        """What is known of single clients after the last round, if that was asked for."""
        return Closeup.read(self.told["closeup"]) if "closeup" in self.told else None

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
            # A damaged one shows now, with its name.
            _ = record.seed, record.fpr, record.fnr, record.accuracy, record.closeup
            found[record.key] = record
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a record that can be read: {error}") from error
    return found


def key(identity: str, closeup: bool) -> str:
    """What a cell's record and folders are called; one with a close-up is another cell."""
    return f"{identity}-closeup" if closeup else identity


def repeats(records: Mapping[str, Record]) -> dict[str, list[Record]]:
    """The records of each experiment whatever its seed (`seedless`), by seed."""
    found: dict[str, dict[int, Record]] = {}
    for name in sorted(records):  # of an experiment that was also looked at, the plain record
        record = records[name]
        found.setdefault(seedless(record.told["experiment"]), {}).setdefault(record.seed, record)
    return {same: [seeds[seed] for seed in sorted(seeds)] for same, seeds in found.items()}


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
