"""What the report knows of a run, whichever kind of record it was read from."""

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skymask.errors import InputError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

ACCEPTED, REJECTED, EXCLUDED, ABSENT = range(4)
"""What became of a client in a round. Excluded: it was not asked. Absent: nothing came from it, or
it was not drawn."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What became of each client in each round."""

    clients: tuple[str, ...]
    """Ids: the malicious ones first where that is known, then by how often they were left out."""
    codes: Bytes
    """(clients, rounds): ACCEPTED, REJECTED, EXCLUDED or ABSENT."""


@dataclass(frozen=True, eq=False)
class CloseUp:
    """What is known of each client in one round, as `metrics.closeup` wrote it."""

    round: int
    clients: tuple[str, ...]
    """Ids of the n clients; where there is a root, row n of what follows is the root's."""
    points: Floats | None
    """(n or n + 1, 2)."""
    apart: tuple[bool, ...]
    """Which points are in the other one of two clusters."""
    gain: float | None
    values: Mapping[str, Floats]
    """Name -> (n or n + 1,), NaN where there is none."""
    ones: Mapping[str, Floats]
    """Layer -> (n or n + 1,), share of ones in the mask."""
    reasons: Mapping[str, str]
    """Id -> why the client was left out."""


@dataclass(frozen=True, eq=False)
class Run:
    """What the report needs of one run, checked."""

    kind: Literal["simulation", "federation"]
    name: str
    folder: Path
    manifest: Mapping[str, Any]
    """Of a simulation its manifest, of a federation the first line of its ledger."""
    finished: bool
    totals: Mapping[str, float | None]
    """Accuracy, accuracy_last5, fpr, fnr, attack_success and seconds of the whole run."""
    rounds: int
    """Rounds that have ended."""
    series: Mapping[str, list[float | None]]
    """Accuracy, attack_success, fpr and fnr after each round, and the share that was left_out."""
    rejections: Mapping[str, Counter[str]]
    """Client id -> why it was rejected, and in how many rounds."""
    clients: int | None
    """How many there are; None where the folder does not say."""
    malicious: frozenset[str] | None
    """Ids of the malicious clients; None where the folder does not say."""
    fallbacks: int
    """Rounds that left the model as it was."""
    stages: Mapping[str, float]
    """Part of a round -> the mean of its seconds."""
    verdicts: Verdicts
    closeups: Sequence[CloseUp] = ()
    labels: Mapping[str, str] | None = None
    """Client id -> what an operator calls it, where that is more than its id."""
    standing: Mapping[str, str] | None = None
    """Client id -> whether it is still asked, after the last round; None where all are."""
    notes: Sequence[str] = ()
    """What else a reader must know, in sentences."""

    @property
    def experiment(self) -> Mapping[str, Any]:
        """The settings, as `experiment.to_json` describes them; empty for a federation."""
        experiment: Mapping[str, Any] = self.manifest.get("experiment", {})
        return experiment

    def label(self, client: str) -> str:
        """What a client is called."""
        return (self.labels or {}).get(client, client)


_MOST_VERDICTS = 20_000_000


class VerdictLog:
    """Collects what became of each client, round by round."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._rounds: list[tuple[list[int] | None, list[tuple[int, int]]]] = []

    def add(self, present: Iterable[str] | None, marks: Mapping[str, int]) -> None:
        """Add a round: who was there (None: everybody), and the codes of those not accepted."""
        there = None if present is None else [self._row(client) for client in present]
        self._rounds.append((there, [(self._row(client), code) for client, code in marks.items()]))

    def verdicts(self, clients: Iterable[str], malicious: Collection[str]) -> Verdicts:
        """The verdicts on those seen and on `clients`, the `malicious` ones first.

        Raises `InputError` where they are more than a page can hold: a short folder can claim any
        number of clients.
        """
        for client in clients:
            self._row(client)
        if len(self._rounds) * len(self._rows) > _MOST_VERDICTS:
            raise InputError(
                f"the records are of {len(self._rounds):,} rounds and {len(self._rows):,} clients "
                f"but a report shows at most {_MOST_VERDICTS:,} verdicts, one a client and round"
            )
        codes = np.full((len(self._rounds), len(self._rows)), ABSENT, np.uint8)
        for row, (present, marks) in zip(codes, self._rounds, strict=True):
            row[slice(None) if present is None else present] = ACCEPTED
            for column, code in marks:
                row[column] = code
        left_out = ((codes == REJECTED) | (codes == EXCLUDED)).sum(0)
        order = sorted(
            self._rows,
            key=lambda c: (c not in malicious, -int(left_out[self._rows[c]]), natural(c)),
        )
        return Verdicts(tuple(order), codes.T[[self._rows[client] for client in order]])

    def _row(self, client: str) -> int:
        return self._rows.setdefault(client, len(self._rows))


def natural(client: str) -> tuple[bool, int, str]:
    """A key that sorts ids that are numbers as numbers, before all others."""
    return not client.isdecimal(), len(client), client


def kind_of(reason: str | None) -> str:
    """A reason without the numbers at its end, which differ from round to round."""
    return re.sub(r" \([^()]*\)$", "", reason) if reason else "no reason given"


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


def require_shallow(where: str, value: Any) -> None:
    """Raise `InputError` for lists and objects too deep in one another to be printed."""
    if not _shallow(value, _LEVELS):
        raise InputError(f"{where} is nested more than {_LEVELS} levels deep")


_LEVELS = 50
"""Lists and objects inside one another; more could exhaust the stack in printing."""


def _shallow(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_shallow(part, levels - 1) for part in parts)
