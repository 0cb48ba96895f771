"""Many clients, and memory over many rounds."""

import tempfile
from dataclasses import replace
from pathlib import Path

from skymask.attacks import LabelFlip
from skymask.data import Groups
from skymask.defences import SkyMask
from skymask.experiment import Experiment
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
    """1,000 clients for ten rounds, and memory over fifty rounds after the warm-up."""
    many = _experiment(1000 if thorough else 200, 10, seed)
    long = _experiment(50, WARM_UP + (50 if thorough else 20), seed)
    return [
        _row("many clients", many, 2),
        _row("many rounds", long, WARM_UP),
        _row("many rounds, half take part", replace(long, participation=0.5), WARM_UP),
    ]


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
