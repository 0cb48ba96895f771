"""Masks for the updates of a round: what every variant of SkyMask starts with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skymask.defences.selected import needed
from skymask.flat import RootLoss, gradient
from skymask.geometry import lengths
from skymask.masks import Masks, MaskTraining
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
    server = needed(round, "server_update", "SkyMask") if root else None
    rows = _shortened(updates, server, round.shard)
    own = None if server is None else round.shard.part(server)
    return training(rows, _root_gradient(round), watch, server=own, shard=round.shard)


def mask_evidence(masks: Masks, round: Round) -> dict[str, Any]:
    """What a report shows of the masks: steps, bits flipped last, share of ones in each layer."""
    layers = round.shard.layers(round.layers)
    ones = {name: masks.bits[:, at].sum(1, dtype=torch.float32) for name, at in layers.items()}
    if ones:
        ones = dict(zip(ones, round.shard.sum(torch.stack(list(ones.values()))), strict=True))
    return {
        "mask_steps": masks.steps,
        "flipped": masks.flipped,
        "ones": {name: ones[name] / (at.stop - at.start) for name, at in round.layers.items()},
    }


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
    if longest == 0 or not (norms > longest).any():
        return updates
    factors: Tensor = (longest / norms).clamp_max(1)
    return updates * factors[:, None]
