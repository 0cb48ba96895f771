"""The SkyMask stage beside a straightforward one, and its parts: `python -m benchmarks.stage`.

All decide on the same round of Fashion-MNIST (n = 100 clients, 20 of them malicious, Min-Sum; the
paper's CNN, d = 139,960), a few rounds into training, with 20 mask steps. They take turns in one
process; figures are medians. The paper's rule is held against the straightforward one first, by its
verdicts and the share of equal bits. The library's own default does more than the paper's rule: its
parts stand beside that rule's.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import skymask as sm
from benchmarks import straightforward
from benchmarks.writing import conditions, markdown_table, write
from skymask.defences import clusters
from skymask.defences import paper as the_papers
from skymask.defences import skymask as our_own
from skymask.environment import reuse_memory
from skymask.masks import MaskTraining

STEPS = 20
_PAUSE = 0.2
"""Seconds."""
PARTS: dict[str, list[tuple[Any, str]]] = {
    "masks and their products": [(our_own, "begin_masks"), (the_papers, "mask_summary")],
    "root evidence": [(our_own, "_observed")],
    "copies": [(our_own, "copied")],
    "clustering": [
        (clusters.Clustering, "__call__"),
        (the_papers, "principal_coordinates"),
        (the_papers, "two_gaussians"),
    ],
}
"""Where each part of a stage is computed; what is left is the rest."""


def captured(data: str, device: torch.device, data_dir: str | None) -> tuple[Tensor, sm.Round]:
    """The updates and the round that a defence sees in the third round of a run."""
    seen: list[tuple[Tensor, sm.Round]] = []

    def keep(updates: Tensor, round: sm.Round) -> sm.Decision:
        seen.append((updates.clone(), round))
        return sm.FedAvg()(updates, round)

    experiment = sm.Experiment(data=data, attack=sm.MinSum(), defence=keep, rounds=3)
    sm.simulate(experiment, device, data_dir=data_dir)
    return seen[-1]


def alternate(
    tasks: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each task; they take turns.

    Each is called once more before it is timed, because after another one that has used much memory
    it has to ask the system for its own; and with a pause, because libraries' threads keep their
    cores busy for a while after the last operation, in wait for the next one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            task()
            _wait(device)
            time.sleep(_PAUSE)
            begin = time.perf_counter()
            task()
            _wait(device)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_parts(
    rules: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Median seconds of each part of each rule, which take turns; the device is waited for."""
    seen: dict[str, dict[str, list[float]]] = {rule: {} for rule in rules}
    for turn in range(repeats + 1):
        for rule, call in rules.items():
            _wait(device)
            with _clocked(device) as spent:
                begin = time.perf_counter()
                call()
                _wait(device)
                total = time.perf_counter() - begin
            spent |= {"the rest": total - sum(spent.values()), "in all": total}
            for part, seconds in spent.items() if turn else ():
                seen[rule].setdefault(part, []).append(seconds)
    return {
        rule: {part: statistics.median(values) for part, values in parts.items()}
        for rule, parts in seen.items()
    }


@contextmanager
def _clocked(device: torch.device) -> Iterator[dict[str, float]]:
    """Adds up the seconds that are spent in each of `PARTS` meanwhile."""
    spent = dict.fromkeys(PARTS, 0.0)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            _wait(device)
            begin = time.perf_counter()
            result = function(*args, **options)
            _wait(device)
            spent[part] += time.perf_counter() - begin
            return result

        return call

    with ExitStack() as patches:
        for part, places in PARTS.items():
            for owner, name in places:
                new = clocked(part, getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, new))
        yield spent


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data-dir")
    parser.add_argument("--default-memory", action="store_true", help="leave glibc's malloc alone")
    o = parser.parse_args()
    if not o.default_memory:
        reuse_memory()
    device = torch.device(o.device)
    updates, round = captured("fashion-mnist", device, o.data_dir)
    rule = sm.PaperSkyMask(100.0, relative=True, steps=STEPS, tolerance=0)
    models = torch.cat([updates, round.server_update[None]])
    ours = MaskTraining(steps=STEPS, tolerance=0)(models, lambda at: _slope(round, at)).bits
    theirs = straightforward.train_masks(models, round, STEPS)
    equal = float((ours == theirs).double().mean())
    accepted = straightforward.skymask(updates, round, STEPS)
    if not rule(updates, round).accepted.cpu().equal(accepted) or equal < 0.97:
        raise SystemExit(f"the two disagree: {equal:.1%} of the bits are equal")
    seconds = alternate(
        {
            "straightforward": lambda: straightforward.skymask(updates, round, STEPS),
            "skymask": lambda: rule(updates, round),
        },
        o.repeats,
        device,
    )
    ratio = seconds["straightforward"] / seconds["skymask"]
    table = markdown_table(
        ["SkyMask stage, 20 mask steps", "ms", "ratio", "equal bits"],
        [
            ["straightforward", f"{1e3 * seconds['straightforward']:.1f}", "1", "100 %"],
            ["skymask", f"{1e3 * seconds['skymask']:.1f}", f"{ratio:.1f}", f"{100 * equal:.1f} %"],
        ],
    )
    own = sm.SkyMask(steps=STEPS, tolerance=0)
    later = replace(round, memory=own(updates, round).memory)
    parts = in_parts(
        {"paper": lambda: rule(updates, round), "default": lambda: own(updates, later)},
        o.repeats,
        device,
    )
    rows = [
        [part, *(f"{1e3 * parts[kind][part]:.1f}" for kind in parts), _ratio(parts, part)]
        for part in parts["default"]
    ]
    table += "\n" + markdown_table(
        ["part of the stage", "the paper's rule, ms", "SkyMask's default, ms", "ratio"], rows
    )
    result = {
        "conditions": conditions(device),
        "seconds": seconds,
        "equal_bits": equal,
        "parts": parts,
    }
    write(
        f"bench/stage-{device.type}",
        "The SkyMask stage beside a straightforward one",
        table,
        result,
    )


def _ratio(parts: dict[str, dict[str, float]], part: str) -> str:
    before, after = (parts[kind][part] for kind in ("paper", "default"))
    return f"{after / before:.2f}" if before else ""


def _slope(round: sm.Round, at: Tensor) -> Tensor:
    model = (round.params + at).requires_grad_()
    return torch.autograd.grad(round.loss(model, round.root), model)[0]


if __name__ == "__main__":
    main()
