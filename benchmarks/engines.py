"""SkyMask's simulation beside Flower's and pfl-research's: `python -m benchmarks.engines`.

Rounds per second of 100 clients of a linear model. All do the same work: every client takes part
in every round with one step on all its samples, and the model moves by the mean of the updates;
nothing is evaluated. Each other engine runs in a process of the interpreter that `--python` names
(its environment; give it once for each), and goes as many rounds as its speed allows. SkyMask goes
as many just after, and the weights at the end are compared: no table without agreement.

Rounds per second are the mean from the end of one round to the end of the last, without the first
rounds: Flower's take one of a few lengths, as its engine polls, and a median jumps between them.
Medians are in the JSON file. SkyMask's rounds include what its simulation does besides: the root
model, the screening of updates, the verdict on each client and the record of the round.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.data import divide
from skymask.randomness import generator

SIZES = ((20, 10), (561, 6))
"""Features and classes: a small linear model, and the one of UCI HAR."""
SAMPLES = 100
"""Of each client, and of the server's root data set."""
LOCAL = sm.LocalSGD(steps=1, batch=SAMPLES, lr=0.1)
SETTLED = 3
"""Rounds after which an engine has settled."""
TOLERANCE = 1e-4
"""Largest distance between two engines' weights, as a share of how far training moved them."""
PAUSE = 1.0
"""Seconds between two engines: threads of the one before wait busily for a while."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
"""Around the other engines, whose workers are processes of one thread each."""


@dataclass(frozen=True)
class Equally:
    """A partition: every client gets as many rows as the others, in their order."""

    def __call__(
        self,
        labels: Tensor,
        classes: int,
        clients: int,
        generator: torch.Generator,
        subjects: Tensor | None = None,
    ) -> list[Tensor]:
        """Row indices of each client."""
        return list(torch.arange(len(labels)).tensor_split(clients))


@dataclass(frozen=True)
class Outcome:
    """What an engine gave."""

    engine: str
    version: str
    ends: list[float]
    """When each round ended, in seconds since the engine was called."""
    weights: Tensor
    """Weights and biases at the end, (d,)."""

    @property
    def rounds(self) -> list[float]:
        """Seconds of each round, but for the first ones."""
        settled = self.ends[SETTLED - 1 :]
        return [after - before for before, after in pairwise(settled)]


def experiment(features: int, classes: int, clients: int) -> sm.Experiment:
    """The work: drawn classes around centres of their own, and a linear model."""
    draw = generator("benchmark of the engines", features, classes)
    n = (clients + 1) * SAMPLES
    labels = torch.randint(classes, (n,), generator=draw)
    centres = torch.randn(classes, features, generator=draw) / features**0.5
    inputs = torch.randn(n, features, generator=draw) + 2 * centres[labels]
    train = sm.Batch(inputs, labels)
    test = sm.Batch(inputs[:SAMPLES], labels[:SAMPLES])
    weight = torch.randn(classes, features, generator=draw) / features**0.5

    def model() -> nn.Linear:
        linear = nn.Linear(features, classes)
        linear.load_state_dict({"weight": weight, "bias": torch.zeros(classes)})
        return linear

    return sm.Experiment(
        data=sm.Dataset("drawn", train, test, classes),
        model=model,
        clients=clients,
        malicious=0.0,
        partition=Equally(),
        local=LOCAL,
        server_lr=1.0,
        eval_every=10**9,
        root_size=SAMPLES,
    )


def own(work: sm.Experiment, rounds: int) -> Outcome:
    """The work in SkyMask's simulation."""
    ends: list[float] = []
    begin = time.perf_counter()
    result = sm.simulate(
        replace(work, rounds=rounds),
        device="cpu",
        watch=lambda record: ends.append(time.perf_counter() - begin),
    )
    return Outcome("skymask", "", ends, result.params)


def other(python: str, folder: Path) -> Outcome:
    """The work in the engine of another environment."""
    script = Path(__file__).with_name("engine_rivals.py")
    done = subprocess.run(
        [python, str(script), str(folder)],
        env=os.environ | QUIET | {"FLWR_HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{python} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    with np.load(folder / "result.npz") as found:
        weights = np.concatenate([found["weight"].reshape(-1), found["bias"]])
        return Outcome(
            str(found["library"]),
            str(found["version"]),
            found["ends"].tolist(),
            torch.from_numpy(weights),
        )


def put(work: sm.Experiment, folder: Path, settings: dict[str, Any]) -> Tensor:
    """Write the task for other engines, with every client's samples as `simulate` divides them.

    Returns the first weights and biases, (d,).
    """
    assert isinstance(work.data, sm.Dataset)
    assert callable(work.model)
    assert work.clients
    assert work.partition
    held = divide(work.data, work.clients, work.partition, SAMPLES, work.root_bias, work.seed)
    first = {name: part.numpy() for name, part in work.model().state_dict().items()}
    shape = (work.clients, SAMPLES)
    np.savez(
        folder / "data.npz",
        inputs=held.clients.inputs.view(*shape, -1).numpy(),
        labels=held.clients.labels.view(shape).numpy(),
        **first,
    )
    (folder / "task.json").write_text(json.dumps(settings | {"lr": LOCAL.lr}))
    return sm.flatten(work.model())


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of an engine's runs: the start of the first, the whole length of the last."""
    rounds = [seconds for outcome in outcomes for seconds in outcome.rounds]
    last = outcomes[-1].ends
    return {
        "engine": outcomes[-1].engine,
        "rounds": len(last),
        "per_second": 1 / statistics.mean(rounds),
        "median_per_second": 1 / statistics.median(rounds),
        "first_round_after": outcomes[0].ends[0],
        "whole": last[-1],
    }


def measure(
    work: sm.Experiment, pythons: Sequence[str], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each engine took for the work, SkyMask first; all with the same result."""
    ours, rows = [own(work, SETTLED)], []
    for python in pythons:
        with tempfile.TemporaryDirectory() as name:
            first = put(work, Path(name), settings)
            time.sleep(PAUSE)
            theirs = other(python, Path(name))
        time.sleep(PAUSE)
        ours.append(own(work, len(theirs.ends)))
        expected = ours[-1].weights
        apart = float((theirs.weights - expected).norm() / (expected - first).norm())
        if not apart <= TOLERANCE:
            raise SystemExit(f"{theirs.engine} computes something else ({apart:.2g} apart)")
        rows.append(figures([theirs]) | {"version": theirs.version, "apart": apart})
    rows = [figures(ours), *rows]
    for row in rows:
        row["ratio"] = rows[0]["per_second"] / row["per_second"]
        print(row, flush=True)
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="of another environment")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=300, help="of pfl-research")
    parser.add_argument("--flower-rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the other engines")
    o = parser.parse_args()
    if not o.python or min(o.rounds, o.flower_rounds) <= SETTLED:
        parser.error(f"needs another environment's --python, and more than {SETTLED} rounds")
    settings = {"rounds": {"flwr": o.flower_rounds, "pfl": o.rounds}, "workers": o.workers}
    found = []
    for features, classes in SIZES:
        rows = measure(experiment(features, classes, o.clients), o.python, settings)
        found.append({"features": features, "classes": classes, "engines": rows})
    table = markdown_table(
        [
            "features x classes",
            "engine",
            "rounds/s",
            "skymask is",
            "first round after",
            "whole run",
            "apart",
        ],
        [
            [
                f"{size['features']} x {size['classes']}",
                row["engine"],
                f"{row['per_second']:.3g}",
                f"{row['ratio']:.1f} times as fast" if "apart" in row else "-",
                f"{row['first_round_after']:.1f} s",
                f"{row['rounds']} rounds in {row['whole']:.1f} s",
                f"{row['apart']:.0e}" if "apart" in row else "-",
            ]
            for size in found
            for row in size["engines"]
        ],
    )
    told = conditions(torch.device("cpu"))
    told["versions"] |= {
        row["engine"]: row["version"] for row in found[0]["engines"] if "version" in row
    }
    for python in o.python:  # without the path of this machine
        told["command"] = told["command"].replace(python, "/".join(Path(python).parts[-3:]))
    write(
        "bench/engines-cpu",
        f"Rounds per second of {o.clients} clients of a linear model, {SAMPLES} samples each",
        table,
        {"conditions": told, **vars(o) | {"python": len(o.python)}, "sizes": found},
    )


if __name__ == "__main__":
    main()
