"""The reasons to reject a client, each found by a function of its own, and what they go by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skymask.clustering import two_gaussians_each
from skymask.defences.memory import ClientAverages, recalled
from skymask.geometry import principal_coordinates, squared_distances

Reasons = dict[int, str]
"""Why clients are rejected, by their place in the round."""

_COPIES = 3
"""So many clients that send the same are no coincidence."""
_SAME = 1e-4
"""Updates whose squared distance is below this share of the usual one to the server's are same."""
_AT_ONCE = 10.0
"""An update so many times as long as the median one is rejected whatever came before it."""
_SOONER = 3
"""How many times as fast the second average forgets, in which late attackers are found."""
_FEWEST = 8
"""Fewer masks than this, the root's among them, form no clusters that could be told from chance."""
_FIT = 1e-4
"""When to stop fitting clusters: in log-likelihood per point, far below what decides."""
_PASSES = 3
"""How many kinds of attackers can be taken out one after another in a round."""
_SURER = 1.5
"""How much surer the late averages have to be."""
_STAYS = 0.25
"""Of the variance that a descent has because the root has so few samples, what never averages out.

An honest client with unusual data may go a little against the root's few samples in every round.
"""
_SHIFT, _SHIFT_AT_ONCE = 1.0, 3.0
"""Standard deviations that batch norm's outputs may be moved by, on average and in one round.

By one, most of a layer's features still have the sign that the next layer expects.
"""
_OFTEN = 1 / 3
"""The share of the last rounds in tight clusters of single layers that is no coincidence."""
_OUTLIER = 3.0
"""Robust standard deviations from the median beyond which a client is an outlier."""
_NORMAL = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
_HARM = {
    "alignment": "move the model against the labels of the root data set",
    "descent": "raise the loss of the root data set",
}
_BACK = {"alignment": -1.0, "descent": 0.0}
"""The standard deviations above which a client that was harmful is back."""
_BETTER = 0.25
"""How much better than the median one, in standard deviations, a descent makes up for alignment."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of n clients and last of the root, this round's observations taken in."""

    slow: ClientAverages
    """Averages over rounds."""
    lately: ClientAverages
    """Averages that forget three times as fast."""
    length: Tensor
    """Logarithm of this round's relative length, (n + 1,)."""
    samples: int
    """Of the root data set."""

    @classmethod
    def of(
        cls,
        past: Mapping[str, Any],
        ids: Tensor,
        seen: Mapping[str, Tensor],
        keep: float,
        samples: int,
    ) -> "Known":
        """Take in what was `seen` (n + 1,) each of the clients `ids` (n,) and the root.

        `past` is what `stored` gave; `samples` how many the root data set has.
        """
        slow = ClientAverages.of(past.get("slow"), ids, seen, keep)
        lately = ClientAverages.of(past.get("lately"), ids, seen, keep**_SOONER)
        return cls(slow, lately, seen["length"], samples)

    def stored(self) -> dict[str, Any]:
        """What goes into `Decision.memory`."""
        return {"slow": self.slow.stored(), "lately": self.lately.stored()}

    @cached_property
    def deviations(self) -> dict[str, tuple[Tensor, Tensor]]:
        """How far above harm alignment and descent are, in standard deviations.

        Of the slow and of the late averages, (n + 1,) each. An alignment's standard deviation is
        its error, however many rounds there were, because what decides it stays from round to
        round: which samples the root has. That of a descent comes from how descents vary over
        rounds, in the median over the clients, which is at least that of a cosine of so many root
        samples; and a quarter of the latter stays, however many rounds there were. After a single
        round it is not known.
        """
        if "alignment" not in self.slow.values:
            return {}
        tiny = torch.finfo(torch.float64).tiny
        variance, stays = self._variance(), _STAYS / self.samples
        found = []
        for average in (self.slow, self.lately):
            alignment, error, descent = (
                average.values[name] for name in ("alignment", "error", "descent")
            )
            spread = (variance * average.noise + stays).sqrt()
            found.append((alignment / error.clamp_min(tiny), descent / spread))
        return dict(zip(_HARM, zip(*found, strict=True), strict=True))

    def _variance(self) -> float:
        """Of a descent in a single round; infinite where no client took part in two."""
        values, noise = self.slow.values, self.slow.noise
        own = (values["square"] - values["descent"].square()) / (1 - noise)
        own = own[:-1][noise[:-1] < 1]
        return max(float(own.median()), 1 / self.samples) if len(own) else math.inf


def copied(updates: Tensor, server: Tensor) -> Reasons:
    """Who of `updates` (n, d) sent what two others sent, at least.

    Updates are the same where a hundredth of the usual distance to the `server`'s (d,) parts them.
    Nobody is a copy where most clients sent what the server has.
    """
    distances = squared_distances(torch.cat([updates, server[None]]))
    usual = distances[-1, :-1].median()
    same = (distances[:-1, :-1] < _SAME * usual) & usual.isfinite()
    return {
        i: f"its update is a copy of {k - 1} others'"
        for i, k in enumerate(same.sum(1).tolist())
        if k >= _COPIES
    }


def harmful(known: Known, sure: float, ids: Tensor, past: Any) -> tuple[Reasons, dict[str, Any]]:
    """Whose updates go against the root data set, and what to remember of it.

    By more than `sure` standard deviations in the slow averages, or half as many again in the late
    ones, which vary more; or in the slow ones by more than one, if that is an outlier beside the
    clients above 0 as well. `past` is what was remembered of the clients `ids` (n,).

    Two things follow from what happens to a client that is out. One that corrects a confusion of
    two classes lowers the score of the wrong one for samples of both, which is against the labels
    of the latter; if it is alone with its class it is the more so the longer it is out. So nobody
    is out for the alignment who lowers the loss, by more than one standard deviation and more than
    the median client whose alignment is good. And one that is let in as soon as it is less sure to
    do harm does just as much harm as it is let. So who was harmful in its last round is back when
    its descent is above 0, or its alignment above -1, because the alignment is about 0 of honest
    clients, too, once the root's samples are learned.
    """
    deviations = known.deviations
    if not deviations:
        return {}, ClientAverages.of(past, ids, {}, 0.0).stored()
    against, raises = (
        _below(*both, sure) | (recalled(past, ids, measure) > 0) & (both[0][:-1] < _BACK[measure])
        for measure, both in deviations.items()
    )
    verdicts = {"alignment": against.clone(), "descent": raises}
    alignment, descent = (both[0][:-1] for both in deviations.values())
    good = alignment > 1
    if good.any():
        against &= descent < (descent[good].median() + _BETTER).clamp_min(1)
    reasons: Reasons = {}
    for found, (measure, both) in zip((against, raises), deviations.items(), strict=True):
        for i in found.nonzero().flatten().tolist():
            told = f"{measure} {-min(float(part[i]) for part in both):.1f}"
            reasons[i] = f"its updates {_HARM[measure]} ({told} standard deviations below 0)"
    seen = {
        measure: torch.cat([found, found.new_zeros(1)]).to(torch.float64)
        for measure, found in verdicts.items()
    }
    return reasons, ClientAverages.of(past, ids, seen, 0.0).stored()


def _below(slow: Tensor, lately: Tensor, sure: float) -> Tensor:
    """Which of the n clients are so far below 0, or below 0 and the good ones; (n + 1,) each.

    The good ones are those above 0, be they few: in a majority of attackers a median says nothing.
    """
    mine, now = slow[:-1], lately[:-1]
    good = mine[mine > 0] if (mine > 0).any() else mine.new_zeros(1)
    usual = good.median()
    spread = (_NORMAL * (good - usual).abs().median()).clamp_min(1)
    limit = (usual - _OUTLIER * spread).clamp_max(-1)
    return (mine < -sure) | (now < -_SURER * sure) | (mine < limit)


def too_long(known: Known, kept: Sequence[int], larger: float) -> Reasons:
    """Who of the clients `kept` has much longer updates than the median one of them."""
    if not kept:
        return {}
    length, now = (part[kept] for part in (known.slow.values["length"], known.length))
    excess = length - length.median()
    longest = max(math.log(larger), _OUTLIER * _NORMAL * float(excess.abs().median()))
    now = now - now.median()
    return {
        kept[i]: f"its updates are {math.exp(max(float(excess[i]), float(now[i]))):.1f} times as "
        "long as the median client's"
        for i in ((excess > longest) | (now > math.log(_AT_ONCE))).nonzero().flatten().tolist()
    }


def shifted(known: Known, now: Tensor, kept: Sequence[int], larger: float) -> Reasons:
    """Whose batch norm statistics would move the model's features far from the server's own.

    `now` (n,) are this round's shifts (`statistics.shifts`). On average over rounds by more than
    one standard deviation and `larger` times as far as the median one of the clients `kept`; or by
    three in this round. Honest clients differ by the classes that they hold, most in the first
    round, when the statistics still move away from their start.
    """
    average = known.slow.values["shift"][:-1]
    usual = float(average[kept].median()) if kept else 0.0
    out = (average > max(_SHIFT, larger * usual)) | (now > _SHIFT_AT_ONCE)
    return {
        i: f"its batch norm statistics move the features {float(max(average[i], now[i])):.1f} "
        "standard deviations away from the server's"
        for i in out.nonzero().flatten().tolist()
    }


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
        often = ClientAverages.of(past, ids[looked], seen, self.keep**_SOONER)
        for i, share in zip(rows, often.values["tight"].tolist(), strict=False):
            if i in once and share > _OFTEN:
                reasons.setdefault(i, once[i])
        return Clusters(reasons, first, often.stored())

    def suspects(
        self, known: Known, away: Sequence[int], rows: Sequence[int], gain: float, where: str
    ) -> Reasons:
        """Who of a cluster of clients `away` from the root is suspect, of `rows` in all."""
        near = sorted(set(rows) - set(away))
        if min(len(away), len(near) - 1) <= self.dims:  # the root alone is no cluster
            return {}
        told = f"its mask is in a cluster of {len(away)}{where} apart from the root's"
        if gain > self.tight and (2 * len(away) < len(rows) or _worse(known, away, near)):
            why = f"{told}, too tight for clients that trained on their own (gain {gain:.1f})"
            return dict.fromkeys(away, why)
        if gain <= self.apart or where:
            return {}
        reasons: Reasons = {}
        length = known.slow.values["length"]
        for i in away:
            times = float((length[i] - length[near].median()).exp())
            if times > self.larger:
                reasons[i] = f"{told}, and its updates are {times:.1f} times as long"
        for measure, (slow, _) in known.deviations.items():
            if slow[near].median() <= 0:  # the others are no better
                continue
            for i in away:
                if slow[i] < -1:
                    reasons.setdefault(i, f"{told}, and its updates {_HARM[measure]}")
        return reasons


def _worse(known: Known, away: Sequence[int], near: Sequence[int]) -> bool:
    """Whether a majority `away` from the root is more harmful than those `near` it.

    By one standard deviation in the median. Else it may be the honest clients, alike because they
    have learned what there is to learn, and the root apart from them with all who are not.
    """
    both = known.deviations.values()
    return not both or any(
        float(slow[away].median() - slow[near].median()) < -1 for slow, _ in both
    )


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
