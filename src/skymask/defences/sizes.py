"""Size: whose updates, or a layer of them, are much longer than the others'."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from skymask.defences.known import BETTER, Known, Reasons, share_name
from skymask.defences.outliers import OUTLIER, spread, together

_AT_ONCE = 10.0
"""An update so many times as long as the median one is rejected whatever came before it.

Where lengths vary more than usual it has to be the longer."""


def too_long(known: Known, kept: Sequence[int], larger: float) -> Reasons:
    """Who of the clients `kept` has much longer updates than the median one of them.

    Than their lengths vary, and on average over rounds than those who `teach` may have: once a
    model knows what most clients know, the others have updates many times as long.

    Or whose updates are one layer so much more than theirs, where the poison in a layer is longer
    than what was trained.
    """
    if not kept:
        return {}
    found = _larger(known, known.slow.values["length"], known.length, kept, larger, 1)
    reasons = {
        i: f"its updates are {times:.1f} times as long as the median client's"
        for i, times in found.items()
    }
    for layer, now in known.shares_now.items():
        average, many = known.shares.values[share_name(layer)], len(known.shares_now)
        for i, times in _larger(known, average, now, kept, larger, many).items():
            beside = "times as much of its updates as of the median client's"
            reasons.setdefault(i, f"layer {layer} is {times:.1f} {beside}")
    return reasons


def _larger(
    known: Known, average: Tensor, now: Tensor, kept: Sequence[int], larger: float, many: int
) -> dict[int, float]:
    """Who of `kept` is too large on `average` or `now`, of so `many` sizes, and how many times."""
    excess, longest = lengths(average[kept], larger, many)
    at_once, longest_now = lengths(now[kept], larger, many)
    long = excess > longest
    if teach(known, [i for i, out in zip(kept, long.tolist(), strict=True) if out], kept):
        long = torch.zeros_like(long)
    long |= at_once > longest_now + math.log(_AT_ONCE / larger)
    times = torch.maximum(excess, at_once).exp()
    return {kept[i]: float(times[i]) for i in long.nonzero().flatten().tolist()}


def lengths(length: Tensor, larger: float, many: int = 1) -> tuple[Tensor, float]:
    """Logarithms of lengths less their median, and above which one is an outlier, of so many."""
    far = together(OUTLIER, many) * spread(length)
    return length - length.median(), max(math.log(larger), far)


def teach(known: Known, some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether `some` clients with long updates have something to teach the `others`.

    As do those of the one class that a model does not know yet: in the median they do not go
    against the root's labels, and lower its loss more than the others do.
    """
    if not some or not known.deviations:
        return False
    alignment, descent = (slow for slow, _ in known.deviations.values())
    better = descent[some].median() > descent[others].median() + BETTER
    return bool(better and alignment[some].median() > -1)
