"""What `skymask table` and `skymask figure` share: their options, and how cells are run."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table as Shown

from skymask.cli.shared import err, out
from skymask.data import OFFICIAL, fetch
from skymask.environment import device_name, usable_device
from skymask.errors import require
from skymask.progress import percent, sweep_progress
from skymask.tables import Cell, Sheet
from skymask.tables.plan import estimate, missing, rounds_left, tasks_of
from skymask.tables.record import Record, read_records
from skymask.tables.sweep import Event, sweep
from skymask.tables.work import Places, Task

JOBS_ON_A_GPU = 4
_PLACES = ("--out", "--data-dir", "--minutes")
"""Options that change where and when a sweep runs, but no record."""

Seeds = Annotated[int, typer.Option(help="Run each cell with seeds 1 to this.")]
Rows = Annotated[
    list[str] | None,
    typer.Option(help="Run only rows that match, such as 'har*'; again for more patterns."),
]
Columns = Annotated[list[str] | None, typer.Option(help="Run only columns that match, likewise.")]
Rounds = Annotated[
    int | None, typer.Option(help="At most this many rounds a cell: one of its own.")
]
Jobs = Annotated[
    int | None,
    typer.Option(help=f"Cells at once on each device ({JOBS_ON_A_GPU} on a GPU, else one a core)."),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="cpu, cuda:1, ...; again for more (default: all GPUs, else the CPU)."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Start no cell after this long; those that run stop within a minute and go on "
        "the next time."
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option("--out", help="Records, tables and figures of all names.", metavar="FOLDER"),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what is to be run, and how long it takes.")
]
RenderOnly = Annotated[
    bool, typer.Option("--render", help="Run nothing; write it from the records there are.")
]
FOLDER = Path("results/tables")


@dataclass(frozen=True)
class Asked:
    """What a person asked for, but for the table's or the figure's name."""

    seeds: int
    rows: Sequence[str]
    columns: Sequence[str]
    rounds: int | None
    jobs: int | None
    devices: Sequence[str]
    minutes: float | None
    out: Path
    data_dir: Path | None
    dry_run: bool
    render_only: bool
    as_json: bool

    def __post_init__(self) -> None:
        for field in ("seeds", "rounds", "jobs"):
            value = getattr(self, field)
            require(value is None or value >= 1, field, value, "at least 1")
        require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "above 0")


@dataclass(frozen=True)
class Made:
    """What was written of a table or figure."""

    lacks: Mapping[str, Any]
    """At least how many "cells" it has, each seed counted, and how many are "missing"."""
    files: Mapping[str, Any]
    """Kind -> path, or paths."""
    told: str
    """Where it is, for a person."""


def carry_out(
    sheet: Sheet,
    asked: Asked,
    write: Callable[[Mapping[str, Record]], Made],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Run what is missing of the cells that are asked for, then `write` what there are records of.

    With `dry_run` only a plan is printed, with `render_only` nothing is run. `prepare` is called
    before anything is run, for errors that would come too late afterwards. Ends the process with
    status 1 where a cell failed.
    """
    cells = sheet.select(asked.rows, asked.columns)
    finished: dict[str, Any] = {}
    if not asked.render_only:
        devices = asked.devices or _every_device()
        gpus = [usable_device(each).type != "cpu" for each in devices]
        many = asked.jobs or (JOBS_ON_A_GPU if any(gpus) else os.cpu_count() or 1)
        if asked.dry_run:
            _plan(sheet, cells, asked, devices)
            return
        wanted = tasks_of(cells, range(1, asked.seeds + 1))
        device = device_name(usable_device(devices[0]))
        left = missing(wanted, read_records(asked.out), Places(asked.out), device)
        prepare()
        finished = _run(left, asked, devices, many)
    made = write(read_records(asked.out))
    lacks = made.lacks
    out.print(
        f"{lacks['cells'] - lacks['missing']:,} of {lacks['cells']:,} cells are there: "
        f"{escape(made.told)}",
        highlight=False,
        soft_wrap=True,
    )
    if asked.as_json:
        there = {name: lacks[name] for name in ("cells", "missing")}
        told = {sheet.kind: sheet.name, **finished, **there, "files": made.files}
        print(json.dumps(told))
    if finished.get("failed"):
        sys.exit(1)


def _every_device() -> list[str]:
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _run(left: list[Task], asked: Asked, devices: Sequence[str], jobs: int) -> dict[str, Any]:
    """Run the tasks; what became of them. Ends the process where a person stops it."""
    for data in dict.fromkeys(str(task.experiment.data) for task in left):
        if data in OFFICIAL:
            fetch(data, asked.data_dir)  # once, and before anything has started
    told = _Told(left, Places(asked.out))
    try:
        with sweep_progress(len(left), sum(told.left.values()), err) as advance:
            sweep(
                left,
                asked.out,
                devices,
                jobs,
                seconds=float("inf") if asked.minutes is None else 60 * asked.minutes,
                data_dir=asked.data_dir,
                command=command(sys.argv[1:]),
                watch=lambda event: told.tell(event, advance),
            )
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on", highlight=False)
        sys.exit(130)
    return {"run": told.finished, "failed": told.failures, "left": len(left) - told.finished}


class _Told:
    """What a person is told while cells run."""

    def __init__(self, tasks: list[Task], places: Places) -> None:
        self.places = places
        self.left = {task.key: rounds_left(task, places) for task in tasks}
        self.whole = sum(self.left.values())
        self.total = len(tasks)
        self.finished = 0
        self.failures: dict[str, str] = {}

    def tell(self, event: Event, advance: Any) -> None:
        """One event: a line for a cell that is done or failed, else the bar."""
        task = event.task
        if event.kind == "round":
            self.left[task.key] = task.rounds - event.rounds
        elif event.kind == "finished":
            assert event.record is not None
            self.finished += 1
            self.left[task.key] = 0
            summary = event.record["summary"]
            self._say(
                f"{self.finished} of {self.total}: {task.label}: "
                f"accuracy {percent(summary['accuracy_last5'])}, FPR {percent(summary['fpr'])}, "
                f"FNR {percent(summary['fnr'])}, {summary['seconds']:.0f} s"
            )
        elif event.kind == "failed":
            self.failures[task.label] = event.why
            self._say(f"failed: {task.label}: {event.why} ({self.places.failure(task.key)})")
        else:
            self._say(f"stopped: {task.label}, {rounds_left(task, self.places):,} rounds left")
        advance(self.whole - sum(self.left.values()), self.finished, len(self.failures))

    def _say(self, text: str) -> None:
        err.print(escape(text), highlight=False, soft_wrap=True)


def _plan(sheet: Sheet, cells: list[Cell], asked: Asked, devices: Sequence[str]) -> None:
    """What is done and what is to be run, row by row, and the time it takes as far as is known."""
    places, seeds = Places(asked.out), range(1, asked.seeds + 1)
    records = read_records(asked.out)
    device = device_name(usable_device(devices[0]))
    shown = Shown("row", "done", "begun", "rounds to run", "device time", title=sheet.title)
    counted: set[str] = set()
    told: list[dict[str, Any]] = []
    for row in dict.fromkeys(cell.row for cell in cells):
        every = tasks_of((cell for cell in cells if cell.row == row), seeds)
        left = [t for t in missing(every, records, places, device) if t.key not in counted]
        counted |= {task.key for task in left}
        wait = sum(rounds_left(task, places) for task in left)
        time = estimate(left, records.values(), device, places)
        done = sum(task.key in records for task in every)
        begun = sum(places.rounds_done(task.key) > 0 for task in left)
        told.append(
            {
                "row": row,
                "cells": len(every),
                "done": done,
                "to_run": len(left),
                "begun": begun,
                "rounds": wait,
                "device_seconds": time.seconds,
                "cells_of_unknown_time": time.unknown,
            }
        )
        shown.add_row(
            row,
            f"{done} of {len(every)}",
            str(begun),
            f"{wait:,}",
            _hours(time.seconds, time.unknown) if left else "-",
        )
    out.print(shown)
    seconds = sum(t["device_seconds"] for t in told)
    unknown_cells = sum(t["cells_of_unknown_time"] for t in told)
    whole = {
        "cells": len(tasks_of(cells, seeds)),
        "to_run": sum(t["to_run"] for t in told),
        "rounds": sum(t["rounds"] for t in told),
        "device": device,
        "devices": len(devices),
        "device_seconds": seconds,
        "cells_of_unknown_time": unknown_cells,
    }
    out.print(
        f"{whole['to_run']:,} of {whole['cells']:,} cells to run (one that rows share counts in "
        f"the first), {whole['rounds']:,} rounds; on {len(devices)} x {device}: "
        f"{_hours(seconds / len(devices), unknown_cells)}",
        highlight=False,
        soft_wrap=True,
    )
    if asked.as_json:
        print(json.dumps({sheet.kind: sheet.name, **whole, "rows": told}))


def _hours(seconds: float, unknown_cells: int) -> str:
    known = f"{seconds / 3600:.2f} h"
    if not unknown_cells:
        return known
    return f"{known} and {unknown_cells:,} cells of unknown time" if seconds else "unknown"


def command(words: Sequence[str]) -> str:
    """The command line that asks for the same records, wherever they and the data are.

    Records are made to be published, folders of the machine are not.
    """
    kept: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word in _PLACES:
            del words[:1]
        elif not word.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(word)
    return shlex.join(["skymask", *kept])
