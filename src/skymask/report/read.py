"""Reads runs: the folders of simulations, and the ledgers of federations (`ledger`)."""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from skymask.errors import InputError
from skymask.records import CLOSEUPS, ROUNDS, RunFolder, json_lines
from skymask.report.closeups import closeup
from skymask.report.ledger import LEDGER, LedgerReader
from skymask.report.run import (
    REJECTED,
    CloseUp,
    Run,
    VerdictLog,
    kind_of,
    mean,
    number,
    require_shallow,
)


class Reader(Protocol):
    """Reads one run, as far as it has got; called again it reads what has come since."""

    def read(self) -> Run:
        """The run. Raises `InputError` where the records are damaged."""
        ...


def readers(paths: Sequence[Path]) -> list[Reader]:
    """What reads the runs, each named by as much of its path's end as tells it from the others.

    A path is a run's folder, a ledger, or a folder that holds a ledger. Raises `InputError` where
    there is none.
    """
    found = {Path(path).resolve(): Path(path) for path in paths}
    if not found:
        raise InputError("folders is empty but must name at least one run folder or ledger")
    depth = 1
    while len({path.parts[-depth:] for path in found}) < len(found):
        depth += 1
    return [_reader(given, "/".join(path.parts[-depth:])) for path, given in found.items()]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths` (see `readers`). Raises `InputError` where one is damaged."""
    return [reader.read() for reader in readers(paths)]


def _reader(path: Path, name: str) -> Reader:
    if path.is_file():
        return LedgerReader(path, name)
    if (path / LEDGER).exists() and not (path / "manifest.json").exists():
        return LedgerReader(path / LEDGER, name)
    return RunReader(path, name)


class RunReader:
    """Reads the folder of a simulation."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._forget()

    def _forget(self) -> None:
        self._place = (0, 0)  # bytes and lines of the rounds that were read
        self._closeup_place = (0, 0)
        self._file = 0
        self._series: dict[str, list[float | None]] = {
            name: [] for name in ("accuracy", "attack_success", "fpr", "fnr", "left_out")
        }
        self._seconds, self._fallbacks = 0.0, 0
        self._stages: dict[str, float] = {}
        self._rejected: Counter[tuple[str, str | None]] = Counter()
        self._log = VerdictLog()
        self._reasons: list[dict[str, str]] = []
        self._closeups: list[CloseUp] = []

    def read(self) -> Run:
        """The run as far as it has got. A run that was resumed meanwhile is read anew."""
        folder = RunFolder(self._path)
        try:
            manifest = folder.manifest
            self._follow()
            summary = folder.summary
        except OSError as error:
            raise InputError(f"the records in {self._path} cannot be read: {error}") from error
        where = str(self._path / "manifest.json")
        require_shallow(where, manifest)
        described = manifest["experiment"].get("clients")
        clients = described if type(described) is int else None
        malicious = _malicious(where, manifest, clients)
        rejections: dict[str, Counter[str]] = {}
        for (client, reason), times in self._rejected.items():
            rejections.setdefault(client, Counter())[kind_of(reason)] += times
        rounds = len(self._series["fpr"])
        known = map(str, range(min(clients or 0, _MOST_CLIENTS)))
        return Run(
            "simulation",
            self._name,
            self._path,
            manifest,
            summary is not None,
            self._totals(summary),
            rounds,
            {name: list(values) for name, values in self._series.items()},
            rejections,
            clients,
            malicious,
            self._fallbacks,
            {name: seconds / rounds for name, seconds in self._stages.items()},
            self._log.verdicts(known, malicious or ()),
            [closeup for closeup in self._closeups if closeup.round < rounds],
        )

    def _follow(self) -> None:
        """Read what has come since."""
        path = self._path / ROUNDS
        if path.exists():
            found = path.stat()
            if found.st_ino != self._file or found.st_size < self._place[0]:
                self._forget()
                self._file = found.st_ino
        records, end = json_lines(path, *self._place)
        for index, record in enumerate(records, self._place[1]):
            self._add(f"{path} line {index + 1}", index, record)
        self._place = end, self._place[1] + len(records)
        path = self._path / CLOSEUPS
        closeups, end = json_lines(path, *self._closeup_place)
        for index, line in enumerate(closeups, self._closeup_place[1]):
            where = f"{path} line {index + 1}"
            self._closeups.append(closeup(where, line, self._reasons))
        self._closeup_place = end, self._closeup_place[1] + len(closeups)

    def _add(self, where: str, index: int, record: Mapping[str, Any]) -> None:
        if record.get("round") != index:
            given = reprlib.repr(record.get("round"))
            raise InputError(f"{where} is of round {given} but must be of round {index}")
        rejected = _rejected(where, record)
        present = _present(where, record)
        there = number(where, record, "clients") if present is None else len(present)
        for field, values in self._series.items():
            if field != "left_out":
                values.append(number(where, record, field))
        self._series["left_out"].append(len(rejected) / there if there else None)
        self._seconds += number(where, record, "seconds") or 0.0
        stages = record.get("stages")
        if isinstance(stages, dict):
            for name in stages:
                seconds = number(where, stages, name) or 0.0
                self._stages[name] = self._stages.get(name, 0.0) + seconds
        self._fallbacks += record.get("fallback") is not None
        self._rejected.update(rejected.items())
        self._log.add(present, dict.fromkeys(rejected, REJECTED))
        self._reasons.append({c: reason or "no reason given" for c, reason in rejected.items()})

    def _totals(self, summary: Mapping[str, Any] | None) -> dict[str, float | None]:
        accuracies = [value for value in self._series["accuracy"] if value is not None]
        success = [value for value in self._series["attack_success"] if value is not None]
        totals = {
            "accuracy": accuracies[-1] if accuracies else None,
            "accuracy_last5": mean(accuracies[-5:]),
            "fpr": mean(self._series["fpr"]),
            "fnr": mean(self._series["fnr"]),
            "attack_success": success[-1] if success else None,
            "seconds": self._seconds,
        }
        if summary is not None:
            where = str(self._path / "summary.json")
            totals = {field: number(where, summary, field) for field in totals}
        return totals


_MOST_CLIENTS = 10_000
"""Clients of which a page tells although no record names them: a manifest can claim any number."""


def _malicious(
    where: str, manifest: Mapping[str, Any], clients: int | None
) -> frozenset[str] | None:
    given = manifest.get("malicious_clients")
    if given is None:
        return None
    if not isinstance(given, list) or not all(
        type(c) is int and c >= 0 and (clients is None or c < clients) for c in given
    ):
        of = "" if clients is None else f" of its {clients}"
        raise InputError(
            f"{where} has malicious_clients {reprlib.repr(given)} "
            f"but it must list the ids{of} clients, counted from 0"
        )
    return frozenset(map(str, given))


def _present(where: str, record: Mapping[str, Any]) -> list[str] | None:
    """Who took part in a round; None: everybody."""
    given = record.get("took_part")
    if given is None:
        return None
    if not isinstance(given, list) or any(type(client) is not int for client in given):
        raise InputError(f"{where} has took_part {reprlib.repr(given)} but it must list ids")
    return [str(client) for client in given]


def _rejected(where: str, record: Mapping[str, Any]) -> dict[str, str | None]:
    verdicts = record.get("rejected") or {}
    if not isinstance(verdicts, dict) or set(map(type, verdicts.values())) - {str, type(None)}:
        raise InputError(
            f"{where} has rejected {reprlib.repr(verdicts)} but it must give a reason a client"
        )
    return verdicts
