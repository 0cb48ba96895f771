"""Camps: clients whose updates change the model's outputs in the same way, against the root.

What the root data set says of one client is uncertain: it has few samples of a class. But who
follows wrong labels changes the outputs for all of them as the others do who follow the same, and
as no honest client does. Two Gaussians find such a camp before any of its members could be told
from an honest client of unusual data, and of a camp the median member is judged, not each by
itself: all of its members change the model as that one does.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skymask.clustering import two_gaussians
from skymask.defences.known import OFTEN, SOONER, Known, Reasons
from skymask.defences.memory import ClientAverages, recalled
from skymask.defences.outliers import stouffer
from skymask.geometry import principal_coordinates

_FIT = 1e-4
"""When to stop fitting camps: in log-likelihood per point, far below what decides."""
_FEWEST = 14
"""Fewer clients are not divided: two camps of them could not be told from chance."""
_CHANCE = 7.0
"""How much better two camps have to be than one, in BIC, to be more than chance.

Of 14 clients that have nothing to do with each other 5 % of all draws gain more, of 30 and more
none in 150.
"""
_DEPTH = 2
"""How often clients are divided, at most: first perhaps into those of other classes."""
_PASSES = 3
"""How many camps can be found one after another in a round."""
_GOOD = 1 / math.sqrt(2)
"""The standard deviations above which clients are good: an alignment of 1, if a descent is 0."""
_CLEARLY = 2.0
"""The standard deviations that a majority has to be below the others, who may be made up."""


def opposed(
    known: Known,
    alike: Tensor,
    ids: Tensor,
    dims: int,
    sure: float,
    keep: float,
    past: Any,
    out: Iterable[int] = (),
) -> tuple[Reasons, dict[str, Any]]:
    """Who is in a camp that goes against the root data set, and what to remember of it.

    `alike` (n + 1, n + 1) says how much the clients `ids` (n,), and last the root, change the
    outputs in the same way, over rounds. The clients that are not `out` for another reason are
    divided into two camps, and each of these once more (`_camps`). A camp is judged where the
    median of all others is good, in alignment and also together with the descent. It is against the
    root if its own median is below 0 in both senses, or not good and more than `sure` standard
    deviations below the others'. A majority, beside which the others may be a few that are made
    up, is if it is below 0 itself, together with the descent, and two standard deviations below
    the others, whatever the alignment alone: flippers that lead the model have taught it their
    labels. So are the members of such a camp but for those that are good themselves. Then another
    one is looked for among those left. Where the others are not good nobody is judged: the root
    may not know yet, or no longer, what is right.

    A camp of a single round may be a coincidence, so who is in one is remembered, with a `keep` of
    its third power, and out is who often was (with 0.9, twice at least); `past` is what was
    remembered in the last round.
    """
    n = len(ids)
    if not known.deviations:
        return {}, ClientAverages.of(past, ids, {}, 0.0).stored()
    alignment, descent = (slow[:n] for slow, _ in known.deviations.values())
    both = stouffer(alignment, descent)
    left, found = sorted(set(range(n)) - set(out)), torch.zeros(n + 1, dtype=torch.float64)
    for _ in range(_PASSES):
        for camp in _camps(alike, left, dims):
            others = [i for i in left if i not in camp]
            members = _against(alignment, both, camp, others, sure)
            if members:
                break
        else:
            break
        found[members] = 1.0
        left = [i for i in left if not found[i]]
    stored = ClientAverages.of(past, ids, {"against": found}, keep**SOONER).stored()
    reasons = {}
    often = recalled(stored, ids, "against", sums=True) > OFTEN
    for i in often.nonzero().flatten().tolist():
        why = "its updates change the model as those of a camp do that goes against the root"
        reasons[i] = f"{why} data set ({float(both[i]):.1f} standard deviations)"
    return reasons, stored


def _against(
    alignment: Tensor, both: Tensor, camp: list[int], others: list[int], sure: float
) -> list[int]:
    """Who of a `camp` goes with it against the root data set, if it does and `others` are good.

    Of n clients' `alignment` (n,), and of that and the descent together (`both`).
    """
    lower, upper = float(both[camp].median()), float(both[others].median())
    if upper < _GOOD or float(alignment[others].median()) < 1:
        return []
    if len(camp) > len(others):
        worse = lower < 0 and upper - lower > _CLEARLY
    else:
        below = lower < 0 and float(alignment[camp].median()) < 0
        worse = below or (lower < _GOOD and upper - lower > sure)
    if not worse:
        return []
    return [i for i in camp if both[i] < _GOOD]


def _camps(alike: Tensor, rows: list[int], dims: int) -> Iterator[list[int]]:
    """The camps of the clients `rows`: both, then what each of these is divided into, and so on."""
    level = [rows]
    for _ in range(_DEPTH):
        level = [part for each in level for part in _divided(alike, each, dims)]
        yield from level


def _divided(alike: Tensor, rows: list[int], dims: int) -> list[list[int]]:
    """The two camps of the clients `rows`, or none.

    By two Gaussians in the first `dims` principal coordinates of how `alike` (m, m) they are; none
    where these are hardly better than one, in BIC, or hardly anybody is in one of them.
    """
    if len(rows) < _FEWEST:
        return []
    points = principal_coordinates(alike[rows][:, rows], dims)
    fit = two_gaussians(points.numpy(), tolerance=_FIT)
    camps = [[rows[i] for i in np.flatnonzero(fit.labels == mark)] for mark in (0, 1)]
    apart = fit.gain > _CHANCE / len(rows)
    return camps if apart and min(map(len, camps)) > dims else []
