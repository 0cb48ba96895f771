"""What a rule remembers of clients over rounds: averages that forget, kept by client id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROOT = -1
"""The row of the server's own model; it comes last and is remembered like a client."""


def with_root(ids: Tensor) -> Tensor:
    """The clients' `ids` (n,), and last the root's: (n + 1,)."""
    return torch.cat([ids, torch.tensor([ROOT])])


def doubled(ids: Tensor) -> Tensor:
    """Which of `ids` (n,) come more than once, (n,) bool."""
    _, place, times = ids.unique(return_inverse=True, return_counts=True)
    more: Tensor = times[place] > 1
    return more


@dataclass(frozen=True, eq=False)
class ClientAverages:
    """Exponential averages of some numbers for each client, without bias towards the start.

    With x the observation of a round in which the client took part and k the share kept,
    s := k s + (1 - k) x and w := k w + (1 - k); the average is s / w. Clients that are away keep
    s and w.
    """

    values: dict[str, Tensor]
    """The averages of this round's clients and last of the root's, (n + 1,) float64 each."""
    noise: Tensor
    """Each average's variance, in variances of a single observation, (n + 1,): 1 after the first.

    After t rounds it is (1 - k) (1 + k^t) / ((1 + k) (1 - k^t)).
    """
    state: dict[str, Tensor]
    """Of all clients ever seen: `ids` (m,), `weight` (m,), and s under each name (m,)."""
    root: dict[str, Tensor]
    """The same of the root, each (1,)."""

    @classmethod
    def of(
        cls, past: Any, ids: Tensor, seen: Mapping[str, Tensor], keep: float
    ) -> "ClientAverages":
        """Take in what was `seen`, (n + 1,) float64 each, of the clients `ids` (n,) and the root.

        `past` is what `stored` gave the round before, or None. A client id that comes twice in a
        round is one client, whose observations are averaged.
        """
        past = _on_cpu(past or {})
        rows = torch.stack([torch.ones(len(ids) + 1, dtype=torch.float64), *seen.values()])
        unique, place, times = ids.unique(return_inverse=True, return_counts=True)
        here = rows.new_zeros(len(rows), len(unique)).index_add_(1, place, rows[:, :-1]) / times
        names = ["weight", *seen]
        known, sums = _advance(past.get("all"), names, unique, here, keep)
        _, root = _advance(past.get("root"), names, torch.tensor([ROOT]), rows[:, -1:], keep)
        both = torch.cat([sums[:, torch.searchsorted(known, ids)], root], 1)
        weight = both[0]
        noise = (1 - keep) * (2 - weight) / ((1 + keep) * weight)
        return cls(
            dict(zip(seen, both[1:] / weight, strict=True)),
            noise,
            {"ids": known, **dict(zip(names, sums, strict=True))},
            {"ids": torch.tensor([ROOT]), **dict(zip(names, root, strict=True))},
        )

    def stored(self) -> dict[str, Any]:
        """What goes into `Decision.memory`."""
        return {"all": self.state, "root": self.root}


@dataclass(frozen=True, eq=False)
class PairAverages:
    """The same kind of average for each pair of clients, among those of the last round."""

    values: Tensor
    """The averages, (n + 1, n + 1) float64, the root's row last."""
    ids: Tensor
    sums: Tensor
    weights: Tensor

    @classmethod
    def of(cls, past: Any, ids: Tensor, seen: Tensor, keep: float) -> "PairAverages":
        """Take in what was `seen` (n + 1, n + 1) of the clients `ids` (n,) and the root."""
        rows = with_root(ids)
        sums, weights = torch.zeros_like(seen), torch.zeros_like(seen)
        if past is not None and not doubled(rows).any():
            past = _on_cpu(past)
            known, order = past["ids"].sort()
            at = torch.searchsorted(known, rows).clamp_max(len(known) - 1)
            there = known[at] == rows
            old, new = order[at[there]], there.nonzero().flatten()
            sums[new[:, None], new] = past["sums"].to(seen)[old[:, None], old]
            weights[new[:, None], new] = past["weights"].to(seen)[old[:, None], old]
        sums, weights = keep * sums + (1 - keep) * seen, keep * weights + (1 - keep)
        return cls(sums / weights, rows, sums, weights)

    def stored(self) -> dict[str, Any]:
        """What goes into `Decision.memory`, in single precision."""
        return {"ids": self.ids, "sums": self.sums.float(), "weights": self.weights.float()}


def known_places(known: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of `ids` (n,) is in `known` (m,), sorted; and whether it is there, (n,) bool."""
    if not len(known):
        return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
    return place, known[place] == ids


def recalled(past: Any, ids: Tensor, name: str, sums: bool = False) -> Tensor:
    """The averages of the clients `ids` (n,) when they last took part, 0 where they never did.

    With `sums` it is s, which no single round brings above 1 - k.
    """
    values = torch.zeros(len(ids), dtype=torch.float64)
    state = _on_cpu(past or {}).get("all")
    if state is not None and name in state:
        place, there = known_places(state["ids"], ids)
        values[there] = (state[name] if sums else state[name] / state["weight"])[place[there]]
    return values


def _advance(
    past: Mapping[str, Tensor] | None, names: Sequence[str], ids: Tensor, seen: Tensor, keep: float
) -> tuple[Tensor, Tensor]:
    """All ids and their sums with `seen` (k, n) of the clients `ids` (sorted, none twice) taken in.

    `names` are those of the k rows.
    """
    before = ids[:0] if past is None else past["ids"]
    known = ids if before.equal(ids) else torch.cat([before, ids]).unique()
    sums = seen.new_zeros(len(names), len(known))
    if past is not None:
        nothing = seen.new_zeros(len(before))
        sums[:, torch.searchsorted(known, before)] = torch.stack(
            [past.get(name, nothing) for name in names]
        )
    at = torch.searchsorted(known, ids)
    sums[:, at] = keep * sums[:, at] + (1 - keep) * seen
    return known, sums


def _on_cpu(memory: Any) -> Any:
    """The memory of a resumed run may be on the run's device."""
    if isinstance(memory, Mapping):
        return {name: _on_cpu(value) for name, value in memory.items()}
    return memory.cpu() if isinstance(memory, Tensor) else memory
