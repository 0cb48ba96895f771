"""Hostile updates for every defence, and the same ones for other libraries' rules.

`python -m benchmarks.reliability.hostile --python PYTHON` prints the rows. PYTHON is an interpreter
that has ByzFL; without it that library is left out, and the rows say so.

A federation of twelve clients with a small linear model is the honest case; each input is made of
it. Every defence of the catalogue is asked as it comes by default.
"""

import argparse
import json
import logging
import math
import resource
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skymask as sm
from skymask.defences import DEFENCES
from skymask.errors import InputError
from skymask.randomness import generator

TITLE = "Hostile updates, and what became of them"
COLUMNS = (
    "input",
    "defences",
    "decisions",
    "clear errors",
    "crashes",
    "non-finite",
    "slow",
    "memory",
    "which",
    "Flower FedAvg",
    "byzfl: finite",
    "byzfl: non-finite",
    "byzfl: errors",
    "byzfl: slow",
)
SECONDS, MEBIBYTES = 10.0, 512
"""What one decision may take, and by how much the process may grow meanwhile."""
CLIENTS, MANY = 12, 1_000
HERE = 3
"""How many of the twelve are hostile, where not all are."""
Sent = Tensor | list[Any]


@dataclass(frozen=True)
class Case:
    """Updates as they came, and what the server knows of the round."""

    sent: Sent
    round: sm.Round


@cache
def federation(seed: int) -> tuple[Tensor, sm.Round]:
    """Twelve honest updates of a linear model (12, 33), and their round with a root."""
    draw = generator(seed, "hostile updates")
    inputs = torch.randn(12 * 40, 10, generator=draw)
    labels = (inputs @ torch.randn(10, 3, generator=draw)).argmax(1)
    module = nn.Linear(10, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    rows = [slice(40 * i, 40 * i + 40) for i in range(CLIENTS)]
    local = sm.LocalSGD(steps=4, batch=20, lr=0.5)
    round = sm.server_round(
        module,
        F.cross_entropy,
        (inputs[:60], labels[:60]),
        local,
        counts=torch.full((CLIENTS,), 40),
        clients=range(CLIENTS),
    )
    updates = []
    for row in rows:
        weights = torch.zeros(33, requires_grad=True)
        for _ in range(local.steps):
            assert round.loss is not None
            loss = round.loss(weights, sm.Batch(inputs[row], labels[row]))
            (slope,) = torch.autograd.grad(loss, weights)
            weights = (weights - local.lr * slope).detach().requires_grad_()
        updates.append(weights.detach())
    return torch.stack(updates), round


def of(round: sm.Round, n: int) -> sm.Round:
    """The round for n clients."""
    return replace(round, clients=torch.arange(n), counts=torch.full((n,), 40))


def _some(value: float, entries: int = 1) -> Callable[[Tensor, sm.Round], Case]:
    """Three clients with `value` in so many entries of their updates (0: in all)."""

    def make(updates: Tensor, round: sm.Round) -> Case:
        updates[:HERE, : entries or updates.shape[1]] = value
        return Case(updates, round)

    return make


def _all(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, sm.Round], Case]:
    return lambda updates, round: Case(change(updates), of(round, len(change(updates))))


def _rows(change: Callable[[Tensor], Any]) -> Callable[[Tensor, sm.Round], Case]:
    """Three clients whose update is something else altogether: the updates are a list."""

    def make(updates: Tensor, round: sm.Round) -> Case:
        return Case([change(row) if i < HERE else row for i, row in enumerate(updates)], round)

    return make


def _counts(value: float) -> Callable[[Tensor, sm.Round], Case]:
    def make(updates: Tensor, round: sm.Round) -> Case:
        counts = torch.full((CLIENTS,), 40.0, dtype=torch.float64)
        counts[:HERE] = value
        return Case(updates, replace(round, counts=counts))

    return make


def _buffers(value: float) -> Callable[[Tensor, sm.Round], Case]:
    def make(updates: Tensor, round: sm.Round) -> Case:
        buffers = torch.ones(CLIENTS, 4)
        buffers[:HERE, 2] = value
        places = {"norm.running_mean": slice(0, 2), "norm.running_var": slice(2, 4)}
        return Case(updates, replace(round, buffers=buffers, buffer_layers=places))

    return make


def _root_copies(updates: Tensor, round: sm.Round) -> Case:
    assert round.server_update is not None
    updates[0] = round.server_update
    return Case(updates, round)


def _permuted(updates: Tensor, round: sm.Round) -> Case:
    order = torch.arange(CLIENTS - 1, -1, -1)
    return Case(updates[order], replace(round, clients=order))


def _duplicated(updates: Tensor, round: sm.Round) -> Case:
    updates[:HERE] = updates[HERE]
    return Case(updates, round)


CASES: dict[str, Callable[[Tensor, sm.Round], Case]] = {
    "NaN": _some(math.nan),
    "Inf": _some(math.inf),
    "-Inf everywhere": _some(-math.inf, 0),
    "NaN from all": _all(lambda u: torch.full_like(u, math.nan)),
    "subnormal": _some(1e-45, 0),
    "subnormal from all": _all(lambda u: torch.full_like(u, 1e-45)),
    "1e38": _some(1e38),
    "1e38 from all": _all(lambda u: torch.full_like(u, 1e38)),
    "1e18, just short enough": _some(1e18, 0),
    "1e18 from all": _all(lambda u: 1e18 * u.sign()),
    "zeros from all": _all(torch.zeros_like),
    "wrong shape": _rows(lambda row: row[:-1]),
    "wrong number of dimensions": _rows(lambda row: row[None]),
    "wrong shape from all": _all(lambda u: u[:, :-1]),
    "no tensor": _rows(lambda row: "weights"),
    "wrong dtype": _rows(lambda row: row.double()),
    "integers from all": _all(lambda u: u.long()),
    "half precision from all": _all(lambda u: u.half()),
    "empty update": _rows(lambda row: row[:0]),
    "no client": _all(lambda u: u[:0]),
    "no parameter": _all(lambda u: u[:, :0]),
    "duplicated": _duplicated,
    "all equal": _all(lambda u: u[:1].repeat(CLIENTS, 1)),
    "all malicious: turned round": _all(lambda u: -u),
    "all malicious: noise": _all(
        lambda u: 100 * torch.randn(u.shape, generator=generator("hostile noise"))
    ),
    "one client": _all(lambda u: u[:1]),
    "two clients": _all(lambda u: u[:2]),
    "two clients, opposite": _all(lambda u: torch.stack([u[0], -u[0]])),
    "1,000 identical": _all(lambda u: u[:1].repeat(MANY, 1)),
    "the root's copy": _root_copies,
    "order permuted": _permuted,
    "count 0": _counts(0),
    "count -5": _counts(-5),
    "count NaN": _counts(math.nan),
    "count 1e15": _counts(1e15),
    "buffers NaN": _buffers(math.nan),
    "buffers 1e38": _buffers(1e38),
    "negative variance": _buffers(-1.0),
}
"""Every hostile input by name: made of the honest updates (which it may change) and the round."""


def case(name: str, seed: int) -> Case:
    """The hostile input of this name."""
    updates, round = federation(seed)
    fresh = replace(round, generator=generator(seed, "defence", name))
    return CASES[name](updates.clone(), fresh)


def ended(rule: sm.Defence, given: Case) -> str:
    """How a defence ended on a case: one of the columns' words, and of a crash what it was."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decision = rule(given.sent, given.round)
        parts = (decision.update, decision.buffers)
        finite = all(part is None or bool(part.isfinite().all()) for part in parts)
        how = "decisions" if finite else "non-finite"
    except InputError as error:
        how = "clear errors" if _clear(str(error)) else f"crashes: {error}"
    except Exception as error:
        how = f"crashes: {type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if time.perf_counter() - begin > SECONDS:
        return "slow"
    return "memory" if grown > MEBIBYTES else how


def _clear(message: str) -> bool:
    """Whether an error is one sentence that names something."""
    return 10 < len(message) < 500 and "\n" not in message


def measure(seed: int, *, thorough: bool, python: str | None = None) -> list[dict[str, object]]:
    """A row for each hostile input. Thorough: on three federations, not one.

    `python` is an interpreter that has ByzFL.
    """
    seeds = range(seed, seed + 3) if thorough else range(seed, seed + 1)
    rules = {name: make() for name, make in DEFENCES.items()}
    ended(rules["skymask"], case("order permuted", seed))  # what is loaded at the first call
    theirs = byzfl(seed, python)
    rows: list[dict[str, object]] = []
    for place, name in enumerate(CASES):
        counts: Counter[str] = Counter()
        which = {}
        for each in seeds:
            for rule_name, rule in rules.items():
                how, _, what = ended(rule, case(name, each)).partition(": ")
                counts[how] += 1
                if how in ("crashes", "non-finite", "slow", "memory"):
                    which[rule_name] = what or how
        rows.append(
            {
                "input": name,
                "defences": len(rules) * len(seeds),
                **{column: counts[column] for column in COLUMNS[2:8]},
                "which": "; ".join(f"{rule}: {what}" for rule, what in which.items()),
                "Flower FedAvg": flower(case(name, seed)),
                **theirs[place],
            }
        )
    return rows


# The same inputs for others.


def flower(given: Case) -> str:
    """What Flower's FedAvg makes of replies with the model after these updates."""
    if find_spec("flwr") is None:
        return "not installed"
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):  # what a message tells of its process
        setattr(TaskIdentity, name, 1)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it tells of every round
    counts = given.round.counts
    assert given.round.params is not None
    start = given.round.params.numpy()
    if any(np.asarray(row).dtype.kind not in "fiub" for row in given.sent):
        return "not tried: a message holds arrays only"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of what overflows
            replies = []
            for node, row in enumerate(given.sent):
                sent = np.asarray(row)
                weights = start + sent if sent.shape == start.shape else sent
                count = 40 if counts is None else counts[node].item()
                arrays = {"weights": Array(np.asarray(weights))}
                if given.round.buffers is not None:
                    arrays["buffers"] = Array(given.round.buffers[node].numpy())
                request = Message(RecordDict(), node + 1, "train")
                metrics = MetricRecord({"num-examples": count})
                content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
                replies.append(Message(content, reply_to=request))
            arrays_, _ = FedAvg().aggregate_train(1, replies)
    except Exception as error:
        return f"stops: {type(error).__name__}"
    if arrays_ is None:
        return "no aggregate"
    found = [array.numpy() for array in arrays_.values()]
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in found):
        return "model not finite"
    weights = arrays_["weights"].numpy()
    if weights.shape != start.shape:
        return f"model of another shape, {weights.shape}"
    away = float(np.linalg.norm((weights - start).astype(np.float64)))
    return f"model finite, {away:.2g} away"


def byzfl(seed: int, python: str | None) -> list[dict[str, object]]:
    """How ByzFL's rules end on each input, in its own process: columns of the rows."""
    names = COLUMNS[-4:]
    if python is None:
        return [dict.fromkeys(names, "left out: no interpreter given") for _ in CASES]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in CASES:
            given = case(name, seed).sent
            files.append(_stored(given, Path(folder) / f"{len(files)}.npz"))
        script = Path(__file__).with_name("hostile_rivals.py")
        done = subprocess.run(
            [python, str(script), *files], capture_output=True, text=True, timeout=900, check=False
        )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return [dict.fromkeys(names, f"left out: {told}") for _ in CASES]
    answers: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return [
        dict.fromkeys(names, "it takes updates alone")
        if name.startswith(("count ", "buffers ", "negative variance"))
        else {column: told[column.partition(": ")[2]] for column in names}
        for name, told in zip(CASES, answers, strict=True)
    ]


def _stored(sent: Sent, path: Path) -> str:
    """The updates, each an array of its own; what is no tensor is stored as text."""
    np.savez(path, **{str(i): np.asarray(row) for i, row in enumerate(sent)})
    return str(path)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="of an environment that has ByzFL")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--thorough", action="store_true")
    o = parser.parse_args()
    for row in measure(o.seed, thorough=o.thorough, python=o.python):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
