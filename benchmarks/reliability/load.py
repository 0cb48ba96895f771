"""Many clients, and memory over many rounds."""

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.reliability import federation
from skymask.attacks import LabelFlip
from skymask.data import Groups
from skymask.defences import SkyMask
from skymask.experiment import Experiment
from skymask.local_sgd import LocalSGD
from skymask.simulation import Result, simulate

TITLE = "Many clients, many rounds"
COLUMNS = (
    "what",
    "clients",
    "rounds",
    "accuracy",
    "accuracy of the honest alone",
    "FPR",
    "FNR",
    "memory growth",
)
WARM_UP = 20
"""Rounds before memory is looked at: libraries load, caches fill."""


def measure(seed: int, *, thorough: bool) -> list[dict[str, object]]:
    """1,000 clients for ten rounds, and memory over fifty rounds after the warm-up.

    The many hold 60 images of Fashion-MNIST each, which must be there; digits would be one or two.
    """
    many = _experiment(200, 10, seed)
    if thorough:
        many = replace(
            many,
            data="fashion-mnist",
            model="logistic",
            clients=1000,
            partition=Groups(0.5),
            root_size=100,
            local=LocalSGD(steps=5, batch=32, lr=0.1),
            server_lr=1.0,
        )
    long = _experiment(50, WARM_UP + (50 if thorough else 20), seed)
    return [
        _row("many clients", many, 2),
        _row("many rounds", long, WARM_UP),
        _row("many rounds, half take part", replace(long, participation=0.5), WARM_UP),
        _federation_row(100, 20, WARM_UP + (50 if thorough else 5)),
        *([federation.engine_row(100, 20, 10)] if thorough else []),
    ]


def _federation_row(nodes: int, faulty: int, rounds: int) -> dict[str, object]:
    """The federation of the engine's row for long, its nodes in this process."""
    pages: list[int] = []
    found = federation.in_one_process(nodes, faulty, rounds, lambda: pages.append(_rss()))
    return {
        "what": f"Flower's strategy, nodes in one process, {faulty} faulty",
        "clients": nodes,
        "rounds": rounds,
        "accuracy": f"{100 * found:.1f} %",
        "accuracy of the honest alone": "-",
        "FPR": "-",
        "FNR": "-",
        "memory growth": f"{100 * (max(pages[WARM_UP:]) / pages[WARM_UP] - 1):.1f} %",
    }


def _experiment(clients: int, rounds: int, seed: int) -> Experiment:
    return Experiment(
        data="digits",
        clients=clients,
        partition=Groups(0.1),
        root_size=50,
        malicious=0.2,
        attack=LabelFlip(),
        defence=SkyMask(),
        rounds=rounds,
        seed=seed,
    )


def _row(what: str, experiment: Experiment, warm_up: int) -> dict[str, object]:
    pages: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        found = simulate(
            experiment, "cpu", Path(name) / "run", watch=lambda _: pages.append(_rss())
        )
    honest = simulate(replace(experiment, honest_only=True), "cpu")
    grown = max(pages[warm_up:]) / pages[warm_up] - 1
    return {
        "what": what,
        "clients": experiment.clients,
        "rounds": len(found.rounds),
        "accuracy": _percent(found, "accuracy"),
        "accuracy of the honest alone": _percent(honest, "accuracy"),
        "FPR": _percent(found, "fpr"),
        "FNR": _percent(found, "fnr"),
        "memory growth": f"{100 * grown:.1f} %",
    }


def _percent(found: Result, name: str) -> str:
    return f"{100 * found.summary[name]:.1f} %"


def _rss() -> int:
    """Pages of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1])
