"""Updates taken apart: all parameters together, and each layer by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skymask.shards import Shard


@dataclass(frozen=True, eq=False)
class Parts:
    """The K parts of `updates` (n, d) and of the server's own: all parameters, and each layer.

    Where there is one layer alone, it is all parameters. Where a model is shared out among
    processes each holds its columns, and the numbers are of all of them.
    """

    names: tuple[str, ...]
    """"" for all parameters, then the layers'."""
    places: Sequence[slice]
    """The layers' columns, of those that are held here."""
    updates: Tensor
    server: Tensor
    shard: Shard
    squares: Tensor
    """The squared lengths, the server's last, (n + 1, K) float64 on the CPU."""

    @classmethod
    def of(
        cls, updates: Tensor, server: Tensor, layers: Mapping[str, slice], shard: Shard
    ) -> "Parts":
        """The `layers` of `updates` (n, d) and `server` (d,), or this process's columns of them."""
        names = ("", *layers) if len(layers) > 1 else ("",)
        places = list(shard.layers(layers).values())
        lengths = [_lengths(rows, places, shard) for rows in (updates, server[None])]
        return cls(names, places, updates, server, shard, _with_all(torch.cat(lengths)))

    def along(self, step: Tensor) -> Tensor:
        """The products of each part with the same of `step` (d,), (n + 1, K) float64, CPU."""
        found = [
            torch.cat([self.updates[:, at] @ step[at], (self.server[at] @ step[at])[None]])
            for at in self.places
        ]
        return _with_all(self.shard.sum(torch.stack(found, 1).to(torch.float64)).cpu())

    def squares_of(self, step: Tensor) -> Tensor:
        """The squared lengths of the parts of `step` (d,): (1, K) float64 on the CPU."""
        return _with_all(_lengths(step[None], self.places, self.shard))


def shares(updates: Tensor, layers: Mapping[str, slice], shard: Shard) -> dict[str, Tensor]:
    """How large each of `layers` is in a client's update, beside the median client: (n,) by layer.

    The logarithm of the layer's length over that of all of them, less the median; 0 of a layer that
    most clients leave as it is, since nothing is usual there. Nothing where there is one layer.
    """
    if len(layers) < 2:
        return {}
    norms = _lengths(updates, list(shard.layers(layers).values()), shard).sqrt()
    found = torch.nan_to_num(norms / norms.square().sum(1, keepdim=True).sqrt(), 0.0, 0.0, 0.0)
    usual = found.median(0).values
    beside = (found / usual).clamp_min(torch.finfo(found.dtype).tiny).log()
    return dict(zip(layers, torch.where(usual > 0, beside, 0.0).unbind(1), strict=True))


def _lengths(rows: Tensor, places: Sequence[slice], shard: Shard) -> Tensor:
    """The squared lengths of `rows` (n, d) in each place, (n, L) float64 on the CPU."""
    norms = torch.stack([torch.linalg.vector_norm(rows[:, at], dim=1) for at in places], 1)
    return shard.sum(norms.to(torch.float64).square()).cpu()


def _with_all(layers: Tensor) -> Tensor:
    """(n, L) with the sum over all layers first, where there are several."""
    if layers.shape[1] == 1:
        return layers
    return torch.cat([layers.sum(1, keepdim=True), layers], 1)
