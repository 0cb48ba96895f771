"""Masks for the updates of a round: what every variant of SkyMask starts with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skymask.defences.selected import needed
from skymask.geometry import gram_matrix, lengths, ones_in
from skymask.masks import Masks, MaskTraining
from skymask.recording import may_wait
from skymask.root_loss import RootLoss, gradient
from skymask.shards import Shard
from skymask.types import Round

PAPER = "Yan et al., SkyMask: Attack-agnostic Robust Federated Learning, ECCV 2024"
_LONGEST = 1e3
"""In the masks' training an update counts as at most this many times as long as the server's."""


def trained_masks(
    training: MaskTraining,
    updates: Tensor,
    round: Round,
    root: bool,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Masks:
    """Masks of `updates` (n, d), and with `root` of the server's own update as row n.

    Updates much longer than the server's are shortened first, so that no client can make the root
    loss overflow. `watch` is as in `MaskTraining`. Raises `InputError` where `round` lacks
    `params`, `loss`, `root` or, with `root`, `server_update`.
    """
    bits, told = _trained(training, updates, round, root, watch)
    return Masks.of(bits, told.tolist())


@dataclass(frozen=True, eq=False)
class MaskSummary:
    """What is kept of m trained masks, on the CPU."""

    products: Tensor
    """Of the masks' bits with each other's, in each of the parts asked for, (parts, m, m)."""
    steps: int
    flipped: float
    moved: bool
    """These three as in `masks.Masks`."""
    ones: dict[str, Tensor]
    """The share of ones in each layer, (m,)."""

    def evidence(self) -> dict[str, Any]:
        """What a report shows of the masks."""
        return {"mask_steps": self.steps, "flipped": self.flipped, "ones": self.ones}


def mask_summary(
    training: MaskTraining,
    updates: Tensor,
    round: Round,
    root: bool,
    parts: Mapping[str, slice] | None = None,
) -> MaskSummary:
    """What `trained_masks` are like, as a whole or in each of the `parts` of a (d,) vector."""
    return begin_masks(training, updates, round, root, parts)()


def begin_masks(
    training: MaskTraining,
    updates: Tensor,
    round: Round,
    root: bool,
    parts: Mapping[str, slice] | None = None,
) -> Callable[[], MaskSummary]:
    """Begin with what `mask_summary` computes; what comes back waits for it and gives it.

    On CUDA all of it is recorded and replayed where the model is not large, so that the host waits
    for the device once in a round and not after every mask step; until then it can do other work.
    """
    params, loss, data = (needed(round, name, "SkyMask") for name in ("params", "loss", "root"))
    server = needed(round, "server_update", "SkyMask") if root else None
    parts = {"": slice(0, len(params))} if parts is None else parts

    def seen(updates: Tensor, now: Round) -> Tensor:
        bits, told = _trained(training, updates, now, root)
        products = [gram_matrix(bits[:, at]) for at in now.shard.layers(parts).values()]
        ones = [ones_in(bits, at) for at in now.shard.layers(now.layers).values()]
        sums = torch.cat([each.to(torch.float64).view(-1) for each in products + ones])
        return torch.cat([told, now.shard.sum(sums)])

    if isinstance(loss, RootLoss) and round.shard.ranks == 1:

        def again(updates: Tensor, params: Tensor, buffers: Tensor, *own: Tensor) -> tuple[Tensor]:
            now = replace(round, params=params, loss=loss.at(buffers))
            return (seen(updates, replace(now, server_update=own[0]) if own else now),)

        name = "masks", training, _places(parts), _places(round.layers)  # rules may take turns
        own = () if server is None else (server,)
        inputs = updates, params, loss.buffers, *own
        found = loss.repeat(name, data.identity, lambda: again, *inputs)[0]
    else:
        found = seen(updates, round)
    return lambda: _summary(found.cpu(), len(updates) + root, len(parts), round.layers)


def _summary(found: Tensor, m: int, parts: int, layers: Mapping[str, slice]) -> MaskSummary:
    """From what is `found` of m masks: three numbers, `parts` matrices, shares in `layers`."""
    told, products, ones = found.split([3, parts * m * m, len(layers) * m])
    steps, flipped, moves = told.tolist()
    shares = {
        name: (row / (at.stop - at.start)).float()
        for (name, at), row in zip(layers.items(), ones.view(-1, m), strict=True)
    }
    return MaskSummary(products.view(-1, m, m), int(steps), flipped, moves > 0, shares)


def _trained(
    training: MaskTraining,
    updates: Tensor,
    round: Round,
    root: bool,
    watch: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `MaskTraining.trained`."""
    server = needed(round, "server_update", "SkyMask") if root else None
    rows = _shortened(updates, server, round.shard)
    own = None if server is None else round.shard.part(server)
    return training.trained(rows, _root_gradient(round), watch, server=own, shard=round.shard)


def _places(parts: Mapping[str, slice]) -> tuple[tuple[str, int, int], ...]:
    """The same, as a key of a dictionary (a slice is none before Python 3.12)."""
    return tuple((name, at.start, at.stop) for name, at in parts.items())


def _root_gradient(round: Round) -> Callable[[Tensor], Tensor]:
    """Gradient of Eq. 3, the SUM of the loss over the root set, at W_t + a (d,) vector."""
    params, loss, root = (needed(round, name, "SkyMask") for name in ("params", "loss", "root"))
    # A loss of one's own is differentiated; the library's own knows a faster way.
    of = loss.gradient if isinstance(loss, RootLoss) else partial(gradient, loss)

    def total(shift: Tensor) -> Tensor:
        slope: Tensor = of(params + shift, root) * len(root.labels)
        return slope

    return total


def _shortened(updates: Tensor, server: Tensor | None, shard: Shard) -> Tensor:
    norms = lengths(updates, shard)
    usual = norms.median() if server is None else torch.linalg.vector_norm(server)
    longest = _LONGEST * usual
    long = (norms > longest) & (longest > 0)
    if may_wait(updates.device) and not long.any():
        return updates  # without a copy
    factors: Tensor = torch.where(long, longest / norms, 1.0)
    return updates * factors[:, None]
