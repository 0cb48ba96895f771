"""Hands a run's numbers, round by round, to a tracker that you use already.

Each of these gives what `simulate(watch=...)` takes:

    with tracking.tensorboard("logs/run") as watch:
        simulate(experiment, watch=watch)

They need the extras `skymask[tensorboard]` and `skymask[mlflow]`. A run that is resumed goes on at
the step where it was.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skymask.errors import InputError, require
from skymask.experiment import Experiment, to_json

Watch = Callable[[dict[str, Any]], None]
"""Called with each round's record."""


@contextmanager
def tensorboard(folder: str | Path) -> Iterator[Watch]:
    """Write scalars into `folder`, which `tensorboard --logdir` shows.

    Raises `InputError` where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    with SummaryWriter(str(folder)) as writer:

        def watch(record: dict[str, Any]) -> None:
            for name, value in numbers(record).items():
                writer.add_scalar(name, value, record["round"] + 1)

        yield watch


@contextmanager
def mlflow(
    experiment: Experiment, uri: str | None = None, name: str | None = None
) -> Iterator[Watch]:
    """Log metrics, and the experiment's settings as parameters, as one run of MLflow.

    Args:
        experiment: whose settings are logged; its data set names MLflow's experiment.
        uri: the tracking server or store; MLflow's own default without it (MLFLOW_TRACKING_URI).
        name: of the run.

    The run is marked as failed where the block raises. Raises `InputError` where MLflow is not
    installed or cannot use `uri`. Nothing but the store at `uri` is talked to: MLflow's telemetry
    is switched off.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise _missing("mlflow") from None
    told = to_json(experiment.resolved())
    settings = [Param(key, str(value)[:500]) for key, value in _flat(told)]
    kind = f"skymask {told['data']}"
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(kind)
        place = client.create_experiment(kind) if found is None else found.experiment_id
        run = client.create_run(place, run_name=name).info.run_id
        client.log_batch(run, params=settings)
    except MlflowException as error:
        raise InputError(f"MLflow cannot keep the run at {uri}: {error}") from error

    def watch(record: dict[str, Any]) -> None:
        now, step = int(1000 * time.time()), record["round"] + 1
        client.log_batch(
            run, [Metric(key, value, now, step) for key, value in numbers(record).items()]
        )

    try:
        yield watch
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round's record, by name; `stages/` and `evidence/` have several each."""
    named = dict(record)
    found = {
        name: named[name]
        for name in ("accuracy", "loss", "attack_success", "fpr", "fnr", "update_norm", "seconds")
        if named.get(name) is not None
    }
    found["rejected"] = len(named.get("rejected") or ())
    for group in ("stages", "evidence"):
        found |= {f"{group}/{name}": value for name, value in (named.get(group) or {}).items()}
    return {name: float(value) for name, value in found.items()}


TRACKERS = ("tensorboard", "mlflow")


def tracker(text: str, experiment: Experiment, name: str) -> Any:
    """The hook that `text` asks for: `tensorboard:FOLDER` or `mlflow:URI`; `name` is the run's.

    Raises `InputError` for anything else.
    """
    kind, _, where = text.partition(":")
    wanted = "tensorboard:FOLDER or mlflow:URI"
    require(kind in TRACKERS and bool(where), "track", text, wanted)
    if kind == "tensorboard":
        return tensorboard(Path(where) / name)
    return mlflow(experiment, where, name)


def _flat(told: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(told, dict):
        for key, value in told.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, told


def _missing(extra: str) -> InputError:
    return InputError(f"this needs {extra}: pip install 'skymask[{extra}]'")
