"""What the SkyMask stage costs as n, d and the mask steps grow: `python -m benchmarks.cost`.

The stage (a rule's decision on one round: root evidence, masks, clusters, mean) is timed on a grid
of sizes, on one process or on several that share out the columns (`--processes`), and a cost model
is fitted:

    seconds = a + b n d + c n d steps + e d steps + f n^2

with weights that are not negative and the least sum of squared relative errors. It then foretells
the sizes that a person asks for. The models are perceptrons with two hidden layers of the same
width, of about d parameters; updates are the server's own plus noise, because nothing but their
size has a say in the time. Figures are medians after a turn to warm up. Memory is the most that
torch held beside the updates, on a GPU, next to what `skymask.masks.memory` foretells.
"""

import argparse
import math
import os
import socket
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import nn

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.environment import free_memory, reuse_memory
from skymask.masks import kind_of_state, memory
from skymask.randomness import generator

FEATURES = 784
CLASSES = 10
ROOT = 100
"""Samples of the root data set."""


@dataclass(frozen=True)
class Size:
    """A stage: clients, parameters of a model, mask steps."""

    clients: int
    parameters: int
    steps: int = 20


@dataclass(frozen=True)
class Measured:
    """What a stage took."""

    size: Size
    seconds: float
    peak: int | None
    """Bytes on each GPU beside the updates."""
    foretold: int


def perceptron(parameters: int) -> nn.Module:
    """A module of about so many parameters."""
    beside = FEATURES + CLASSES + 2
    width = max(1, round((math.sqrt(beside**2 + 4 * (parameters - CLASSES)) - beside) / 2))
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def stage(size: Size, device: torch.device, repeats: int, shared: bool) -> Measured:
    """Time the decision on one round; with `shared`, of this process's part of the columns."""
    model = perceptron(size.parameters).to(device)
    draw = generator("cost", size.clients, size.parameters)
    inputs = torch.rand(ROOT, FEATURES, generator=draw).to(device)
    labels = (torch.arange(ROOT) % CLASSES).to(device)
    start = sm.server_round(model, F.cross_entropy, (inputs, labels), sm.LocalSGD(1, ROOT, 0.1))
    d = len(start.params)
    shard = sm.shard(d) if shared else sm.Shard()
    own = shard.part(start.server_update)
    updates = torch.empty(size.clients, len(own), device=device)
    noise = torch.Generator(device).manual_seed(shard.rank)
    for row in updates:
        row.normal_(generator=noise).mul_(own.std()).add_(own)
    rule, round = sm.SkyMask(steps=size.steps, tolerance=0.0), replace(start, shard=shard)
    round = replace(round, memory=rule(updates, round).memory)  # as in all rounds but the first
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    seconds = []
    for _ in range(repeats + 1):
        _together(device, shared)
        begin = time.perf_counter()
        rule(updates, round)
        _together(device, shared)
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    foretold = memory(size.clients + 1, len(own), d, copies=kind_of_state(updates).copies)
    return Measured(replace(size, parameters=d), statistics.median(seconds[1:]), peak, foretold)


def _together(device: torch.device, shared: bool) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if shared:
        dist.barrier()


def one_of(rank: int, ranks: int, port: int, sizes: list[Size], o: Any, folder: str) -> None:
    """What one of several processes does: measure all sizes, and the first one keeps them."""
    cuda = o.device.startswith("cuda")
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl" if cuda else "gloo", address, rank=rank, world_size=ranks)
    try:
        found = [stage(size, device, o.repeats, shared=True) for size in sizes]
    finally:
        dist.destroy_process_group()
    if rank == 0:
        torch.save([asdict(each) for each in found], Path(folder) / "found.pt")


def measured(sizes: list[Size], processes: int, o: Any) -> list[Measured]:
    """All `sizes` on so many processes."""
    if processes == 1:
        return [stage(size, torch.device(o.device), o.repeats, shared=False) for size in sizes]
    with socket.socket() as free, TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.spawn(one_of, (processes, port, sizes, o, folder), processes)
        found = torch.load(Path(folder) / "found.pt", weights_only=True)
    return [Measured(**each | {"size": Size(**each["size"])}) for each in found]


TERMS = ("1", "n d", "n d steps", "d steps", "n^2")


def terms(size: Size) -> list[float]:
    """What the cost model multiplies its weights with."""
    n, d, steps = size.clients, size.parameters, size.steps
    return [1.0, n * d, n * d * steps, d * steps, n * n]


def fitted(found: list[Measured]) -> tuple[np.ndarray[Any, Any], float]:
    """The weights of `TERMS`, and the largest relative error of a measured size."""
    seconds = np.array([each.seconds for each in found])
    relative = np.array([terms(each.size) for each in found]) / seconds[:, None]
    scale = relative.max(0)
    weights = nnls(relative / scale, np.ones(len(found)))[0] / scale
    return weights, float(np.abs(relative @ weights - 1).max())


def main() -> None:
    """Run the benchmark and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clients", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e5, 4e5, 1.6e6])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--largest", type=float, default=4e8, help="leave out n d beyond this")
    parser.add_argument("--large", type=float, nargs="+", default=[4e6], help="d, 100 clients")
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="for the large ones")
    parser.add_argument("--foretell", type=float, nargs="+", default=[7e6, 1e9], help="d")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--suffix", default="", help="of the files' name")
    o = parser.parse_args()
    reuse_memory()
    device = torch.device(o.device)
    grid = [
        Size(n, int(d), steps)
        for n in o.clients
        for d in o.parameters
        for steps in o.steps
        if n * d <= o.largest
    ]
    large = [Size(100, int(d)) for d in o.large]
    found = measured(grid, 1, o)
    several = {processes: measured(large, processes, o) for processes in sorted({1, *o.processes})}
    told = conditions(device)
    if device.type == "cuda":
        told["device"] = f"{max(several)}x {torch.cuda.get_device_name(device)}"
    result: dict[str, Any] = {
        "conditions": told,
        "grid": [asdict(each) for each in found],
        "shared": {str(ranks): [asdict(each) for each in of] for ranks, of in several.items()},
    }
    if len(found) > len(TERMS):
        weights, error = fitted(found)
        tables = [
            _grid_table(found, weights),
            _model_table(weights, error),
            _shared_table(several),
            _foretold_table([Size(500, int(d)) for d in o.foretell], weights, device),
        ]
        result["weights"] = dict(zip(TERMS, weights.tolist(), strict=True))
        result["largest_relative_error"] = error
    else:  # too few sizes for a model
        tables = [_shared_table(several)]
    name = f"bench/cost-{device.type}{o.suffix}"
    write(name, "What the SkyMask stage costs", "\n".join(tables), result)


def _grid_table(found: list[Measured], weights: np.ndarray[Any, Any]) -> str:
    rows = [
        [
            f"{each.size.clients:,}",
            f"{each.size.parameters:,}",
            str(each.size.steps),
            f"{1e3 * each.seconds:,.1f}",
            f"{1e3 * float(np.dot(terms(each.size), weights)):,.1f}",
            _megabytes(each.peak),
            _megabytes(each.foretold),
        ]
        for each in found
    ]
    head = ["n", "d", "steps", "ms", "by the model, ms", "memory, MB", "foretold, MB"]
    return markdown_table(head, rows)


def _model_table(weights: np.ndarray[Any, Any], error: float) -> str:
    rows = [[name, f"{weight:.3g}"] for name, weight in zip(TERMS, weights, strict=True)]
    head = ["term", f"seconds of each (largest error {100 * error:.0f} %)"]
    return markdown_table(head, rows)


def _shared_table(several: dict[int, list[Measured]]) -> str:
    rows = [
        [
            f"{each.size.parameters:,}",
            str(ranks),
            f"{each.seconds:.3f}",
            f"{alone.seconds / each.seconds:.2f}",
            _megabytes(each.peak),
            _megabytes(each.foretold),
        ]
        for ranks, of in several.items()
        for each, alone in zip(of, several[1], strict=True)
    ]
    head = ["d, 100 clients", "processes", "s", "times as fast", "memory of each, MB", "foretold"]
    return markdown_table(head, rows)


def _foretold_table(sizes: list[Size], weights: np.ndarray[Any, Any], device: torch.device) -> str:
    copies = kind_of_state(torch.empty(0, device=device)).copies
    rows = []
    for size in sizes:
        n, d = size.clients, size.parameters
        updates = 4 * n * d
        needed = updates + memory(n + 1, d, d, copies=copies)
        fewest = math.ceil(needed / (0.9 * (free_memory(device) or needed)))
        seconds = float(np.dot(terms(size), weights))
        rows.append([f"{n:,}", f"{d:,}", f"{updates / 1e9:,.0f}", f"{needed / 1e9:,.0f}"])
        rows[-1] += [f"{seconds:,.1f}", str(fewest)]
    head = ["n", "d", "updates, GB", "with the stage, GB", "s on one", "of these at least"]
    return markdown_table(head, rows)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


if __name__ == "__main__":
    main()
