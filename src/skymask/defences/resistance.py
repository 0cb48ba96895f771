"""Resistance: who holds against the way that the model went, as training does, and who pushes on.

Between two rounds the global model moves by s. A client that trains in both lowers a loss of its
own, so that what it sends changes by about -eta H s, with H the second derivative of its loss and
eta its learning rate times its steps: along s that is -eta s.H s, against the step wherever its
loss curves upwards that way. A convex loss does so everywhere, whatever data it is of, and that of
a network does along the way that it is trained, which is where valleys are. So an honest client
resists, be its data unusual, few or unlike the root data set's. Who sends its update turned round
changes it by the opposite, and so does who sends a multiple of the others' mean turned round.

In a layer by itself what the others' steps change there is mixed in. Modules were seen to resist
all the same, but not biases: even with a convex loss honest clients' may push for long. Nor does
each module of a deep network: in the last ones those of some classes push for a hundred rounds, as
what the modules before learn has them learn more. As a whole they resist all the time. So in a
module only those push who do not resist as a whole.

Noise of batches is many times as large in a single round. It has nothing to do with s, but that
what was sent before is a part of s if it was averaged, which counts for its client. So the sum over
rounds tells, divided by the root of the sum of squares: for noise whose signs are thrown like
coins that is below -b with a probability of at most exp(-b^2 / 2), whatever its size is and however
that changes (Efron 1969; the bound is Hoeffding's). Each update is in two observations, so that the
signs are not quite that: where steps go to and fro the number varies by up to 1.4 times as much,
where they go one way by less.

The server's own model is asked, too: where it does not resist the loss curves downwards along the
way of the model, as that of a network may for some rounds, and nobody is judged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skymask.defences.known import Reasons
from skymask.defences.memory import doubled, with_root
from skymask.defences.outliers import below, together
from skymask.defences.parts import Parts
from skymask.shards import Shard
from skymask.threads import in_one_thread

_LONGER = 1 / 3
"""The slow sums keep this power of `memory`: 0.965 where that is 0.9.

How a client's loss curves does not change with what is left to learn, and near the end of that the
noise is so strong that it takes many rounds.
"""
_BACK = 1.0
"""The standard deviations above which a client resists; one that pushed is back: as honest ones do.

What has nothing to do with the step, noise, is above 0 as often as not.
"""
_DOWN = -1.0
"""The standard deviations below which the root is where losses curve downwards."""
_LEAST = 2.0
"""The standard deviations below which an outlier beside the good ones pushes.

Not one, as with what the root data set says: who was accepted has a part in the step, for which it
is resisting, and beside those a rejected client that sends noise would be an outlier at once.
"""
_SAMPLED = 1 << 12
"""So many parameters tell whether the model took the step that was decided on."""
_SAME_WAY = 0.9
"""The cosine of that step and the one taken above which it did, but for a factor and rounding."""
_SUM, _SQUARES, _LATE_SUM, _LATE_SQUARES, _PUSHED, _ALONG, _LENGTH = range(7)
"""What is remembered of a client: two sums and their squares, whether it was out, and of the last
round its update along the step that the model took then and its squared length (NaN: was away)."""


@dataclass(frozen=True, eq=False)
class Resistance:
    """How much clients resist, and last the root: in standard deviations, 0 where it is unknown."""

    slow: Tensor
    """(n + 1, K) float64 on the CPU, over many rounds: in all parameters, then in each layer."""
    lately: Tensor
    """The same over as many rounds as a client's other averages go back."""
    seen: Tensor
    """(n + 1,) bool: of whom something was observed in this round."""
    names: tuple[str, ...]
    """Of the K parts; "" is all parameters."""
    kept: Tensor
    """What is remembered of them, (n + 1, 7, K)."""

    @classmethod
    def of(cls, past: Any, ids: Tensor, parts: Parts, params: Tensor, keep: float) -> "Resistance":
        """Take in what the clients `ids` (n,) sent, taken apart, at the model `params` (d,).

        With u' what a client sent in the round before, u what it sends now and s the step between,
        the observation is x = (u' - u).s / (|s| sqrt(|u'|^2 + |u|^2)), of each part by itself.
        There is none of a client that was away in the round before or whose id comes twice, and
        none of anybody where the model went another way than s: what was sent along that is not
        known any more. Of all that there are, the last one x_t, the number is

            sum_j k^(t - j) x_j / sqrt(sum_j k^(2 (t - j)) x_j^2),

        k being the share `keep` that is kept of a client from round to round, and for the slow one
        its third root. `past` is what `stored` gave in the round before, or None; what another
        process or another number of processes stored, or another model, is not known here.
        """
        rows = with_root(ids)
        step = past["step"].to(parts.updates) if _same_kind(past, parts) else None
        if step is not None:  # of as many numbers as the model has: with all cores
            along, square = parts.along(step), parts.squares_of(step)
            taken = _taken(past["params"], parts.shard.part(params), step, parts.shard)
        with in_one_thread(len(rows)):
            kept = torch.zeros(len(rows), 7, len(parts.names), dtype=torch.float64)
            found = torch.zeros(len(rows), dtype=torch.bool)
            if step is not None:
                kept = _of_clients(past, rows, kept)
                x = kept[:, _ALONG] - along
                x = x / ((kept[:, _LENGTH] + parts.squares) * square).sqrt()
                some = x.isfinite() & (taken & ~doubled(rows))[:, None]
                found = some.any(1)
                x = torch.where(some, x, 0.0)
                for place, k in ((_SUM, keep**_LONGER), (_LATE_SUM, keep)):
                    for at, share, new in ((place, k, x), (place + 1, k**2, x.square())):
                        kept[:, at] = torch.where(some, share * kept[:, at] + new, kept[:, at])
            kept[:, _LENGTH] = parts.squares
            slow, lately = (
                torch.where(kept[:, at + 1] > 0, kept[:, at] / kept[:, at + 1].sqrt(), 0.0)
                for at in (_SUM, _LATE_SUM)
            )
        return cls(slow, lately, found, parts.names, kept)

    @property
    def _tells(self) -> Tensor:
        """In which parts clients can be told apart, (K,) bool."""
        least = torch.minimum(self.slow, self.lately)
        return (least[-1] > _DOWN) & self.seen[:-1].any()

    @property
    def of_clients(self) -> tuple[Tensor, ...]:
        """Both numbers of n clients in all parameters, (n,) each; none if they tell nothing."""
        return (self.slow[:-1, 0], self.lately[:-1, 0]) if self._tells[0] else ()

    def pushing(self, sure: float) -> tuple[Reasons, Tensor]:
        """Who of the clients pushes on, and in what: (n + 1, K) bool, to be given to `stored`.

        Of all parameters as with every measure (`outliers.below`): by more than `sure` standard
        deviations in either number, or by more than two if that is an outlier beside the good ones.
        Of a layer by so many more that all layers together are as unlikely (`outliers.together`),
        and only who does not resist by more than one in all parameters.
        Who did so in its last round is back when it resists by more than one. Nobody does in what
        the root pushes in itself, by more than one standard deviation in either number, and nobody
        at all where nothing was observed of anybody.
        """
        least = torch.minimum(self.slow, self.lately)
        bounds = torch.full((len(self.names),), sure, dtype=torch.float64)
        bounds[1:] = together(sure, len(self.names) - 1)
        out = least < -bounds
        out[:-1, 0] |= below(self.slow[:-1, 0], self.lately[:-1, 0], sure, _LEAST)
        stays = (self.kept[:, _PUSHED] > 0) & (self.slow < _BACK) & self.seen[:, None] & ~out
        out |= stays
        out[:, 1:] &= self.slow[:, :1] < _BACK
        out &= self._tells
        out[-1] = False
        reasons: Reasons = {}
        for i in out.any(1).nonzero().flatten().tolist():
            worst = int(torch.where(out[i], least[i], math.inf).argmin())
            where = f" in layer {self.names[worst]}" if worst else ""
            told = f"(resistance {float(least[i, worst]):.1f} standard deviations)"
            if stays[i, worst]:
                reasons[i] = f"its updates{where} pushed the model on and do not resist yet {told}"
            else:
                why = "push the model on the way it went, which training resists"
                reasons[i] = f"its updates{where} {why} {told}"
        return reasons, out

    def stored(
        self,
        past: Any,
        ids: Tensor,
        parts: Parts,
        params: Tensor,
        pushing: Tensor,
        step: Tensor,
    ) -> dict[str, Any]:
        """What goes into `Decision.memory` when the model `params` (d,) takes the `step`."""
        rows, along, known = with_root(ids), parts.along(step), _same_kind(past, parts)
        with in_one_thread(len(rows)):
            kept = self.kept.clone()
            kept[:, _PUSHED] = pushing.to(kept)
            kept[:, _ALONG] = torch.where(doubled(rows)[:, None], math.nan, along)
            every, of = rows, kept
            if known:
                before = past["ids"].cpu()
                away = ~torch.isin(before, rows)
                others = past["rows"].cpu()[away]
                others[:, _ALONG] = math.nan
                every, of = torch.cat([before[away], rows]), torch.cat([others, kept])
        return {
            "names": list(self.names),
            "place": [parts.shard.rank, parts.shard.ranks],
            "ids": every,
            "rows": of,
            "step": step.clone(),
            "params": _sample(parts.shard.part(params)).clone(),
        }


def _same_kind(past: Any, parts: Parts) -> bool:
    """Whether `past` is of the same parts of as many columns, in each of the processes."""
    shard = parts.shard
    same = (
        past is not None
        and past["names"] == list(parts.names)
        and past["place"] == [shard.rank, shard.ranks]
        and len(past["step"]) == parts.updates.shape[1]
    )
    agree = shard.sum(torch.tensor([float(same)], device=parts.updates.device))
    return bool(agree == shard.ranks)


def _of_clients(past: Mapping[str, Any], ids: Tensor, new: Tensor) -> Tensor:
    """What `past` has of `ids` (n,), and what is `new` (n, 7, K) of those that it does not know."""
    same = ids[:, None] == past["ids"].cpu()
    known = same.any(1)
    rows = new.clone()
    rows[:, _ALONG] = math.nan
    rows[known] = past["rows"].cpu()[same[known].to(torch.uint8).argmax(1)]
    return rows


def _taken(before: Tensor, now: Tensor, step: Tensor, shard: Shard) -> bool:
    """Whether the model went along `step`, from a sample of its parameters `before` it to `now`."""
    step = _sample(step).to(torch.float64)
    moved = _sample(now).to(step) - before.to(step)
    products = torch.stack([moved @ step, moved @ moved, step @ step])
    along, mine, theirs = shard.sum(products).tolist()
    return bool(along > _SAME_WAY * math.sqrt(mine * theirs))


def _sample(columns: Tensor) -> Tensor:
    return columns[:: max(1, len(columns) // _SAMPLED)]
