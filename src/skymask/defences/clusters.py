"""Clusters of masks apart from the root's: which of them honest clients do not form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skymask.clustering import two_gaussians_each
from skymask.defences.harm import HARM
from skymask.defences.known import OFTEN, SOONER, Known, Reasons
from skymask.defences.memory import ClientAverages
from skymask.defences.outliers import spread
from skymask.defences.sizes import lengths, teach
from skymask.geometry import principal_coordinates

_FEWEST = 8
"""Fewer masks than this, the root's among them, form no clusters that could be told from chance."""
_FIT = 1e-4
"""When to stop fitting clusters: in log-likelihood per point, far below what decides."""
_MANY = 14
"""Of fewer masks a few lie in a cluster by chance, so that the bounds on the gain rise as 1 / n.

Points drawn from one Gaussian gain more than 4 in a thousandth of all draws of 8, and 3.2 of 10.
"""
_PASSES = 3
"""How many kinds of attackers can be taken out one after another in a round."""
_SAME_LENGTH = 0.02
"""The least robust standard deviation of honest clients' lengths (in logarithm, over rounds).

In tight clusters of honest clients on UCI HAR it is 0.27 to 0.56; among attackers who draw each
parameter from the same bounds, as Fang-Trim does, 0.001 to 0.007.
"""


@dataclass(frozen=True, eq=False)
class Clusters:
    """What the clusters of masks say."""

    reasons: Reasons
    gain: float
    """How much better two clusters describe all layers' masks than one, in BIC per client."""
    memory: dict[str, Any]


@dataclass(frozen=True)
class Clustering:
    """Finds clusters of masks apart from the root's that honest clients do not form.

    Settings as in `SkyMask`.
    """

    dims: int
    tight: float
    apart: float
    larger: float
    keep: float

    def __call__(
        self,
        known: Known,
        grams: Mapping[str, Tensor],
        ids: Tensor,
        rows: Sequence[int],
        past: Any,
    ) -> Clusters:
        """Look at the clients `rows`, of those with `ids` (n,).

        `grams` says how alike masks are (n + 1, n + 1): under "" in all layers together, over
        rounds, and in each layer, in this round. A cluster of this round may be a coincidence, so
        who is in a tight one is remembered; `past` is the `memory` of the last round's answer.
        """
        reasons: Reasons = {}
        once: Reasons = {}
        first = 0.0
        root = len(ids)
        whole = torch.stack(list(grams.values()))
        for attempt in range(_PASSES):
            left = [i for i in rows if i not in reasons and i not in once] + [root]
            if len(left) < _FEWEST:
                break
            stack = principal_coordinates(whole[:, left][:, :, left], self.dims).numpy()
            fits, found = two_gaussians_each(stack, tolerance=_FIT), False
            for where, points, mixture in zip(grams, stack, fits, strict=True):
                first = mixture.gain if not attempt and not where else first
                away = [left[i] for i in _other_cluster(torch.from_numpy(points), mixture.labels)]
                for i, why in self.suspects(known, away, left, mixture.gain, where).items():
                    (once if where else reasons).setdefault(i, why)
                    found = True
            if not found:
                break
        looked = torch.tensor(rows, dtype=torch.long)
        seen = {"tight": torch.tensor([float(i in once) for i in (*rows, root)]).double()}
        often = ClientAverages.of(past, ids[looked], seen, self.keep**SOONER)
        for i, share in zip(rows, often.values["tight"].tolist(), strict=False):
            if i in once and share > OFTEN:
                reasons.setdefault(i, once[i])
        return Clusters(reasons, first, often.stored())

    def suspects(
        self, known: Known, away: Sequence[int], rows: Sequence[int], gain: float, where: str
    ) -> Reasons:
        """Who of a cluster of clients `away` from the root is suspect, of `rows`, the root last."""
        near = sorted(set(rows[:-1]) - set(away))
        if min(len(away), len(near)) <= self.dims:  # the root alone is no cluster
            return {}
        told = f"its mask is in a cluster of {len(away)}{where} apart from the root's"
        raised = max(1.0, _MANY / len(rows))
        if gain > raised * self.tight and (2 * len(away) < len(rows) or _worse(known, away, near)):
            why = f"{told}, too tight for clients that trained on their own (gain {gain:.1f})"
            return dict.fromkeys(away, why)
        if gain <= raised * self.apart or where:
            return {}
        reasons: Reasons = {}
        length = known.slow.values["length"]
        usual = length[near].median()
        _, longest = lengths(length[near], self.larger)
        long = [i for i in away if length[i] - usual > longest]
        if not teach(known, long, near):
            for i in long:
                times = float((length[i] - usual).exp())
                reasons[i] = f"{told}, and its updates are {times:.1f} times as long"
        for measure, (slow, _) in known.deviations.items():
            if slow[near].median() <= 0 or slow[away].median() > 0:  # or it is no worse
                continue
            for i in away:
                if slow[i] < -1 and not (measure == "alignment" and known.corrects[i]):
                    reasons.setdefault(i, f"{told}, and its updates {HARM[measure]}")
        return reasons


def _worse(known: Known, away: Sequence[int], near: Sequence[int]) -> bool:
    """Whether a majority `away` from the root is worse than those `near` it, or made up.

    Worse: below 0, and below the others by one standard deviation, both in the median of alignments
    or descents; and the others are not worse in the same sense, as flippers are who have taught the
    model what the root data set has wrong, and with whom the root is therefore. Made up: of the
    same length, which clients that train on their own are not, and no better by one standard
    deviation of descents. Else it may be the honest clients, alike because they have learned what
    there is to learn, and the root apart from them with all who are not.
    """
    both = known.deviations.values()
    if not both:
        return True
    medians = [(float(slow[away].median()), float(slow[near].median())) for slow, _ in both]
    worse = any(theirs < min(0.0, others - 1) for theirs, others in medians)
    if worse and not any(others < min(0.0, theirs - 1) for theirs, others in medians):
        return True
    length = known.slow.values["length"][away]
    theirs, others = medians[-1]
    return spread(length) < _SAME_LENGTH and theirs < others + 1


def _other_cluster(points: Tensor, labels: npt.NDArray[np.intp]) -> list[int]:
    """Who of `points` (m, k) is in the component without the last one, and nearer to its middle."""
    marks = torch.from_numpy(labels)
    away = marks != marks[-1]
    if not away.any():
        return []
    there, here = (points[part].median(0).values for part in (away, ~away))
    nearer = (points - there).norm(dim=1) < (points - here).norm(dim=1)
    members: list[int] = (away & nearer).nonzero().flatten().tolist()
    return members
