"""Peers: who goes less with the root's labels than those that teach the same classes.

The root data set has few samples of a class, and what they happen to be decides how well an honest
client of that class is aligned: the alignment of a single client has to be far below 0 to say
anything. But it decides that for all who teach the class alike. So clients are compared with those
who move the same scores: one that says of other images that they are of a class stands out beside
the clients that have it, long before it can be told from an honest client of another class.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from skymask.defences.known import Known, Reasons
from skymask.defences.memory import ClientAverages
from skymask.defences.outliers import OUTLIER, spread
from skymask.evidence import Evidence

_BEHIND = -2.0
"""Below it, in standard deviations of an alignment, are together those of who is out."""
_GOOD = 1.0
"""The alignment that peers, and clients in the median, have at least where they tell anything."""
_FEWEST = 2.0
"""So many others have to teach what a client teaches."""
_PASSES = 6
"""How often peers are looked at without those found among them."""


def taught(past: Any, ids: Tensor, evidence: Evidence | None, keep: float) -> ClientAverages:
    """How much of their updates the clients `ids` (n,) use for each class, and how well, averaged.

    By class c, shares w_ic of what is raised, and w_ic times the contrast k_ic (`Evidence`).
    """
    seen = {}
    if evidence is not None:
        for k, name in enumerate(evidence.classes):
            seen[f"share {name}"] = evidence.shares[:, k]
            seen[f"taught {name}"] = evidence.shares[:, k] * evidence.contrasts[:, k]
    return ClientAverages.of(past, ids, seen, keep)


def behind(known: Known, averages: ClientAverages, out: Iterable[int] = ()) -> Reasons:
    """Who of n clients is behind its peers.

    The alignment of what a client raises is the sum over classes c of w_ic k_ic: the share of the
    score of c in that, and how much more the root's samples of c are raised than the others
    (`taught`). What it lowers is left out: those are the classes that it does not teach. Of the
    clients that are not `out`, m_c is the median of k_jc, weighted by w_jc, and with s_i the
    standard deviation of the alignment (`raised_error`)

        b_i = sum_c w_ic^2 (k_ic - m_c) / (s_i sum_c w_ic^2)

    is how far client i is above its peers, in the classes that it teaches most: what it raises in
    passing hardly counts. Out is who is below them as an outlier, by three robust standard
    deviations of all b, if that and the client's own alignment together are below -2: the worse the
    root itself thinks of it, the less far behind it has to be. The peers' alignment has to be 1 at
    least (so nobody is out for less than 1.5), and two others have to teach what the client does.
    Then those found are left out of m_c and all are looked at again.

    All that as long as the median client's alignment is 1 at least. Once a model has learned the
    root's samples alignments are noise about 0, of which what a client does otherwise than others,
    such as a person who moves in another way, is the larger part.

    If most that teach a class are malicious, they are the peers, and nobody is behind them.
    """
    if not known.deviations or not averages.values:
        return {}
    values = torch.stack([each[:-1] for each in averages.values.values()], 1)
    tiny = torch.finfo(values.dtype).tiny
    shares = values[:, ::2]
    contrasts = values[:, 1::2] / shares.clamp_min(tiny)
    most = shares.square() / shares.square().sum(1, keepdim=True).clamp_min(tiny)
    error = known.slow.values["raised_error"][:-1].clamp_min(tiny)
    alignment = known.deviations["alignment"][0][:-1]
    left = torch.ones(len(values), dtype=torch.bool)
    left[list(out)] = False
    reasons: Reasons = {}
    for _ in range(_PASSES):
        if not left.any() or alignment[left].median() < _GOOD:
            break
        weights = shares * left[:, None]
        above = (most * (contrasts - _medians(contrasts, weights))).sum(1) / error
        heard = (shares * (weights.sum(0) - weights)).sum(1) >= _FEWEST
        heard &= alignment - above >= _GOOD
        worse = (above < -OUTLIER * spread(above[left])) & (alignment + above < _BEHIND)
        found = (left & heard & worse).nonzero().flatten().tolist()
        if not found:
            break
        for i in found:
            why = "its updates go less with the labels of the root data set than those do"
            told = f"{-float(above[i]):.1f} standard deviations"
            reasons[i] = f"{why} that teach the same classes ({told})"
        left[found] = False
    return reasons


def _medians(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted median (K,) of each column of `values` (n, K), with `weights` (n, K)."""
    ordered, order = values.sort(0)
    sums = weights.gather(0, order).cumsum(0)
    at = (sums < sums[-1] / 2).sum(0).clamp_max(len(values) - 1)
    return ordered.gather(0, at[None])[0]
