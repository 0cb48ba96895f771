"""A run's folder: what it was, what happened each round, and where to go on.

    manifest.json            configuration, seed, versions, device; written once, at the start
    rounds.jsonl             one line a round, appended and flushed as the round ends
    closeups.jsonl           of at most a hundred of them what is known of every client
    checkpoint.safetensors   model, buffers, memory and round; replaced atomically
    summary.json             written when the run has ended

A process may be killed at any moment: the checkpoint is the truth, lines of later rounds (the last
may be torn) are dropped on resume and the rounds run again, to the same numbers. Nothing here is
pickled: JSON and safetensors only.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from skymask.errors import InputError, told

ROUNDS, CLOSEUPS = "rounds.jsonl", "closeups.jsonl"
KEPT = 100
"""Rounds of a run of which a close-up is kept, at most."""
NOT_A_CHECKPOINT = (
    *(SafetensorError, AttributeError, LookupError, OSError, OverflowError, RecursionError),
    *(RuntimeError, TypeError, ValueError),
)
"""What may be raised while a file is read as a checkpoint that is none."""
TIME_FIELDS = ("seconds", "stages")
"""Fields of a record that differ between two runs of the same experiment."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands after `rounds` rounds."""

    rounds: int
    params: Tensor
    buffers: Tensor
    memory: Any
    """The defence's memory."""
    attack_memory: Any = None


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run is. Raises `InputError` where `path` is no run folder."""
        path = self.path / "manifest.json"
        if not path.exists():
            raise InputError(f"{self.path} holds no run (it has no manifest.json)")
        loaded = read_object(path)
        if not isinstance(loaded.get("experiment"), dict):
            raise InputError(f"{path} is not a run's manifest: it describes no experiment")
        return loaded

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that has ended, else None."""
        path = self.path / "summary.json"
        return read_object(path) if path.exists() else None

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder for a new run; raises `InputError` as `require_free`, or if it cannot."""
        self.require_free()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_torn()
            replace_file(self.path / "manifest.json", json_text(manifest, indent=2).encode())

    def require_no_run(self) -> None:
        """Raise `InputError` where the folder holds a run already."""
        if (self.path / "manifest.json").exists():
            raise InputError(
                f"out folder {self.path} holds another run; choose a new folder, "
                f"or continue that run with --resume {self.path}"
            )

    def require_free(self) -> None:
        """Raise `InputError` unless the path is a new folder, or an empty one."""
        self.require_no_run()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"out folder {self.path} is a file; choose a new folder")
        if self.path.exists() and set(self.path.iterdir()) - set(self._torn()):
            raise InputError(f"out folder {self.path} is not empty; choose a new folder")

    def _torn(self) -> list[Path]:
        """Files of the run that a process was writing when it was killed."""
        names = ("manifest.json", "summary.json", "checkpoint.safetensors", ROUNDS, CLOSEUPS)
        return [path for name in names for path in self.path.glob(f".{name}.*.part")]

    def _remove_torn(self) -> None:
        for path in self._torn():
            path.unlink(missing_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a round's record, flushed to the operating system before this returns."""
        with writing(self.path), (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")

    def append_closeup(self, closeup: Mapping[str, Any]) -> None:
        """Add what is known of every client in a round that is kept (`is_kept`)."""
        with writing(self.path), (self.path / CLOSEUPS).open("a", encoding="utf-8") as file:
            file.write(json_text(closeup) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run has ended."""
        with writing(self.path):
            replace_file(self.path / "summary.json", json_text(summary, indent=2).encode())

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint, atomically; the records up to it are on the disk before it."""
        tensors = {"params": checkpoint.params, "buffers": checkpoint.buffers}
        outline = outlined(checkpoint.memory, "memory", tensors)
        attack = outlined(checkpoint.attack_memory, "attack_memory", tensors)
        header = {
            "rounds": str(checkpoint.rounds),
            "memory": json.dumps(outline),
            "attack_memory": json.dumps(attack),
        }
        stored = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
        with writing(self.path):
            if (self.path / ROUNDS).exists():
                with (self.path / ROUNDS).open("rb") as file:
                    os.fsync(file.fileno())
            replace_file(self.path / "checkpoint.safetensors", save(stored, header))

    def load(self, device: torch.device) -> Checkpoint | None:
        """The checkpoint, or None if the run was stopped before its first.

        Raises `InputError` where the file is not a checkpoint.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            memory, attack = (
                filled(json.loads(header[name]), tensors) for name in ("memory", "attack_memory")
            )
            rounds = int(header["rounds"])
            if rounds < 0:
                raise ValueError(f"it is after {rounds} rounds")
            return Checkpoint(rounds, tensors["params"], tensors["buffers"], memory, attack)
        except NOT_A_CHECKPOINT as error:
            raise InputError(f"{path} is not a checkpoint of a run: {error}") from error

    def rounds(self) -> list[dict[str, Any]]:
        """The records of all whole lines; a torn last line is left out."""
        return json_lines(self.path / ROUNDS)[0]

    def cut(self, rounds: int) -> list[dict[str, Any]]:
        """Drop the records after the first `rounds`, and return those kept.

        Raises `InputError` where fewer are there.
        """
        kept = self.rounds()[:rounds]
        if len(kept) < rounds:
            raise InputError(
                f"{self.path / 'rounds.jsonl'} has {len(kept)} rounds "
                f"but the checkpoint is after {rounds}"
            )
        with writing(self.path):
            self._remove_torn()
            text = "".join(json_text(record) + "\n" for record in kept)
            replace_file(self.path / ROUNDS, text.encode())
            closeups = (
                json_text(closeup) + "\n"
                for index, closeup in numbered(self.path / CLOSEUPS)
                if index < rounds
            )
            if (self.path / CLOSEUPS).exists():
                replace_file(self.path / CLOSEUPS, "".join(closeups).encode())
            (self.path / "summary.json").unlink(missing_ok=True)
        return kept


def is_kept(index: int, rounds: int) -> bool:
    """Whether round `index` of `rounds` is one of at most `KEPT` of which a close-up is kept.

    They are spread evenly, the first and the last among them.
    """
    if rounds <= KEPT:
        return True
    place = -(-index * (KEPT - 1) // (rounds - 1))  # the only one that may fall on this round
    return place * (rounds - 1) // (KEPT - 1) == index


def json_lines(path: Path, start: int = 0, count: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of the whole lines of a file, and the byte at which the next line begins.

    A torn last line is left out, and a file that is not there has no lines. Reading goes on at byte
    `start`, before which there are `count` lines. Raises `InputError` for a line that is no object.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    end = content.rfind(b"\n") + 1  # what follows the last line end is torn
    lines = content[:end].split(b"\n")[:-1]
    return [_object(path, x, f" line {i}") for i, x in enumerate(lines, count + 1)], start + end


def numbered(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of the whole lines of a file, each with the round that it says it is of.

    Raises `InputError` as `json_lines` does, and for a line that is of no round.
    """
    lines = json_lines(path)[0]
    return [(round_of(path, number, line), line) for number, line in enumerate(lines, 1)]


def round_of(path: Path, number: int, line: Mapping[str, Any]) -> int:
    """The round of line `number` of a file. Raises `InputError` where it says none."""
    index = line.get("round")
    if type(index) is not int:
        raise InputError(f"{path} line {number} has round {told(index)} but it must be a number")
    return index


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InputError` where the file holds something else."""
    return _object(path, path.read_bytes())


def _object(path: Path, content: bytes, where: str = "") -> dict[str, Any]:
    """The JSON object that `content` is. Raises `InputError` where it is none."""
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}{where} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}{where} is {type(loaded).__name__}, not a JSON object")
    return loaded


class writing:
    """Turns an operating-system error while writing into one sentence for a person."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write to {self.path}: {error.strerror or error}; what was there is kept"
            ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place: it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON; numbers that are not finite become null.

    Raises `InputError` for what is nested too deep to be written.
    """
    try:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)
    except RecursionError as error:
        raise InputError("a record is nested too deep to be written") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def outlined(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors` and named in their place.

    Raises `InputError` for anything but dicts with string keys, lists, tensors, numbers, strings.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {k: outlined(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list):
        return {"list": [outlined(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise InputError(
        f"{name} holds a {type(value).__name__}; a defence's memory must be made of dicts "
        "with string keys, lists, tensors, numbers and strings"
    )


def filled(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `outlined` was given."""
    ((kind, content),) = outline.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: filled(part, tensors) for key, part in content.items()}
    if kind == "list":
        return [filled(part, tensors) for part in content]
    return content
