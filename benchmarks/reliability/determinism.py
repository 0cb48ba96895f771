"""Whether the same seed gives the same model: again, resumed, in parts, with other threads."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skymask import compiled, masks, preparation
from skymask.attacks import LabelFlip, MinSum
from skymask.data import Groups
from skymask.defences import FedAvg, Krum, SkyMask
from skymask.experiment import Experiment
from skymask.simulation import simulate

TITLE = "The same seed, the same model"
COLUMNS = ("experiment", "compared", "largest difference", "same bits", "same verdicts")

Trained = tuple[Tensor, list[Any]]
"""Parameters (d,), and who was rejected in each round."""


def experiments(seed: int, *, thorough: bool) -> Iterator[tuple[str, Experiment]]:
    """Small runs: rules with and without masks, attacks that train and that craft."""
    common: dict[str, Any] = {"clients": 12, "malicious": 0.25, "rounds": 6, "seed": seed}
    for name, defence, attack in (
        ("skymask, label-flip", SkyMask(), LabelFlip()),
        ("skymask, min-sum", SkyMask(), MinSum()),
        ("fedavg, label-flip", FedAvg(), LabelFlip()),
        ("krum, min-sum", Krum(), MinSum()),
    ):
        digits = Experiment(
            data="digits", partition=Groups(0.5), defence=defence, attack=attack, **common
        )
        yield f"digits, {name}", digits
        if thorough:
            yield f"Fashion-MNIST, {name}", replace(digits, data="fashion-mnist", rounds=3)


def measure(seed: int, *, thorough: bool) -> list[dict[str, object]]:
    """Each experiment and each way to run it; Fashion-MNIST with its CNN if `thorough`."""
    rows: list[dict[str, object]] = []
    for name, experiment in experiments(seed, thorough=thorough):
        with _threads(1):
            usual = trained(experiment)
        for how, way in WAYS.items():
            params, verdicts = way(experiment)
            gap = float((params - usual[0]).abs().max())
            rows.append(
                {
                    "experiment": name,
                    "compared": how,
                    "largest difference": f"{gap:.1e}" if gap else "0",
                    "same bits": "yes" if params.equal(usual[0]) else "no",
                    "same verdicts": "yes" if verdicts == usual[1] else "no",
                }
            )
    return rows


def trained(experiment: Experiment) -> Trained:
    """The run's end."""
    result = simulate(experiment, "cpu")
    return result.params, [record["rejected"] for record in result.rounds]


def again(experiment: Experiment) -> Trained:
    """In the same process, once more."""
    with _threads(1):
        return trained(experiment)


def elsewhere(experiment: Experiment) -> Trained:
    """In a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(again, (experiment,))


def in_chunks(experiment: Experiment) -> Trained:
    """Clients trained five at a time instead of all that fit."""
    with _threads(1), _replaced(preparation, "plan", _in_fives):
        return trained(experiment)


def in_blocks(experiment: Experiment) -> Trained:
    """Masks worked on in a thousand entries at a time, or 50 columns where that is compiled."""
    plain = _replaced(masks, "_BLOCK_ENTRIES", {"cpu": 1000})
    with _threads(1), plain, _replaced(compiled, "_COLUMNS", 50):
        return trained(experiment)


def resumed(experiment: Experiment) -> Trained:
    """Stopped after half of the rounds and gone on with from the checkpoint."""

    def stop(record: dict[str, Any]) -> None:
        if record["round"] == (experiment.rounds or 0) // 2 - 1:
            raise InterruptedError

    with _threads(1), tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        with suppress(InterruptedError):
            simulate(experiment, "cpu", folder, watch=stop)
        result = simulate(experiment, "cpu", folder, resume=True)
    return result.params, [record["rejected"] for record in result.rounds]


def with_two_threads(experiment: Experiment) -> Trained:
    """With two threads instead of one."""
    with _threads(2):
        return trained(experiment)


WAYS: dict[str, Callable[[Experiment], Trained]] = {
    "again": again,
    "in another process": elsewhere,
    "stopped and resumed": resumed,
    "five clients at a time": in_chunks,
    "masks in small blocks": in_blocks,
    "two threads": with_two_threads,
}
"""How else a run can be made."""

_PLAN = preparation.plan


def _in_fives(*args: Any, **settings: Any) -> Any:
    return _PLAN(*args, **settings | {"chunk": 5})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
