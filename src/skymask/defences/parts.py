"""Updates taken apart: all parameters together, and each layer by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skymask.types import Round


@dataclass(frozen=True, eq=False)
class Parts:
    """The K parts of `updates` (n, d) and of the server's own: all parameters, and each layer.

    Layers are the named parameters of `Round.layers`, where there are several; all parameters are
    all of these. Where a model is shared out among processes each holds its columns, and the
    numbers are of all of them.
    """

    names: tuple[str, ...]
    """"" for all parameters, then the layers'."""
    updates: Tensor
    server: Tensor
    round: Round
    squares: Tensor
    """The squared lengths, the server's last, (n + 1, K) float64 on the CPU."""

    @classmethod
    def of(cls, updates: Tensor, server: Tensor, round: Round) -> "Parts":
        """The parts of `updates` (n, d) and `server` (d,), or this process's columns of them."""
        names = ("", *round.layers) if len(round.layers) > 1 else ("",)
        squares = torch.cat([_squares(updates, round), _squares(server[None], round)])
        return cls(names, updates, server, round, squares)

    def along(self, step: Tensor) -> Tensor:
        """The products of each part with the same of `step` (d,), (n + 1, K) float64, CPU."""
        places = _places(self.updates, self.round)
        found = [
            torch.cat([self.updates[:, at] @ step[at], (self.server[at] @ step[at])[None]])
            for at in places
        ]
        return _together(found, self.round)

    def squares_of(self, step: Tensor) -> Tensor:
        """The squared lengths of the parts of `step` (d,): (1, K) float64 on the CPU."""
        return _squares(step[None], self.round)

    def shares(self) -> dict[str, Tensor]:
        """How large each layer is in a client's update, beside the median client: (n,) by layer.

        The logarithm of the layer's length over that of all parameters, less the median. A layer
        that most clients leave as it is is left out, since nothing is usual there.
        """
        norms = self.squares[:-1].sqrt()
        shares = torch.nan_to_num(norms / norms[:, :1], 0.0, 0.0, 0.0)
        usual = shares.median(0).values
        tiny = torch.finfo(shares.dtype).tiny
        return {
            name: (shares[:, k] / usual[k]).clamp_min(tiny).log()
            for k, name in enumerate(self.names)
            if name and usual[k] > 0
        }


def _squares(rows: Tensor, round: Round) -> Tensor:
    norms = [torch.linalg.vector_norm(rows[:, at], dim=1) for at in _places(rows, round)]
    return _together([norm.to(torch.float64).square() for norm in norms], round)


def _places(rows: Tensor, round: Round) -> Sequence[slice]:
    layers = round.shard.layers(round.layers)
    return list(layers.values()) if len(layers) > 1 else [slice(0, rows.shape[1])]


def _together(layers: list[Tensor], round: Round) -> Tensor:
    """Of all `layers`, (n,) each, together, and of each one where there are several: (n, K)."""
    each = round.shard.sum(torch.stack(layers, 1).to(torch.float64)).cpu()
    return torch.cat([each.sum(1, keepdim=True), each], 1) if len(layers) > 1 else each
