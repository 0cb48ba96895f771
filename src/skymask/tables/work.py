"""One cell: a run in a folder of its own, resumed where it stopped, recorded when it ends.

In a sweep's folder:

    cells/IDENTITY.json    the record of a cell that is done; written whole or not at all
    runs/IDENTITY/         the run folder of one that is not (`records`); removed when done
    failed/IDENTITY.txt    why a cell failed the last time; removed when done
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skymask.experiment import Experiment, to_json
from skymask.preparation import malicious_clients
from skymask.records import RunFolder, json_text, read_object, replace_file, writing
from skymask.simulation import simulate
from skymask.tables.cell import Cell, identity
from skymask.tables.closeup import Closeup, Watching
from skymask.tables.record import compact, key


@dataclass(frozen=True)
class Task:
    """A cell with a seed, to be run."""

    label: str
    """For people: row, column and seed, of the first cell that wants it."""
    experiment: Experiment
    key: str
    """What its record is called (`record.key`)."""
    closeup: bool = False
    """Whether its record holds a close-up."""

    @classmethod
    def of(cls, cell: Cell, seed: int) -> "Task":
        """A cell's task for one seed."""
        experiment = cell.seeded(seed).resolved()
        name = key(identity(experiment), cell.closeup)
        return cls(f"{cell.row}, {cell.column}, seed {seed}", experiment, name, cell.closeup)

    @property
    def rounds(self) -> int:
        """How many rounds it takes in all."""
        return self.experiment.rounds or 0


@dataclass(frozen=True)
class Places:
    """Where things are in a sweep's folder."""

    out: Path

    def record(self, key: str) -> Path:
        """The record of a cell."""
        return self.out / "cells" / f"{key}.json"

    def run(self, key: str) -> RunFolder:
        """The run folder of a cell."""
        return RunFolder(self.out / "runs" / key)

    def failure(self, key: str) -> Path:
        """What went wrong with a cell."""
        return self.out / "failed" / f"{key}.txt"

    def rounds_done(self, key: str) -> int:
        """How many rounds an unfinished cell has behind it, by the lines of its run folder."""
        path = self.run(key).path / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def run_cell(
    task: Task,
    out: Path,
    device: str,
    *,
    jobs: int = 1,
    data_dir: Path | None = None,
    command: str | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The record of `task`, run to its end; one that was stopped goes on where it was.

    A process may be killed at any moment in here. What `watch` raises stops the run, which can be
    gone on with; other exceptions are the run's own.
    """
    places = Places(out)
    done, folder = places.record(task.key), places.run(task.key)
    if done.exists():
        return read_object(done)
    resume = (folder.path / "manifest.json").exists() and not _too_late(task, places)
    if not resume and folder.path.exists():
        shutil.rmtree(folder.path)  # killed before anything was in it, or past what is looked at
    watching = Watching(task.experiment.defence, task.rounds - 1)
    experiment = replace(task.experiment, defence=watching) if task.closeup else task.experiment
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # each once, however many rounds give it
        result = simulate(
            experiment,
            device,
            folder.path,
            resume=resume,
            data_dir=data_dir,
            watch=watch,
            command=command,
        )
    said = dict.fromkeys(str(warning.message) for warning in caught)
    record = compact(
        folder.manifest | {"experiment": to_json(task.experiment)},
        result.summary,
        result.rounds,
        jobs=jobs,
        warnings=[*said],
        closeup=_closeup(task.experiment, watching),
    )
    with writing(done):
        done.parent.mkdir(parents=True, exist_ok=True)
        replace_file(done, json_text(record).encode() + b"\n")
        shutil.rmtree(folder.path)
        places.failure(task.key).unlink(missing_ok=True)
    return record


def _too_late(task: Task, places: Places) -> bool:
    """Whether the last round, of which a close-up is wanted, is over already."""
    return task.closeup and places.rounds_done(task.key) >= task.rounds


def _closeup(experiment: Experiment, watching: Watching) -> Closeup | None:
    """The close-up of the last round, where the rule was watched."""
    if watching.seen is None:
        return None
    updates, round = watching.seen
    marks = malicious_clients(experiment.clients or 0, experiment.malicious, experiment.seed)
    return Closeup.of(updates, round, marks if round.clients is None else marks[round.clients])
