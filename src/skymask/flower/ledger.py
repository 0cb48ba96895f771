"""The ledger: one line a round, who was left out and why. JSON lines, appended as rounds end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from skymask.errors import InputError
from skymask.flower.policy import Standing
from skymask.metrics import closeup
from skymask.records import json_lines, json_text, numbered, replace_file, round_of, writing
from skymask.types import Decision

VERSION = 1


@dataclass(frozen=True)
class Ledger:
    """The file of one federation. A run adds a line that says what it is, then one line a round.

    Beside it, in a file of its own so that the ledger stays a line a round, lies what the report
    draws of the last run besides: what the defence knew of every node in some of the rounds, and
    the server's own evaluations. A server that is killed may leave a torn last line:
    it is dropped at the next start.
    """

    path: Path

    def start(self, settings: Mapping[str, Any], kept: int | None = None) -> None:
        """Open the ledger for a new run, or for one that goes on after the `kept` rounds.

        Lines of rounds that are run again, because the server was killed before it had kept their
        outcome, are dropped. Raises `InputError` where the file cannot be written or is no ledger.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = list(self._lines())
            begin = max((i for i, line in enumerate(lines) if "ledger" in line), default=None)
            if kept is None or begin is None:
                lines.append({"ledger": VERSION, **settings})
            else:
                later = (
                    line
                    for number, line in enumerate(lines[begin + 1 :], begin + 2)
                    if round_of(self.path, number, line) <= kept
                )
                lines = [*lines[: begin + 1], *later]
            replace_file(self.path, _text(lines))
            if self.closeups.exists():
                goes_on = kept is not None and begin is not None
                known = numbered(self.closeups) if goes_on else []
                stays = [line for index, line in known if index <= (kept or 0)]
                replace_file(self.closeups, _text(stays))

    @property
    def closeups(self) -> Path:
        """The file beside it: `ledger.closeups.jsonl` for `ledger.jsonl`."""
        return self.path.with_suffix(".closeups.jsonl")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line, flushed to the operating system before this returns."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_text(line) + "\n")

    def append_round(
        self,
        index: int,
        seconds: Mapping[str, float],
        nodes: Mapping[int, Mapping[str, Any]],
        warnings: Sequence[str],
    ) -> None:
        """Add the line of a round: what became of each node, the times of the parts, warnings."""
        self.append(
            {
                "round": index,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "seconds": {name: round(value, 4) for name, value in seconds.items()},
                "nodes": {str(node): entry for node, entry in nodes.items()},
                "warnings": warnings,
            }
        )

    def append_closeup(self, index: int, nodes: Sequence[int], decision: Decision) -> None:
        """Add what the defence knew of each of the `nodes` in a round (`metrics.closeup`)."""
        known = closeup(decision, torch.arange(len(nodes)))
        self._append_beside({"round": index, **known, "clients": [str(node) for node in nodes]})

    def append_evaluation(self, index: int, metrics: Mapping[str, Any]) -> None:
        """Add what the server's own evaluation after a round gave."""
        self._append_beside({"round": index, "server_evaluation": dict(metrics)})

    def _append_beside(self, line: Mapping[str, Any]) -> None:
        with writing(self.closeups), self.closeups.open("a", encoding="utf-8") as file:
            file.write(json_text(line) + "\n")

    def standings(self) -> dict[int, Standing]:
        """Each node's standing after the last round that the ledger has of it.

        Raises `InputError` where the file is no ledger.
        """
        found: dict[int, Standing] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                for node, entry in line.get("nodes", {}).items():
                    found[int(node)] = Standing(int(entry["strikes"]), int(entry["resting"]))
            except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
                raise InputError(f"{self.path} line {number} is no line of a ledger") from error
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(json_lines(self.path)[0], 1):
            if not ({"ledger", "round"} & set(line)):
                raise InputError(f"{self.path} line {number} is no line of a ledger")
            yield line


def _text(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json_text(line) + "\n" for line in lines).encode()
