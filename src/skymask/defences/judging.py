"""The reasons to reject a client, each found by a function of its own, and what they go by."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skymask.defences.memory import ClientAverages, recalled
from skymask.geometry import ALL, distances_to, squared_distances
from skymask.geometry import lengths as lengths_of
from skymask.shards import Shard

Reasons = dict[int, str]
"""Why clients are rejected, by their place in the round."""

_COPIES = 3
"""So many clients that send the same are no coincidence."""
OFTEN = 1 / 3
"""The share of a client's last rounds in which what happened to it is no coincidence."""
_SAME = 1e-4
"""The share of squared distances and lengths that may part updates that are the same."""
_AT_ONCE = 10.0
"""An update so many times as long as the median one is rejected whatever came before it.

Where lengths vary more than usual it has to be the longer."""
SHORTEST = 2.3
"""An update counts as at most a tenth as long as the median one (in logarithm)."""
SOONER = 3
"""How many times as fast the second average forgets, in which late attackers are found."""
_STAYS = 0.25
"""Of the variance that a descent has because the root has so few samples, what never averages out.

An honest client with unusual data may go a little against the root's few samples in every round.
"""
_SHIFT, _SHIFT_AT_ONCE = 1.0, 3.0
"""Standard deviations that batch norm's outputs may be moved by, on average and in one round.

By one, most of a layer's features still have the sign that the next layer expects.
"""
_OUTLIER = 3.0
"""Robust standard deviations from the median beyond which a client is an outlier."""
_MOST = 2 / 3
"""So many clients within the limit for outliers are honest for the most part."""
_NORMAL = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
HARM = {
    "alignment": "move the model against the labels of the root data set",
    "descent": "raise the loss of the root data set",
}
_BACK = {"alignment": -1.0, "descent": 0.0}
"""The standard deviations above which, in both, a client that was harmful is back."""
_SPREADS = {"alignment": 1.0, "descent": 0.125}
"""By how many standard deviations good clients vary at least."""
_FEW_GOOD = 3
"""Of fewer clients nobody can say how good ones vary."""
_BETTER = 0.25
"""How much better than the median one a descent has to be, in standard deviations, to count."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of n clients and last of the root, this round's observations taken in."""

    slow: ClientAverages
    """Averages over rounds."""
    lately: ClientAverages
    """Averages that forget three times as fast."""
    length: Tensor
    """Logarithm of this round's relative length, (n + 1,)."""
    shares: ClientAverages
    """Slow averages of how large layers are in updates (`parts.shares`); the root's are 0."""
    shares_now: Mapping[str, Tensor]
    """This round's, (n,) by layer."""
    samples: float
    """Of the root data set, as many as an average over its classes is worth (`worth`)."""

    @classmethod
    def of(
        cls,
        past: Mapping[str, Any],
        ids: Tensor,
        seen: Mapping[str, Tensor],
        shares: Mapping[str, Tensor],
        keep: float,
        samples: float,
    ) -> "Known":
        """Take in what was `seen` (n + 1,) each of the clients `ids` (n,) and the root.

        `shares` (n,) of the clients are what `parts.shares` gives, `past` what `stored` gave, and
        `samples` how many the root data set has, in effect.
        """
        slow = ClientAverages.of(past.get("slow"), ids, seen, keep)
        lately = ClientAverages.of(past.get("lately"), ids, seen, keep**SOONER)
        root = torch.zeros(1, dtype=torch.float64)
        parts = {_share(k): torch.cat([x.clamp_min(-SHORTEST), root]) for k, x in shares.items()}
        averaged = ClientAverages.of(past.get("shares"), ids, parts, keep)
        return cls(slow, lately, seen["length"], averaged, shares, samples)

    def stored(self) -> dict[str, Any]:
        """What goes into `Decision.memory`."""
        averages = {"slow": self.slow, "lately": self.lately, "shares": self.shares}
        return {name: each.stored() for name, each in averages.items()}

    @cached_property
    def deviations(self) -> dict[str, tuple[Tensor, Tensor]]:
        """How far above harm alignment and descent are, in standard deviations.

        Of the slow and of the late averages, (n + 1,) each. The alignment is the better one of the
        two, of all changes and of raised scores: who goes against the labels does so in both. Its
        standard deviation is its error, however many rounds there were, because what decides it
        stays from round to round: which samples the root has. That of a descent comes from how
        descents vary over rounds, in the median over the clients, which is at least that of a
        cosine of so many root samples (`worth`); and a quarter of the latter stays, however many
        rounds there were. After a single round it is not known.
        """
        if "alignment" not in self.slow.values:
            return {}
        tiny = torch.finfo(torch.float64).tiny
        variance, stays = self._variance(), _STAYS / self.samples
        found = []
        for average in (self.slow, self.lately):
            values = average.values
            alignment, raised = (
                values[name] / values[error].clamp_min(tiny)
                for name, error in (("alignment", "error"), ("raised", "raised_error"))
            )
            spread = (variance * average.noise + stays).sqrt()
            found.append((torch.maximum(alignment, raised), values["descent"] / spread))
        return dict(zip(HARM, zip(*found, strict=True), strict=True))

    @cached_property
    def corrects(self) -> Tensor:
        """Who lowers the root's loss so much that its alignment does not count, (n,) bool.

        By more than one standard deviation, and more than the median client whose alignment is
        good.
        """
        alignment, descent = (slow[:-1] for slow, _ in self.deviations.values())
        good = alignment > 1
        if not good.any():
            return good
        return descent >= (descent[good].median() + _BETTER).clamp_min(1)

    def _variance(self) -> float:
        """Of a descent in a single round; infinite where no client took part in two."""
        values, noise = self.slow.values, self.slow.noise
        own = (values["square"] - values["descent"].square()) / (1 - noise)
        own = own[:-1][noise[:-1] < 1]
        return max(float(own.median()), 1 / self.samples) if len(own) else math.inf


def _share(layer: str) -> str:
    """What the average is called: averages have names of their own, which a layer may have."""
    return f"share of {layer}"


def worth(labels: Tensor) -> float:
    """How many samples an average over the classes of `labels` (N,) is worth: K^2 / sum_c 1 / N_c.

    The mean of K class means varies as that of so many samples does. All N where classes have as
    many samples each; where one of six has 95 of 100 it is 7, since what the five single samples
    say counts for as much as what the 95 do.
    """
    sizes = labels.unique(return_counts=True)[1].to(torch.float64)
    return len(sizes) ** 2 / float(sizes.reciprocal().sum())


def alike(updates: Tensor, server: Tensor, shard: Shard = ALL) -> Tensor:
    """Which of `updates` (n, d) are the same as which, each as itself: (n, n) bool on the CPU.

    Updates are the same where a hundredth of the usual distance to the `server`'s (d,) parts them,
    and of their own length: clients with nothing left to learn send next to nothing, all of them.
    None are where most clients sent what the server has. Of both this process holds the columns
    `shard`.
    """
    distances = shard.sum(squared_distances(updates)).cpu()
    apart = shard.sum(distances_to(server, updates).to(distances.dtype).square()).cpu()
    usual = apart.median()
    own = lengths_of(updates, shard).to(distances).square()
    near = _SAME * torch.minimum(usual, own)[:, None]
    return (distances < near) & usual.isfinite()


def copied(same: Tensor, ids: Tensor, past: Any, keep: float) -> tuple[Reasons, dict[str, Any]]:
    """Who of the clients `ids` (n,) sends copies, and what to remember of it.

    `same` (n, n) says who sent the same (`alike`). Three or more are copies at once. Of attackers
    that send the same but two may be drawn in a round, or one: two are copies if both were a twin
    of somebody in a third of their last rounds, which takes two rounds at least; and who sent
    copies in a third of its last rounds is out. One attacker that copies an honest client, round
    after round, so has it out with itself, as two have at once; attackers that take turns at it
    have not. `past` is what was remembered, and `keep` the share kept from round to round.
    """
    many = same.sum(1)
    twins = same & (ids[:, None] != ids)  # a client whose update comes twice is no twin of itself
    often = recalled(past, ids, "twin", sums=True) > OFTEN
    copies = (many >= _COPIES) | (twins & often[:, None] & often).any(1)
    root = torch.zeros(1, dtype=torch.float64)
    seen = {"twin": twins.any(1), "copy": copies}
    averages = ClientAverages.of(
        past,
        ids,
        {name: torch.cat([each.to(root), root]) for name, each in seen.items()},
        keep**SOONER,
    )
    reasons: Reasons = {}
    for i in (copies | (averages.values["copy"][:-1] > OFTEN)).nonzero().flatten().tolist():
        others = "another's" if many[i] == 2 else f"{many[i] - 1} others'"
        told = f"its update is a copy of {others}"
        reasons[i] = told if copies[i] else "its last updates were copies of others'"
    return reasons, averages.stored()


def harmful(
    known: Known,
    sure: float,
    ids: Tensor,
    past: Any,
    out: Iterable[int] = (),
    resistance: Sequence[Tensor] = (),
) -> tuple[Reasons, dict[str, Any]]:
    """Whose updates go against the root data set, and what to remember of it.

    By more than `sure` standard deviations in the slow averages or the late ones; or in the slow
    ones by more than one, if that is an outlier beside the good clients as well; or by being an
    outlier beside them in both measures (`_useless`). Likewise by descent and `resistance` (n,)
    together, where it is given, of slow averages and late ones, until they are above 0 together
    (`_together`). `past` is what was
    remembered of the clients `ids` (n,), of which those in `out` are out for another reason.

    Two things follow from what happens to a client that is out. One that corrects a confusion of
    two classes moves samples of both, which is against the labels of one; if it is alone with its
    class it is the more so the longer it is out. So nobody is out for the alignment who lowers the
    loss more than others do (`Known.corrects`). And one that is let in as soon as it is less sure
    to do harm does just as much harm as it is let. So who was harmful in its last round is back
    when its descent is above 0 and its alignment above -1: that of honest clients is about 0 where
    a model has nothing left to learn of the root's samples. Where many of the others are lower
    themselves (those of whose classes it has least to learn) it is back among them (`_back`).
    """
    deviations = known.deviations
    if not deviations:
        return {}, ClientAverages.of(past, ids, {}, 0.0).stored()
    was, pushed = (recalled(past, ids, name) > 0 for name in ("harmful", "pushed"))
    others = ~(was | pushed)
    others[list(out)] = False
    against, raises = (
        below(slow[:-1], lately[:-1], sure, others=others)
        | was & (slow[:-1] < _back(slow[:-1][others], _BACK[measure]))
        for measure, (slow, lately) in deviations.items()
    )
    pushes = torch.zeros_like(raises)
    if resistance:
        slow, lately = map(_together, (each[:-1] for each in deviations["descent"]), resistance)
        pushes = below(slow, lately, sure, others=others) | pushed & (slow < 0)
    seen = {
        name: torch.cat([found, found.new_zeros(1)]).to(torch.float64)
        for name, found in (("harmful", against | raises), ("pushed", pushes))
    }
    against &= ~known.corrects
    reasons: Reasons = {}
    for found, (measure, both) in zip((against, raises), deviations.items(), strict=True):
        for i in found.nonzero().flatten().tolist():
            told = f"{measure} {-min(float(part[i]) for part in both):.1f}"
            reasons[i] = f"its updates {HARM[measure]} ({told} standard deviations below 0)"
    alignment, descent = (both[0][:-1] for both in deviations.values())
    for i in pushes.nonzero().flatten().tolist():
        told = f"descent {float(descent[i]):.1f} and resistance {float(resistance[0][i]):.1f}"
        why = "raise the loss of the root data set and push the model on the way it went"
        reasons.setdefault(i, f"its updates {why} ({told} standard deviations)")
    for i in _useless(alignment, descent).nonzero().flatten().tolist():
        told = f"alignment {float(alignment[i]):.1f} and descent {float(descent[i]):.1f}"
        reasons.setdefault(i, f"its updates do not teach what the others' do ({told})")
    return reasons, ClientAverages.of(past, ids, seen, 0.0).stored()


def _together(one: Tensor, other: Tensor) -> Tensor:
    """Two numbers of clients in standard deviations as one such (Stouffer's), their sum / sqrt 2.

    One is about what an update does to the root data set's loss and the other about what training
    does to an update, so that noise in the one says nothing of the other. Honest clients are above
    0 in both; who is a little below in both is hardly one.
    """
    return (one + other) / math.sqrt(2)


def _back(others: Tensor, usual: float) -> float:
    """Above which a client that was harmful is back: `usual`, or as low as `others` (k,) often are.

    That is less than their standard deviation below their median.
    """
    return min(usual, float(others.median()) - spread(others)) if len(others) else usual


def _useless(alignment: Tensor, descent: Tensor) -> Tensor:
    """Who of n clients is an outlier beside the good ones in both measures, (n,) bool.

    While a model is new, flipped labels look like noise to the root data set: they neither go with
    its labels nor against them by much, and descents are too uncertain for a bound of their own.
    But the good ones, which go with the labels and lower the loss, are all alike in both.

    That takes good ones that noise is an outlier beside: an alignment of 0 is below the limit that
    they give. Once a model has learned the root's samples alignments are noise, of honest clients
    too, and those above 1 are no more than the upper end of it, narrower and higher than the whole.
    """
    good = (alignment > 1) & (descent > 0)
    nobody = torch.zeros_like(good)
    if int(good.sum()) < _FEW_GOOD:
        return nobody
    limit = _outlier(alignment[good], _SPREADS["alignment"])
    if limit <= 0:
        return nobody
    return (alignment < limit) & (descent < _outlier(descent[good], _SPREADS["descent"]))


def below(
    slow: Tensor, lately: Tensor, sure: float, beyond: float = 1.0, others: Tensor | None = None
) -> Tensor:
    """Which of n clients are below 0, of their two numbers (n,): (n,) bool.

    Below -`sure` in either one; or below -`beyond` in the slow one, and an outlier beside the good.
    Only of `others` (n,), all if None, is it not known yet that they are not among these.
    """
    surely = torch.minimum(slow, lately) < -sure
    doubtful = ~surely if others is None else others & ~surely
    return surely | (slow < _limit(slow, -beyond, doubtful))


def _limit(mine: Tensor, most: float, doubtful: Tensor) -> Tensor:
    """Below which one of n clients is an outlier beside the good ones: at most `most`.

    The good ones are those above 0, be they few: in a majority of attackers a median says nothing.
    But where honest clients are about 0, those above it are the upper half of them, which is
    narrower and higher than the whole. So where two thirds of all are within the limit, all of
    these are the good ones, and the limit is made of them once more. Likewise if two thirds of the
    `doubtful` (n,) are, whom nothing else tells from the good ones: two thirds of all are most of
    the honest clients, and more the more attackers there are.
    """
    good = mine[mine > 0] if (mine > 0).any() else mine.new_zeros(1)
    limit = _outlier(good).clamp_max(most)
    within = mine >= limit
    for some in (torch.ones_like(doubtful), doubtful):
        if int((within & some).sum()) > _MOST * int(some.sum()):
            return _outlier(mine[within & some]).clamp_max(most)
    return limit


def _outlier(good: Tensor, least: float = 1.0) -> Tensor:
    """Below which one is an outlier beside the `good` ones, who vary by `least` at least."""
    return good.median() - _OUTLIER * max(spread(good), least)


def spread(values: Tensor) -> float:
    """The robust standard deviation of `values` (k,): as if most were drawn from a normal one."""
    return _NORMAL * float((values - values.median()).abs().median())


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
        average, many = known.shares.values[_share(layer)], len(known.shares_now)
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
    far = together(_OUTLIER, many) * spread(length)
    return length - length.median(), max(math.log(larger), far)


def together(bound: float, many: int) -> float:
    """The bound that one of `many` numbers is beyond as seldom as one alone is beyond `bound`.

    For numbers whose chance of that falls as exp(-bound^2 / 2): sqrt(bound^2 + 2 ln many).
    """
    return math.sqrt(bound**2 + 2 * math.log(max(1, many)))


def teach(known: Known, some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether `some` clients with long updates have something to teach the `others`.

    As do those of the one class that a model does not know yet: in the median they do not go
    against the root's labels, and lower its loss more than the others do.
    """
    if not some or not known.deviations:
        return False
    alignment, descent = (slow for slow, _ in known.deviations.values())
    better = descent[some].median() > descent[others].median() + _BETTER
    return bool(better and alignment[some].median() > -1)


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
