"""Where a federation stands after a round, so that the next start goes on from there.

Flower itself cannot resume a run. Kept are the global model, the defence's memory, the nodes'
standings, the metrics so far, and what the inner strategy remembers (a server optimiser's
moments), found by comparing its attributes with those that it started with. JSON and safetensors
only: nothing is pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from skymask.errors import InputError, told
from skymask.flower.policy import Standing
from skymask.records import NOT_A_CHECKPOINT, filled, outlined, replace_file, writing

_METRICS = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)


@dataclass(frozen=True)
class Federation:
    """Where a federation stands after `rounds` rounds."""

    rounds: int
    arrays: ArrayRecord
    memory: Any
    """The defence's memory."""
    standings: dict[int, Standing]
    inner: dict[str, Any]
    """What the inner strategy remembers, as `remembered` gives it."""
    result: Result = field(default_factory=Result)
    about: dict[str, str] = field(default_factory=dict)
    """Names of the strategy and the defence: another one cannot go on from here."""


def save_federation(folder: Path, state: Federation) -> None:
    """Replace the checkpoint in `folder`, atomically."""
    tensors: dict[str, Tensor] = {}
    metrics = {
        name: {str(index): dict(record) for index, record in getattr(state.result, name).items()}
        for name in _METRICS
    }
    standings = {str(node): asdict(standing) for node, standing in state.standings.items()}
    parts = {
        "arrays": _plain(state.arrays),
        "memory": state.memory,
        "standings": standings,
        "inner": state.inner,
        "metrics": metrics,
        "about": state.about,
    }
    header = {name: json.dumps(outlined(part, name, tensors)) for name, part in parts.items()}
    header["rounds"] = str(state.rounds)
    stored = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "federation.safetensors", save(stored, header))


def load_federation(folder: Path, device: torch.device) -> Federation | None:
    """The checkpoint in `folder`, or None where there is none.

    Raises `InputError` where the file is not a checkpoint of a federation.
    """
    path = folder / "federation.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts = {
            name: filled(json.loads(header[name]), tensors)
            for name in ("arrays", "standings", "inner", "metrics", "about")
        }
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        memory = filled(json.loads(header["memory"]), on_device)
        result = Result()
        for name in _METRICS:
            records = {int(i): MetricRecord(values) for i, values in parts["metrics"][name].items()}
            setattr(result, name, records)
        result.arrays = _restored(parts["arrays"])
        for value in parts["inner"].values():
            _restored(value)
        standings = {int(node): Standing(**kept) for node, kept in parts["standings"].items()}
        return Federation(
            int(header["rounds"]),
            result.arrays,
            memory,
            standings,
            parts["inner"],
            result,
            parts["about"],
        )
    except NOT_A_CHECKPOINT as error:
        raise InputError(f"{path} is not a checkpoint of a federation: {error}") from error


def resumable(
    folder: Path, about: Mapping[str, str], arrays: ArrayRecord, device: torch.device
) -> Federation | None:
    """The checkpoint in `folder` of a federation `about` this, with a model like `arrays`.

    None where there is none. Raises `InputError` where it is another federation's.
    """
    state = load_federation(folder, device)
    if state is None:
        return None
    if state.about != about:
        raise InputError(
            f"checkpoint {folder} was made with {_pairs(state.about)} but this is {_pairs(about)}; "
            "take another folder for another federation"
        )
    if _shapes(state.arrays) != _shapes(arrays):
        raise InputError(
            f"checkpoint {folder} holds another model than initial_arrays; "
            "take another folder for another model"
        )
    return state


def remembered(strategy: Strategy) -> tuple[dict[str, Any], list[str]]:
    """The attributes of `strategy` that can be kept, and the names of those that cannot.

    A strategy inside another one (`strategy.strategy`) is taken apart too, by dotted names.
    """
    kept: dict[str, Any] = {}
    other: list[str] = []
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            inner, strange = remembered(value)
            kept |= {f"{name}.{key}": part for key, part in inner.items()}
            other += [f"{name}.{key}" for key in strange]
            continue
        try:
            kept[name] = _plain(value)
        except TypeError:
            if not callable(value):
                other.append(name)
    return kept, other


def changed(start: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `now` that differ from `start`: what a strategy learnt, not how it was set up."""
    return {key: v for key, v in now.items() if key not in start or not _same(start[key], v)}


def remind(strategy: Strategy, inner: Mapping[str, Any]) -> None:
    """Give `strategy` back what `changed` kept of it. Raises `InputError` if it is another's."""
    for name, value in inner.items():
        *path, last = name.split(".")
        target: Any = strategy
        for step in path:
            target = vars(target).get(step) if isinstance(target, Strategy) else None
        # What a strategy remembers is its own attributes; its methods are none of them.
        held = isinstance(target, Strategy) and (last in vars(target) or not hasattr(target, last))
        if not held:
            kind = type(strategy).__name__
            raise InputError(f"the checkpoint holds {told(name)}, which a {kind} does not keep")
        setattr(target, last, _restored(value))


def _plain(value: Any) -> Any:
    """`value` in dicts with string keys, lists, tensors, numbers and strings, tagged by its type.

    Raises `TypeError` for anything else.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"ndarray": torch.from_numpy(np.array(value))}
    if isinstance(value, ArrayRecord):
        return {"arrays": {key: _plain(array.numpy()) for key, array in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(part) for key, part in value.items()}}
    raise TypeError(type(value).__name__)


def _restored(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_restored(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "ndarray":
        return content.numpy()
    parts = {key: _restored(part) for key, part in content.items()}
    if kind == "arrays":
        return ArrayRecord({key: Array(part) for key, part in parts.items()})
    return parts


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(one.equal(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _pairs(about: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items())


def _shapes(arrays: ArrayRecord) -> dict[str, tuple[int, ...]]:
    return {key: tuple(array.shape) for key, array in arrays.items()}
