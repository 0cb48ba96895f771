"""Defences: callables `(updates (n, d), Round) -> Decision`."""

from collections.abc import Callable

from skymask.defences.coordinate import Median
from skymask.defences.mean import FedAvg
from skymask.defences.skymask import SkyMask, SkyMaskNR
from skymask.types import Defence

DEFENCES: dict[str, Callable[..., Defence]] = {
    "fedavg": FedAvg,
    "median": Median,
    "skymask": SkyMask,
    "skymask-nr": SkyMaskNR,
    "skymask-paper": SkyMask.paper,
}
"""Name on the command line -> what makes the rule from its settings."""

__all__ = ["DEFENCES", "FedAvg", "Median", "SkyMask", "SkyMaskNR"]
