"""How what is asked of SkyMask's speed is measured: rounds, local training, stages, runs."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skymask as sm
from benchmarks import straightforward
from benchmarks.stage import STEPS, alternate, captured
from skymask.clients import plan
from skymask.data import divide, load
from skymask.flat import flat_model, flatten
from skymask.local_sgd import LocalSGD, batch_rows
from skymask.masks import kind_of_state, memory
from skymask.randomness import generator
from skymask.types import ClientData

PAPER = sm.PaperSkyMask(100.0, relative=True, steps=STEPS, tolerance=0)
DEFAULT = sm.SkyMask(steps=STEPS, tolerance=0)
CLOSE, HALF = 5e-2, 0.3
"""Largest distance of two updates that are the same, in their length: TF32 and batch norm.

In half precision each client's rounding is its own; images that are noise make the most of it.
"""


@dataclass(frozen=True)
class Setting:
    """Where and how long everything is measured."""

    device: torch.device
    data_dir: str | None
    repeats: int
    rounds: int

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


def once_more(rule: sm.SkyMask, updates: Tensor, round: sm.Round) -> sm.Round:
    """The same round once more, as in all rounds but the first."""
    return replace(round, memory=rule(updates, round).memory)


def round_seconds(o: Setting, data: Any, defence: sm.Defence, **settings: Any) -> float:
    """Median seconds of a round."""
    experiment = sm.Experiment(
        data=data, attack=sm.MinSum(), defence=defence, rounds=o.rounds + 4, eval_every=10**6,
        **settings,
    )  # fmt: skip
    records = sm.simulate(experiment, o.device, data_dir=o.data_dir).rounds[3:-1]
    return statistics.median(record["seconds"] for record in records)


def straightforward_round(o: Setting) -> float:
    """Median seconds of a round as one would first write it."""
    data = clients_of(o, "fashion-mnist")
    _, round = captured("fashion-mnist", o.device, o.data_dir)
    module, local = round.loss.model.module, LocalSGD(1, 32, 0.5)
    train = straightforward.train_by_vmap if o.cuda else straightforward.train_in_turn
    malicious = torch.arange(100, device=o.device) < 20

    def task() -> Tensor:
        rows = batch_rows(data, range(100), local, 1)
        updates = train(module, F.cross_entropy, data, rows, local.lr)
        sent = sm.MinSum().poison_updates(updates, malicious, round)
        accepted = straightforward.skymask(sent, round, STEPS).to(o.device)
        return round.params + 0.5 * sent[accepted].mean(0)

    return alternate({"round": task}, o.repeats, o.device)["round"]


def training_seconds(
    o: Setting, module: nn.Module, data: ClientData, local: LocalSGD, close: float = CLOSE
) -> tuple[float, float]:
    """Median seconds of local training, the library's and a straightforward one's."""
    module = module.to(o.device)
    model, everybody = flat_model(module).to(o.device), range(len(data.counts))
    params, buffers = model.initial()
    trainer, rows = plan(model, F.cross_entropy, local, data), batch_rows(data, everybody, local, 1)
    plainly = straightforward.train_by_vmap if o.cuda else straightforward.train_in_turn
    module.train()
    tasks: dict[str, Callable[[], Any]] = {
        "plain": lambda: plainly(module, F.cross_entropy, data, rows, local.lr),
        "ours": lambda: trainer(params, buffers, data, everybody, 1)[0],
    }
    one, other = tasks["plain"](), tasks["ours"]()
    apart = float((one - other).norm() / one.norm())
    if apart > close:
        raise RuntimeError(f"the straightforward training and the library's are {apart:.1%} apart")
    seconds = alternate(tasks, o.repeats, o.device)
    return seconds["ours"], seconds["plain"]


def decision(
    o: Setting, module: nn.Module, shape: tuple[int, ...], n: int
) -> tuple[float, int, int, int]:
    """Seconds of SkyMask's stage, d, and the GPU's peak memory beside what is foretold."""
    draw = generator("targets", n)
    root = torch.rand(100, *shape, generator=draw), torch.arange(100) % 10
    root = tuple(part.to(o.device) for part in root)
    module, local = module.to(o.device), LocalSGD(1, 32, 0.05)
    d = flatten(module).numel()
    round = sm.server_round(module, F.cross_entropy, root, local)
    updates = torch.empty(n, d, device=o.device)
    for row in updates:
        noise = torch.randn(d, generator=draw) if d < 10**6 else torch.randn(d, device=o.device)
        row.copy_(noise.to(o.device)).mul_(round.server_update.norm() / row.norm())
        row += round.server_update
    later = once_more(DEFAULT, updates, round)
    if o.cuda:
        torch.cuda.reset_peak_memory_stats(o.device)
        held = torch.cuda.memory_allocated(o.device)
    seconds = alternate({"stage": lambda: DEFAULT(updates, later)}, 3, o.device)["stage"]
    peak = torch.cuda.max_memory_allocated(o.device) - held if o.cuda else 0
    return seconds, d, peak, memory(n + 1, d, d, copies=kind_of_state(updates).copies)


def clients_of(o: Setting, data: str) -> ClientData:
    """The clients' samples of an experiment with `data`."""
    e = sm.Experiment(data=data).resolved()
    dataset = load(data, None if o.data_dir is None else Path(o.data_dir), e.seed)
    assert e.clients is not None
    assert e.partition is not None
    parts = divide(dataset, e.clients, e.partition, e.root_size, e.root_bias, e.seed, e.root_noise)
    return parts.clients.to(o.device)


def random_images(n: int) -> ClientData:
    """Random images of CIFAR-10's size, 500 for each of n clients."""
    draw = generator("images", n)
    inputs = torch.rand(500 * n, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (500 * n,), generator=draw)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ClientData(inputs, labels, torch.arange(n + 1) * 500, 10).to(device)


def cifar(o: Setting) -> Any:
    """CIFAR-10, or as many random images."""
    try:
        return load("cifar-10", None if o.data_dir is None else Path(o.data_dir), 1)
    except sm.InputError:
        draw = generator("cifar")
        parts = [
            sm.Batch(torch.rand(n, 3, 32, 32, generator=draw), torch.arange(n) % 10)
            for n in (50_000, 1000)
        ]
        return sm.Dataset("images", *parts, classes=10)


def rounds_per_second(o: Setting, data: str, runs: int) -> float:
    """Of so many runs side by side, all together; start and end of the programs left out."""
    rounds = 400 if data == "har" else 30 * o.rounds // 10
    command = [sys.executable, "-m", "skymask.cli", "run", data, "--attack", "min-sum"]
    command += ["--defence", "skymask", "--rounds", str(rounds), "--device", str(o.device)]
    command += ["--eval-every", "1000000", "--json"]
    command += ["--data-dir", o.data_dir] if o.data_dir else []
    with _multi_process_service(o):
        ran = [
            subprocess.Popen(
                [*command, "--seed", str(seed)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // runs))},
                text=True,
            )
            for seed in range(1, runs + 1)
        ]
        told = [json.loads(run.communicate()[0].splitlines()[-1]) for run in ran]
    return sum(rounds / each["seconds"] for each in told)


@contextmanager
def _multi_process_service(o: Setting) -> Iterator[None]:
    """NVIDIA's daemon that lets several processes use a GPU at the same time, if it is there."""
    control = shutil.which("nvidia-cuda-mps-control") if o.cuda else None
    if control is not None:
        subprocess.run([control, "-d"], check=False, capture_output=True)
    try:
        yield
    finally:
        if control is not None:
            subprocess.run([control], input="quit\n", text=True, check=False, capture_output=True)
