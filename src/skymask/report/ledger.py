"""Reads the ledger of a Flower federation."""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skymask.errors import InputError
from skymask.records import json_lines
from skymask.report.closeups import closeup
from skymask.report.run import (
    ABSENT,
    EXCLUDED,
    REJECTED,
    CloseUp,
    Run,
    VerdictLog,
    kind_of,
    mean,
    number,
    require_shallow,
)

LEDGER, BESIDE = "ledger.jsonl", ".closeups.jsonl"
"""The usual name of a ledger, and how the file beside it ends that holds close-ups."""
_CODES = {
    "rejected": REJECTED,
    "malformed": REJECTED,
    "excluded": EXCLUDED,
    "silent": ABSENT,
    "error": ABSENT,
}
"""How verdicts are drawn; who was accepted, or could not be judged, had a part in the model."""


class LedgerReader:
    """Reads a ledger: the last run in it, for each run adds a line that says what it is."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def read(self) -> Run:
        """The federation as far as it has got. Raises `InputError` where the file is no ledger."""
        try:
            lines = json_lines(self._path)[0]
            beside = self._path.with_suffix(BESIDE)
            closeups = json_lines(beside)[0]
        except OSError as error:
            raise InputError(f"the ledger {self._path} cannot be read: {error}") from error
        starts = [index for index, line in enumerate(lines) if "ledger" in line]
        if not starts:
            raise InputError(f"{self._path} is no ledger: no line says which run it is of")
        begin = starts[-1]
        found = _Federation(self._path)
        for index, line in enumerate(lines[begin + 1 :], begin + 2):
            found.add(f"{self._path} line {index}", line)
        for index, line in enumerate(closeups, 1):
            found.add_beside(f"{beside} line {index}", line)
        require_shallow(f"{self._path} line {begin + 1}", lines[begin])
        notes: tuple[str, ...] = ()
        if len(starts) > 1:
            notes = (f"The ledger holds {len(starts) - 1} earlier runs, which are not shown.",)
        return found.run(self._name, lines[begin], notes)


class _Federation:
    """Collects the lines of one run in a ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = VerdictLog()
        self._labels: dict[str, str] = {}
        self._standing: dict[str, str] = {}
        self._rejections: dict[str, Counter[str]] = {}
        self._left_out: list[float | None] = []
        self._accuracy: dict[int, float | None] = {}
        self._stages: dict[str, float] = {}
        self._fallbacks = 0
        self._places: dict[int, int] = {}
        self._reasons: list[dict[str, str]] = []
        self._closeups: list[CloseUp] = []

    def add(self, where: str, line: Mapping[str, Any]) -> None:
        index = line.get("round")
        if type(index) is not int:
            raise InputError(f"{where} has round {reprlib.repr(index)} but it must be a number")
        if "nodes" in line:
            if index in self._places:
                raise InputError(f"{where} is of round {index}, which is in the run already")
            self._add_round(where, index, _nodes(where, line))
            seconds: Any = line.get("seconds")
            for part in seconds if isinstance(seconds, dict) else ():
                took = number(where, seconds, part) or 0.0
                self._stages[part] = self._stages.get(part, 0.0) + took

    def add_beside(self, where: str, line: Mapping[str, Any]) -> None:
        index = line.get("round")
        if type(index) is int and isinstance(line.get("server_evaluation"), dict):
            self._accuracy[index] = _accuracy(where, line["server_evaluation"])
            return
        if type(index) is int and index not in self._places:
            return  # the round has not ended yet
        place = self._places[index] if type(index) is int else index
        self._closeups.append(closeup(where, {**line, "round": place}, self._reasons))

    def _add_round(self, where: str, index: int, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        marks = {n: _CODES[v["verdict"]] for n, v in nodes.items() if v["verdict"] in _CODES}
        self._places[index] = len(self._left_out)
        self._log.add(nodes, marks)
        out = [node for node, code in marks.items() if code != ABSENT]
        self._left_out.append(len(out) / len(nodes) if nodes else None)
        self._fallbacks += not any(v["verdict"] == "accepted" for v in nodes.values())
        why = {}
        for node, entry in nodes.items():
            if isinstance(entry.get("name"), str):
                self._labels[node] = f"{entry['name']} ({node})"
            self._standing[node] = _standing(where, entry)
            if entry["verdict"] in ("rejected", "malformed"):
                reason = entry.get("reason")
                why[node] = reason if isinstance(reason, str) else "no reason given"
                self._rejections.setdefault(node, Counter())[kind_of(why[node])] += 1
        self._reasons.append(why)

    def run(self, name: str, about: Mapping[str, Any], notes: Sequence[str]) -> Run:
        rounds = len(self._left_out)
        places = {place: index for index, place in self._places.items()}
        accuracy = [self._accuracy.get(places[place]) for place in range(rounds)]
        measured = [value for value in accuracy if value is not None]
        nothing: list[float | None] = [None] * rounds
        stages = {part: total / rounds for part, total in self._stages.items() if part != "round"}
        verdicts = self._log.verdicts((), ())
        return Run(
            "federation",
            name,
            self._path,
            about,
            True,
            {
                "accuracy": measured[-1] if measured else None,
                "accuracy_last5": mean(measured[-5:]),
                "fpr": None,
                "fnr": None,
                "attack_success": None,
                "seconds": self._stages.get("round"),
            },
            rounds,
            dict.fromkeys(("attack_success", "fpr", "fnr"), nothing)
            | {"accuracy": accuracy, "left_out": self._left_out},
            self._rejections,
            len(verdicts.clients),
            None,
            self._fallbacks,
            stages,
            verdicts,
            self._closeups,
            self._labels,
            self._standing,
            notes,
        )


def _nodes(where: str, line: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What a round's line says of each node."""
    nodes = line["nodes"]
    if not isinstance(nodes, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("verdict"), str)
        for entry in nodes.values()
    ):
        raise InputError(
            f"{where} has nodes {reprlib.repr(nodes)} but it must give a verdict a node"
        )
    return nodes


def _standing(where: str, entry: Mapping[str, Any]) -> str:
    """What is held against a node, in words."""
    strikes, resting = (number(where, entry, field) or 0 for field in ("strikes", "resting"))
    if resting < 0:
        return "excluded until it is pardoned"
    if resting:
        return f"excluded for {resting:g} more rounds"
    return f"asked; {strikes:g} strikes" if strikes else "asked"


def _accuracy(where: str, metrics: Mapping[str, Any]) -> float | None:
    """The server's own accuracy, under that name or one that holds it, if it lies in [0, 1]."""
    names = sorted((n for n in metrics if "acc" in str(n).lower()), key=lambda n: n != "accuracy")
    value = number(where, metrics, names[0]) if names else None
    return value if value is not None and 0 <= value <= 1 else None
