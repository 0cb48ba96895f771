"""`skymask table`."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table as Shown

from skymask.cli.shared import AsJson, DataDir, err, out
from skymask.data import OFFICIAL, fetch
from skymask.environment import device_name, usable_device
from skymask.errors import require, unknown
from skymask.progress import percent, sweep_progress
from skymask.records import replace_file, writing
from skymask.tables import TABLES, Cell, Table
from skymask.tables.plan import estimate, missing, rounds_left, tasks_of
from skymask.tables.record import read_records
from skymask.tables.render import render
from skymask.tables.sweep import Event, sweep
from skymask.tables.work import Places, Task

JOBS_ON_A_GPU = 4
_PLACES = ("--out", "--data-dir", "--minutes")
"""Options that change where and when a sweep runs, but no record."""


def table(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(TABLES)}.")],
    seeds: Annotated[int, typer.Option(help="Run each cell with seeds 1 to this.")] = 3,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="Run only rows that match, such as 'har*'; again for more patterns."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Run only columns that match, likewise.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="At most this many rounds a cell: a table of its own.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help=f"Cells at once on each device ({JOBS_ON_A_GPU} on a GPU, else one a core)."
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda:1, ...; again for more (default: all GPUs, else the CPU)."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Start no cell after this long; those that run stop within a minute and go on "
            "the next time."
        ),
    ] = None,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Records and tables of all names.", metavar="FOLDER")
    ] = Path("results/tables"),
    data_dir: DataDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is to be run, and how long it takes.")
    ] = False,
    render_only: Annotated[
        bool, typer.Option("--render", help="Only write the table from the records there are.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a table of the paper again (1 to 4), or the cases of detection, cell by cell.

    Cells that are done are not run again and one that was stopped goes on: the same command until
    nothing is missing. The table shows all records there are, whatever --rows says.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    require(seeds >= 1, "seeds", seeds, "at least 1")
    require(rounds is None or rounds >= 1, "rounds", rounds, "at least 1")
    require(jobs is None or jobs >= 1, "jobs", jobs, "at least 1")
    require(minutes is None or minutes > 0, "minutes", minutes, "above 0")
    made = TABLES[name]().cut(rounds)
    cells = made.select(rows or (), columns or ())
    if render_only:
        _finish(made, out_folder, seeds, as_json, {})
        return
    devices = device or [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    gpus = [usable_device(each).type != "cpu" for each in devices]
    many = jobs or (JOBS_ON_A_GPU if any(gpus) else os.cpu_count() or 1)
    places = Places(out_folder)
    records = read_records(out_folder)
    tasks = tasks_of(cells, range(1, seeds + 1))
    left = missing(tasks, records, places)
    if dry_run:
        _plan(made, cells, seeds, devices, places, as_json)
        return
    for data in dict.fromkeys(str(task.experiment.data) for task in left):
        if data in OFFICIAL:
            fetch(data, data_dir)  # once, and before anything has started
    told = _Told(left, places)
    try:
        with sweep_progress(len(left), sum(told.left.values()), err) as advance:
            sweep(
                left,
                out_folder,
                devices,
                many,
                seconds=float("inf") if minutes is None else 60 * minutes,
                data_dir=data_dir,
                command=asked(sys.argv[1:]),
                watch=lambda event: told.tell(event, advance),
            )
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on", highlight=False)
        sys.exit(130)
    finished = {
        "run": told.finished,
        "failed": told.failures,
        "left": len(left) - told.finished,
    }
    _finish(made, out_folder, seeds, as_json, finished)
    if told.failures:
        sys.exit(1)


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


def _plan(
    made: Table, cells: list[Cell], seeds: int, devices: list[str], places: Places, as_json: bool
) -> None:
    """What is done and what is to be run, row by row, and the time it takes as far as is known."""
    records = read_records(places.out)
    device = device_name(usable_device(devices[0]))
    shown = Shown("row", "done", "begun", "rounds to run", "device time", title=made.title)
    counted: set[str] = set()
    told: list[dict[str, Any]] = []
    for row in dict.fromkeys(cell.row for cell in cells):
        every = tasks_of((cell for cell in cells if cell.row == row), range(1, seeds + 1))
        left = [t for t in missing(every, records, places) if t.key not in counted]
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
        "cells": len(tasks_of(cells, range(1, seeds + 1))),
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
    if as_json:
        print(json.dumps({"table": made.name, **whole, "rows": told}))


def _hours(seconds: float, unknown_cells: int) -> str:
    known = f"{seconds / 3600:.2f} h"
    if not unknown_cells:
        return known
    return f"{known} and {unknown_cells:,} cells of unknown time" if seconds else "unknown"


def _finish(made: Table, folder: Path, seeds: int, as_json: bool, finished: dict[str, Any]) -> None:
    """Write the table and say where it is."""
    rendered = render(made, read_records(folder), seeds)
    paths = {kind: folder / f"{made.stem}.{kind}" for kind in ("md", "json")}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(paths["md"], rendered.markdown.encode())
        replace_file(paths["json"], rendered.json.encode())
    lacks = rendered.data["lacks"]
    out.print(
        f"{lacks['cells'] - lacks['missing']:,} of {lacks['cells']:,} cells are there: "
        f"{escape(str(paths['md']))}",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        there = {name: lacks[name] for name in ("cells", "missing")}
        files = {kind: str(path) for kind, path in paths.items()}
        print(json.dumps({"table": made.name, **finished, **there, "files": files}))


def asked(words: Sequence[str]) -> str:
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
