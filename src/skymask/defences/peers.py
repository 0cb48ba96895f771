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
from skymask.defences.memory import ClientAverages, recalled
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


def behind(
    known: Known, averages: ClientAverages, ids: Tensor, past: Any, out: Iterable[int] = ()
) -> tuple[Reasons, dict[str, Any]]:
    """Who of the clients `ids` (n,) is behind its peers, and what to remember of it.

    The alignment of what a client raises is the sum over classes c of w_ic k_ic: the share of the
    score of c in that, and how much more the root's samples of c are raised than the others
    (`taught`). What it lowers is left out: those are the classes that it does not teach. Of the
    clients that are not `out`, m_c is the median of k_jc, weighted by w_jc, and with s_i the
    standard deviation of the alignment (`raised_error`)

        b_i = sum_c w_ic (k_ic - m_c) / s_i

    is how far client i is above its peers. Out is who is below them as an outlier, by three robust
    standard deviations of all b, if that and the client's own alignment together are below -2: the
    worse the root itself thinks of it, the less far behind it has to be. The peers' alignment has
    to be 1 at least (so nobody is out for less than 1.5), and two others have to teach what the
    client does. Then those found are left out of m_c and all are looked at again. Who was out in
    its last round is back when b_i and its alignment together are above 0.

    All that as long as the median client's alignment is 1 at least. Once a model has learned the
    root's samples alignments are noise about 0, of which what a client does otherwise than others,
    such as a person who moves in another way, is the larger part.

    If most that teach a class are malicious, they are the peers, and nobody is behind them.
    """
    n, classes = len(ids), len(averages.values) // 2
    if not known.deviations or not classes:
        return {}, ClientAverages.of(past, ids, {}, 0.0).stored()
    values = torch.stack([each[:n] for each in averages.values.values()], 1)
    tiny = torch.finfo(values.dtype).tiny
    shares = values[:, ::2]
    contrasts = values[:, 1::2] / shares.clamp_min(tiny)
    error = known.slow.values["raised_error"][:n].clamp_min(tiny)
    alignment = known.deviations["alignment"][0][:n]
    was = recalled(past, ids, "behind") > 0
    left = torch.ones(n, dtype=torch.bool)
    left[list(out)] = False
    found, above = torch.zeros_like(left), torch.zeros_like(error)
    for _ in range(_PASSES):
        if not left.any() or alignment[left].median() < _GOOD:
            break
        weights = shares * left[:, None]
        above = (shares * (contrasts - _medians(contrasts, weights))).sum(1) / error
        together = alignment + above
        outlier = above < -OUTLIER * spread(above[left])
        worse = (outlier & (together < _BEHIND)) | (was & (together < 0))
        heard = (shares * (weights.sum(0) - weights)).sum(1) >= _FEWEST
        more = left & worse & heard & (alignment - above >= _GOOD)
        if not more.any():
            break
        found |= more
        left &= ~more
    reasons = {}
    for i in found.nonzero().flatten().tolist():
        why = "its updates go less with the labels of the root data set than those do"
        told = f"{-float(above[i]):.1f} standard deviations"
        reasons[i] = f"{why} that teach the same classes ({told})"
    seen = {"behind": torch.cat([found, found.new_zeros(1)]).to(torch.float64)}
    return reasons, ClientAverages.of(past, ids, seen, 0.0).stored()


def _medians(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted median (K,) of each column of `values` (n, K), with `weights` (n, K)."""
    ordered, order = values.sort(0)
    sums = weights.gather(0, order).cumsum(0)
    at = (sums < sums[-1] / 2).sum(0).clamp_max(len(values) - 1)
    return ordered.gather(0, at[None])[0]
