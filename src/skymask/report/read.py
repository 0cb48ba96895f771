"""What the report needs of run folders, read and checked."""

import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skymask.errors import InputError
from skymask.records import RunFolder

_LEVELS = 50
"""Lists and objects inside one another in a manifest; more could exhaust the stack in printing."""


@dataclass(frozen=True)
class Run:
    """What the report needs of one run folder, checked."""

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    finished: bool
    totals: Mapping[str, float | None]
    """Accuracy, accuracy_last5, fpr, fnr, attack_success and seconds of the whole run."""
    rounds: int
    """Rounds that have ended."""
    series: Mapping[str, list[float | None]]
    """Accuracy, fpr and fnr after each round."""
    rejections: Mapping[str, Counter[str]]
    """Client id -> why it was rejected, and in how many rounds."""
    clients: int | None
    """How many there are; None where the folder does not say."""
    malicious: frozenset[str] | None
    """Ids of the malicious clients; None where the folder does not say."""
    fallbacks: int
    """Rounds that left the model as it was."""

    @property
    def experiment(self) -> Mapping[str, Any]:
        """The settings, as `experiment.to_json` describes them."""
        experiment: Mapping[str, Any] = self.manifest["experiment"]
        return experiment


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each named by as much of the end of its path as tells it from the others.

    Raises `InputError` where a folder holds no run or damaged records, and where there is none.
    """
    paths = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not paths:
        raise InputError("folders is empty but must name at least one run folder")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [_run(given, "/".join(path.parts[-depth:])) for path, given in paths.items()]


def _run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    try:
        manifest, summary, records = folder.manifest, folder.summary, folder.rounds()
    except OSError as error:
        raise InputError(f"the records in {path} cannot be read: {error}") from error
    where = str(path / "manifest.json")
    if not _shallow(manifest, _LEVELS):
        raise InputError(f"{where} is nested more than {_LEVELS} levels deep")
    described = manifest["experiment"].get("clients")
    clients = described if type(described) is int else None
    malicious = _malicious(where, manifest, clients)
    series: dict[str, list[float | None]] = {"accuracy": [], "fpr": [], "fnr": []}
    seconds, fallbacks = 0.0, 0
    rejected: Counter[tuple[str, str | None]] = Counter()
    for index, record in enumerate(records):
        where = f"{path / 'rounds.jsonl'} line {index + 1}"
        if record.get("round") != index:
            given = reprlib.repr(record.get("round"))
            raise InputError(f"{where} is of round {given} but must be of round {index}")
        for field, values in series.items():
            values.append(number(where, record, field))
        seconds += number(where, record, "seconds") or 0.0
        fallbacks += record.get("fallback") is not None
        rejected.update(_rejected(where, record).items())
    rejections: dict[str, Counter[str]] = {}
    for (client, reason), times in rejected.items():
        rejections.setdefault(client, Counter())[_kind(reason)] += times
    accuracies = [value for value in series["accuracy"] if value is not None]
    totals = {
        "accuracy": accuracies[-1] if accuracies else None,
        "accuracy_last5": mean(accuracies[-5:]),
        "fpr": mean(series["fpr"]),
        "fnr": mean(series["fnr"]),
        "attack_success": None,
        "seconds": seconds,
    }
    if summary is not None:
        where = str(path / "summary.json")
        totals = {field: number(where, summary, field) for field in totals}
    return Run(
        name,
        path,
        manifest,
        summary is not None,
        totals,
        len(records),
        series,
        rejections,
        clients,
        malicious,
        fallbacks,
    )


def number(where: str, mapping: Mapping[str, Any], field: str) -> float | None:
    """A field that is a number or missing; None too where it is not finite.

    Raises `InputError`, beginning with `where`, for anything else.
    """
    value = mapping.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} has {field} {reprlib.repr(value)} but it must be a number")
    return float(value) if abs(value) < 1e300 else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None if none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _shallow(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_shallow(part, levels - 1) for part in parts)


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


def _rejected(where: str, record: Mapping[str, Any]) -> dict[str, str | None]:
    verdicts = record.get("rejected") or {}
    if not isinstance(verdicts, dict) or set(map(type, verdicts.values())) - {str, type(None)}:
        raise InputError(
            f"{where} has rejected {reprlib.repr(verdicts)} but it must give a reason a client"
        )
    return verdicts


def _kind(reason: str | None) -> str:
    """A reason without the numbers at its end, which differ from round to round."""
    return re.sub(r" \([^()]*\)$", "", reason) if reason else "no reason given"
