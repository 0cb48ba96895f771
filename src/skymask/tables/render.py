"""Records as a Markdown table, and the same as JSON. Every number comes from a record.

A value is the mean over the seeds with the sample standard deviation, beside it in parentheses
what the paper printed. "missing" is a cell without a record, a dash one that the table does not
have or a measure that does not apply; [2/3] says that two seeds of three are there.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from skymask.experiment import Experiment
from skymask.metrics import mean_of
from skymask.records import json_text
from skymask.tables.cell import Cell, Entry, Table, View, identity, seedless
from skymask.tables.measures import MEASURES, Statistic, difference
from skymask.tables.record import Record, repeats

MISSING = "missing"
_PATTERNS = 4
"""So many row patterns of a command are shown."""


@dataclass(frozen=True)
class Rendered:
    """A table as text and as data."""

    markdown: str
    data: dict[str, Any]

    @property
    def json(self) -> str:
        """The data as JSON, a line for each cell."""
        cells = ",\n".join(json_text(cell) for cell in self.data["cells"])
        rest = {name: part for name, part in self.data.items() if name != "cells"}
        return f'{json_text(rest)[:-1]}, "cells": [\n{cells}\n]}}\n'


@dataclass(frozen=True)
class _Seen:
    """A cell and its records, by seed."""

    cell: Cell
    key: str
    """The same for cells of the same experiment."""
    records: Sequence[Record]
    yardstick: Sequence[Record]
    wanted: int

    def statistic(self, measure: str) -> Statistic | None:
        return MEASURES[measure].over(self.records, self.cell)

    def difference(self) -> tuple[float, float | None] | None:
        held_to = MEASURES["accuracy"].over(self.yardstick, self.cell)
        own = self.statistic("accuracy")
        return None if own is None or held_to is None else difference(own, held_to)


def render(table: Table, records: Mapping[str, Record], seeds: int) -> Rendered:
    """The table as far as there are records, of any seed; `seeds` are wanted of each cell."""
    identify = cache(seedless)  # rows share yardsticks
    there = repeats(records)

    def found(experiment: Experiment | None) -> list[Record]:
        return [] if experiment is None else there.get(identify(experiment), [])

    seen = {
        (cell.row, cell.column): _Seen(
            cell, identify(cell.experiment), found(cell.experiment), found(cell.yardstick), seeds
        )
        for cell in table.cells
    }
    rows = _with_records(table, seen)
    used = {id(record): record for s in seen.values() for record in s.records}
    lacks = _lacks(table, seen, rows, seeds)
    told = conditions(list(used.values()))
    lines = [f"# {table.title}", ""]
    if table.rounds:
        lines += [f"Cut to {table.rounds:,} rounds a cell; the paper's numbers are of all.", ""]
    for view in table.views:
        lines += _view(view, rows, seen)
    lines += [_said(lacks), "", *_listed(told)]
    data = {
        "table": table.name,
        "title": table.title,
        "rounds": table.rounds,
        "seeds": seeds,
        "measures": {name: measure.meaning for name, measure in MEASURES.items()},
        "cells": [_as_data(s, seen) for s in seen.values() if s.records],
        "lacks": lacks,
        "conditions": told,
    }
    return Rendered("\n".join(lines) + "\n", data)


def conditions(records: Sequence[Record]) -> dict[str, Any]:
    """What the numbers of `records` must not be read without."""
    told = [record.told for record in records]

    def counted(values: Iterable[str]) -> dict[str, int]:
        return dict(Counter(values).most_common())

    return {
        "records": len(told),
        "rounds": sum(t["summary"]["rounds"] for t in told),
        "seconds": sum(t["seconds"] for t in told),
        "device_seconds": sum(t["seconds"] / t["jobs"] for t in told),
        "devices": counted(t["device"] for t in told),
        "versions": counted(", ".join(f"{k} {v}" for k, v in t["versions"].items()) for t in told),
        "sources": counted(t["source"] for t in told),
        "commands": counted(_short(str(t["command"])) for t in told),
        "fallbacks": sum(t["summary"]["fallbacks"] > 0 for t in told),
        "warnings": counted(text for t in told for text in t["warnings"]),
    }


def _short(command: str) -> str:
    """`command` without most of its row patterns, where it has many; records hold all of it."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line
        return command
    at = [i for i, word in enumerate(words) if word == "--rows"]
    if len(at) <= _PATTERNS:
        return command
    left_out = {i for start in at[_PATTERNS:] for i in (start, start + 1)}
    kept = shlex.join(word for i, word in enumerate(words) if i not in left_out)
    return f"{kept} (and {len(at) - _PATTERNS} more --rows)"


def _view(view: View, rows: Sequence[str], seen: Mapping[tuple[str, str], _Seen]) -> list[str]:
    shown = [row for row in rows if fnmatchcase(row, view.rows)]
    entries = [
        entry
        for entry in view.entries
        if any((s := seen.get((row, entry.column))) and s.records for row in shown)
    ]
    if not entries:
        return []
    lines = [f"## {view.title}", "", *_line(["", *(entry.heading for entry in entries)])]
    lines += _line(["---"] * (len(entries) + 1))
    for row in shown:
        lines += _line(
            [row, *(_text(entry, seen.get((row, entry.column)), seen) for entry in entries)]
        )
    return [*lines, ""]


def _line(parts: Iterable[str]) -> list[str]:
    return [f"| {' | '.join(parts)} |"]


def _text(entry: Entry, s: _Seen | None, seen: Mapping[tuple[str, str], _Seen]) -> str:
    """One cell of a view."""
    if s is None:
        return "-"
    if not s.records:
        return MISSING
    if entry.measure == "target":
        return _verdict(s, seen)
    if entry.measure == "difference":
        gap = s.difference()
        return MISSING if gap is None else _points(*gap) + _few(s, len(s.yardstick))
    statistic = s.statistic(entry.measure)
    text = "-" if statistic is None else _value(statistic, MEASURES[entry.measure].kind)
    printed = s.cell.published.get(entry.measure)
    digits = 0 if MEASURES[entry.measure].kind == "accuracy" else 2
    beside = "" if printed is None else f" ({100 * printed:.{digits}f} %)"
    return text + beside + ("" if statistic is None else _few(s))


def _value(statistic: Statistic, kind: str) -> str:
    if kind == "count":
        return "never" if math.isinf(statistic.value) else f"{statistic.value:.0f}"
    digits = 1 if kind == "accuracy" else 2
    spread = "" if statistic.spread is None else f" ± {100 * statistic.spread:.{digits}f}"
    return f"{100 * statistic.value:.{digits}f}{spread} %"


def _points(gap: float, error: float | None) -> str:
    return f"{100 * gap:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _few(s: _Seen, others: int | None = None) -> str:
    """Says so where there are fewer seeds than wanted."""
    there = min(len(s.records), len(s.records) if others is None else others)
    return f" [{there}/{s.wanted}]" if there < s.wanted else ""


def _verdict(s: _Seen, seen: Mapping[tuple[str, str], _Seen]) -> str:
    """Which targets of the cell are missed; "met" where none is, a dash where there are none."""
    target = s.cell.target
    if target is None or all(value is None for value in asdict(target).values()):
        return "-"
    missed, unknown = [], False

    def hold(name: str, value: float | None, bound: float, text: str, limit: str) -> None:
        nonlocal unknown
        if value is None:
            unknown = True
        elif value > bound:
            missed.append(f"{name} {text} > {limit}")

    gap = s.difference()
    if target.within is not None:
        lost = None if gap is None else -gap[0]
        text = "" if lost is None else f"{100 * lost:.1f}"
        hold("points lost", lost, target.within, text, f"{100 * target.within:g}")
    if target.above is not None:
        other = seen[s.cell.row, target.above].statistic("accuracy")
        own = s.statistic("accuracy")
        lost = None if own is None or other is None else other.value - own.value
        text = "" if lost is None else f"{100 * lost:.1f}"
        hold(f"points below {target.above}", lost, 0.0, text, "0")
    for name, measure, bound in (
        ("FPR", "fpr", target.fpr),
        ("FNR", "fnr_since", target.fnr),
        ("worst FPR", "worst", target.worst),
        ("inverted", "inverted", target.inverted),
        ("caught", "caught", target.caught),
        ("attack success", "attack_success", target.success),
    ):
        if bound is None:
            continue
        found = s.statistic(measure)
        kind = MEASURES[measure].kind
        text = "" if found is None else _value(Statistic(found.value, None, found.seeds), kind)
        limit = f"{bound}" if kind == "count" else f"{100 * bound:g} %"
        hold(name, None if found is None else found.value, bound, text, limit)
    if missed:
        return ", ".join(missed)
    return "not all measured" if unknown else "met"


def _with_records(table: Table, seen: Mapping[tuple[str, str], _Seen]) -> list[str]:
    """The rows with a record of their own: a yardstick that others share does not count."""
    shared = Counter(s.key for s in seen.values())
    own = {s.cell.row for s in seen.values() if shared[s.key] == 1}
    there = {
        s.cell.row
        for s in seen.values()
        if s.records and (shared[s.key] == 1 or s.cell.row not in own)
    }
    return [row for row in table.rows if row in there]


def _lacks(
    table: Table, seen: Mapping[tuple[str, str], _Seen], rows: Sequence[str], seeds: int
) -> dict[str, Any]:
    """How many cells have no record, each seed counted, and which rows are not shown."""
    once = {s.key: s for s in seen.values()}
    there = sum(min(len(s.records), seeds) for s in once.values())
    shown = set(rows)
    return {
        "cells": seeds * len(once),
        "missing": seeds * len(once) - there,
        "rows": len(table.rows),
        "empty_rows": [row for row in table.rows if row not in shown],
    }


def _said(lacks: Mapping[str, Any]) -> str:
    if not lacks["missing"]:
        return f"All {lacks['cells']:,} cells are there."
    said = f"{lacks['missing']:,} of {lacks['cells']:,} cells are missing, each seed counted."
    if lacks["empty_rows"]:
        empty = len(lacks["empty_rows"])
        said += f" {empty} of {lacks['rows']} rows have no record of their own and are not shown."
    return said


def _listed(told: Mapping[str, Any]) -> list[str]:
    """The conditions as a Markdown list."""

    def counted(name: str, each: Mapping[str, int], mark: str = "") -> str:
        many = len(each) > 1
        parts = [f"{mark}{k}{mark}" + (f" ({n:,})" if many else "") for k, n in each.items()]
        return f"- {name}: {'; '.join(parts)}"

    if not told["records"]:
        return ["- No record yet."]
    lines = [
        f"- Records: {told['records']:,}, {told['rounds']:,} rounds.",
        counted("Device", told["devices"]),
        f"- Seconds: {told['seconds']:,.0f} in all rounds; {told['device_seconds']:,.0f} of a "
        "device, where a cell that shares it with others counts by its share.",
        counted("Versions", told["versions"]),
        counted("Source", told["sources"]),
        counted("Command", told["commands"], "`"),
    ]
    if told["fallbacks"]:
        lines.append(f"- Records with rounds in which nobody was accepted: {told['fallbacks']:,}.")
    lines += [f"- Warning ({n:,}): {text}" for text, n in told["warnings"].items()]
    return lines


def _as_data(s: _Seen, seen: Mapping[tuple[str, str], _Seen]) -> dict[str, Any]:
    """A cell with every measure."""
    measured = {name: s.statistic(name) for name in MEASURES}
    gap = s.difference()
    told: dict[str, Any] = {
        "row": s.cell.row,
        "column": s.cell.column,
        "seeds": [record.seed for record in s.records],
        "records": [identity(record.told["experiment"]) for record in s.records],
        **{name: asdict(found) for name, found in measured.items() if found is not None},
    }
    if gap is not None:
        told["difference"] = {"value": gap[0], "standard_error": gap[1]}
    if s.cell.published:
        told["published"] = dict(s.cell.published)
    if s.cell.target is not None:
        told["target"] = _verdict(s, seen)
    evidence = [record.told["evidence"] for record in s.records]
    names = dict.fromkeys(name for each in evidence for name in each)
    if names:
        told["evidence"] = {name: mean_of(evidence, name) for name in names}
    return told
