"""How `crashes` and `sweeps` kill: processes at random moments, and what makes no sense afterwards.

The process that is killed is a fork of this one, so that a kill costs the time of some rounds and
not of starting Python. Checkpoints are written every round instead of every five seconds, so that
kills hit them, too.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from skymask import simulation
from skymask.attacks import Mixed, SignFlip
from skymask.attacks.mimic import Mimic
from skymask.defences import FLDetector, SkyMask
from skymask.errors import InputError
from skymask.experiment import Experiment
from skymask.records import RunFolder
from skymask.report import write_report
from skymask.types import Attack, Defence

AT_ONCE = 6
"""Kills before a run or a sweep may come to its end."""


def experiments(rounds: int) -> Iterator[Experiment]:
    """Small runs whose memories differ: of the rule, of the attack, of both, of who takes part."""
    rules: list[tuple[Defence, Attack, float]] = [
        (SkyMask(), SignFlip(), 1.0),
        (FLDetector(), SignFlip(), 1.0),
        (SkyMask(), Mimic(), 0.7),
        (SkyMask(), Mixed((SignFlip(), Mimic())), 1.0),
    ]
    seed = 0
    while True:
        defence, attack, share = rules[seed % len(rules)]
        seed += 1
        yield Experiment(
            data="synthetic",
            clients=10,
            malicious=0.3,
            rounds=rounds,
            eval_every=3,
            seed=seed,
            defence=defence,
            attack=attack,
            participation=share,
        ).resolved()


def forked(work: Callable[[], object], moment: Callable[[], None] | None) -> bool:
    """Do `work` in a fork; whether that was killed, with all it started.

    `moment` waits until then; None lets the work end.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            work()
            status = 0
        finally:
            os._exit(status)
    os.setpgid(child, child)  # here, too: one of the two comes first
    if moment is not None:
        moment()
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while _running(child):
        time.sleep(0.01)
    return os.WIFSIGNALED(status)


def _running(group: int) -> bool:
    """Whether a process of this group has not ended yet, as far as /proc tells."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, member = stat.read_text().rpartition(")")[2].split()[:3]
            if int(member) == group and state != "Z":
                return True
    return False


def torn(folder: Path) -> int:
    """Whether anybody who looks at a killed run finds a file that makes no sense."""
    if not (folder / "manifest.json").exists():
        return 0
    try:
        write_report([folder], folder.parent / "look.html")
        RunFolder(folder).load(torch.device("cpu"))
    except InputError:
        return 1
    return 0


@contextmanager
def frequent_checkpoints() -> Iterator[None]:
    """Checkpoints every round, in this process, its forks and the workers of their sweeps."""
    before = {name: getattr(simulation, name) for name in _RARELY}
    main = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules[__name__]  # a worker imports it before all else
    _checkpoint_every_round()
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            setattr(simulation, name, value)


_RARELY = ("_CHECKPOINT_SECONDS", "_CHECKPOINT_COST")


def _checkpoint_every_round() -> None:
    for name in _RARELY:
        setattr(simulation, name, 0.0)


if __name__ == "__mp_main__":  # in the worker of a sweep
    _checkpoint_every_round()
