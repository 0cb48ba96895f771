"""Turning: who sends the opposite of what it used to send.

A client's data stays the same, so that what it sends keeps much of its direction from round to
round: near the end of training that is what its data wants otherwise than the others'. Single
rounds show little of it, since batches are noise and the model steps to and fro across valleys,
which turns honest updates round, too. A mean over a few rounds has little of either. Who was honest
for a while and then sends its updates turned round, or adds the opposite of what they have in
common, points the other way within a few rounds, long before that shows in what the model has
learned.

Directions are compared in a sketch of the update, because an average of whole updates for each
client ever seen would take as much memory as the updates themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skymask.defences.known import Reasons
from skymask.defences.memory import doubled, known_places, with_root
from skymask.geometry import sketch
from skymask.shards import Shard

_BUCKETS = 512
"""Numbers in a sketch: cosines are off by 0.04, which is 1 / sqrt(512)."""
_LONGER = 1 / 5
"""What is usual of a client keeps this power of `memory` from round to round: 0.979 of 0.9."""
_SOONER = 3
"""Its last rounds keep this one: 0.73."""
_STAYS = 1 / 25
"""What is usual of one that has turned: 0.996, so that it is what it was before that, for long."""
_OPPOSITE = -0.35
"""The cosine below which the last rounds are opposite to what is usual.

One in 10,000 of honest clients of UCI HAR is below -0.37 (`python -m benchmarks.turning`), and none
of digits below 0.4.
"""
_LATE = 6
"""What is usual along s is known of rounds up to this many before: turned ones are not usual."""
_FEW = 14
"""Of fewer rounds nothing is usual yet."""
_MOST = 0.5
"""Where more clients than this share have turned the model has, and not they."""
_KEPT = ("averages", "moments", "recent", "seen", "turned")


@dataclass(frozen=True, eq=False)
class Turning:
    """Which way clients, and last the root, have been going of late beside what is usual of them.

    With v_t what a client sent in the t-th of its rounds, a sketch of length 1, and k the share
    that is kept of a client from round to round, the averages are f := k^3 f + (1 - k^3) v_t and
    s := k' s + (1 - k') v_t, where k' is the fifth root of k, or its 25th root while the client
    has turned. It has when two things are so, and until the cosine of f and s is above 0:

    - The cosine is below -0.35.
    - f lies so far back along s as noise does not take it: with y_t = v_t.s / |s|, s of the round
      before, and their average and standard deviation up to six rounds ago (kept by k', too),
      further below the average than `sure` standard deviations of f, each
      sqrt((1 - k^3) / (1 + k^3)) of a single one's. Without this, noise of few dimensions (a small
      model, batches of a few samples) has honest clients turn now and then.

    Nobody has in a round in which the cosine of the root model is below 0, or in which that would
    be more than half of the clients: then the loss is another one than before. Nothing is taken in
    of a client whose id comes twice, or whose update has no direction, zero or not finite.
    """

    cosines: Tensor
    """Of f and s, (n + 1,) float64 on the CPU; 1 of clients that were there too seldom."""
    was: Tensor
    """Who had turned before this round, (n + 1,) bool."""
    turned: Tensor
    """Who has now, (n + 1,) bool."""
    state: dict[str, Any]
    """What is remembered."""

    @classmethod
    def of(
        cls, past: Any, ids: Tensor, sketches: "Sketches", keep: float, sure: float
    ) -> "Turning":
        """Take in what the clients `ids` (n,) and the root sent, `sketches` of it.

        `past` is the `state` of the round before, or None.
        """
        rows = with_root(ids)
        past = past if sketches.known else None
        averages, moments, recent, seen, was = _recalled(past, rows, sketches.values.shape[1])

        lengths = sketches.values.norm(dim=1)
        usable = ~doubled(rows) & (lengths > 0) & lengths.isfinite()
        new = torch.where(usable[:, None], sketches.values / lengths[:, None], 0.0)
        usual = torch.where(was, keep**_STAYS, keep**_LONGER).to(torch.float64)

        oldest, y = recent[:, 0], torch.nan_to_num(_along(new, averages[:, 1]), 0.0)
        then = torch.stack([torch.ones_like(y), oldest, oldest.square()], 1)
        kept = torch.where(usable & (seen > _LATE), usual, 1.0)[:, None]
        moments = kept * moments + (1 - kept) * then
        recent = torch.where(usable[:, None], torch.cat([recent[:, 1:], y[:, None]], 1), recent)
        kept = torch.stack([torch.full_like(usual, keep**_SOONER), usual], 1)
        kept = torch.where(usable[:, None], kept, 1.0)[:, :, None].to(averages)
        averages = kept * averages + (1 - kept) * new[:, None]
        seen = seen + usable

        lately = _along(averages[:, 0], averages[:, 1])
        cosines = lately / averages[:, 0].to(torch.float64).norm(dim=1)
        weight, mean, square = moments.unbind(1)
        spread = (square / weight - (mean / weight).square()).clamp_min(0).sqrt()
        noise = math.sqrt((1 - keep**_SOONER) / (1 + keep**_SOONER)) * spread
        known = (seen > _FEW) & cosines.isfinite()
        opposite = (cosines < _OPPOSITE) & (mean / weight - lately > sure * noise)
        turned = known & torch.where(was, cosines < 0, opposite)
        cosines = torch.where(known, cosines, 1.0)
        turned = torch.where(usable, turned, was)
        turned &= bool(cosines[-1] > 0) and float(turned[:-1].double().mean()) <= _MOST
        here = dict(zip(_KEPT, (averages, moments, recent, seen, turned), strict=True))
        state = sketches.made | _with_those_away(past, rows, here)
        return cls(cosines, was, turned, state)

    def reasons(self) -> Reasons:
        """Why who is out that has turned."""
        found: Reasons = {}
        for i in self.turned[:-1].nonzero().flatten().tolist():
            told = f"(cosine {float(self.cosines[i]):.2f})"
            if self.was[i]:
                found[i] = f"its updates turned round and have not turned back {told}"
            else:
                found[i] = f"its updates have turned round against what it sent before {told}"
        return found


@dataclass(frozen=True, eq=False)
class Sketches:
    """Sketches of what clients and last the root sent, (n + 1, k) float32 on the CPU."""

    values: Tensor
    made: dict[str, int]
    """How: of how many parameters, and with which signs."""
    known: bool
    """Whether those of the round before were made alike, in every process."""

    @classmethod
    def of(
        cls,
        past: Any,
        updates: Tensor,
        server: Tensor,
        shard: Shard,
        generator: torch.Generator | None,
    ) -> "Sketches":
        """Of `updates` (n, d) and `server` (d,), or this process's columns of them.

        The signs are drawn from `generator` in the first round, so that a client that does not know
        the run's seed does not know what to send to be sketched as somebody else; without one they
        are always the same.
        """
        d = shard.size or updates.shape[1]
        mine = past is not None and past["parameters"] == d
        drawn = 0 if generator is None else int(torch.randint(1 << 48, (), generator=generator))
        told = [float(mine), float(drawn if shard.rank == 0 else 0)]
        all_know, seed = shard.sum(torch.tensor(told).double().to(updates.device)).tolist()
        known = all_know == shard.ranks
        made = {"parameters": d, "seed": int(past["seed"] if known else seed)}
        start = 0 if shard.ranks == 1 else int(shard.at.start)
        parts = [
            sketch(rows, min(_BUCKETS, d), made["seed"], start) for rows in (updates, server[None])
        ]
        return cls(shard.sum(torch.cat(parts)).cpu(), made, known)


def _along(rows: Tensor, usual: Tensor) -> Tensor:
    """How far each of `rows` (n, k) goes along its row of `usual` (n, k): (n,) float64."""
    rows, usual = rows.to(torch.float64), usual.to(torch.float64)
    lengths: Tensor = usual.norm(dim=1)
    return (rows * usual).sum(1) / lengths


def _recalled(past: Any, ids: Tensor, size: int) -> list[Tensor]:
    """What `past` has of `ids` (n,), in the order of `_KEPT`; zeros where it has nothing."""
    n = len(ids)
    found = [
        torch.zeros(n, 2, size),  # the averages f and s
        torch.zeros(n, 3, dtype=torch.float64),  # weight, and sums of y and of its square
        torch.zeros(n, _LATE, dtype=torch.float64),  # the last y
        torch.zeros_like(ids),  # rounds
        torch.zeros_like(ids, dtype=torch.bool),
    ]
    if past is not None:
        place, there = known_places(past["ids"].cpu(), ids)
        for into, name in zip(found, _KEPT, strict=True):
            into[there] = past[name].cpu()[place[there]]
    return found


def _with_those_away(past: Any, ids: Tensor, here: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is remembered of the `ids` that are `here` and of all others in `past`, sorted by id."""
    before = ids[:0] if past is None else past["ids"].cpu()
    every = torch.cat([before, ids]).unique()
    state = {"ids": every}
    for name in _KEPT:
        state[name] = here[name].new_zeros(len(every), *here[name].shape[1:])
        if past is not None:
            state[name][torch.searchsorted(every, before)] = past[name].cpu()
        state[name][torch.searchsorted(every, ids)] = here[name]
    return state
