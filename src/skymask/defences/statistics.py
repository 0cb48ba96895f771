"""Batch norm's running statistics: what a client can poison without touching a parameter."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skymask.defences.known import Known, Reasons

_MEAN, _VARIANCE = "running_mean", "running_var"
_FLOOR = 1e-5
"""Added to variances, as batch norm itself does."""
_SHIFT, _SHIFT_AT_ONCE = 1.0, 3.0
"""Standard deviations that batch norm's outputs may be moved by, on average and in one round.

By one, most of a layer's features still have the sign that the next layer expects.
"""


def shifts(buffers: Tensor, server: Tensor, layers: Mapping[str, slice]) -> Tensor | None:
    """How far each client's running statistics are from the server's own, (n,) float64.

    For the features of one batch norm layer, with the client's mean and variance m, v and the
    server's m', v', the root mean squares of (m - m') / sqrt(v') and of log(v / v') / 2 are what
    the layer's outputs are moved and stretched by where the client's statistics stand in for the
    server's, in standard deviations of the features; the largest of them over the layers counts.

    `buffers` is (n, b), `server` (b,); None where `layers` names no running statistics.
    """
    found = []
    for name, mean_at in layers.items():
        variance_at = layers.get(name.removesuffix(_MEAN) + _VARIANCE)
        if not name.endswith(_MEAN) or variance_at is None:
            continue
        rows, own = buffers.to(torch.float64), server.to(torch.float64)
        variance = own[variance_at] + _FLOOR
        moved = (rows[:, mean_at] - own[mean_at]) / variance.sqrt()
        stretched = ((rows[:, variance_at] + _FLOOR) / variance).log() / 2
        found += [part.square().mean(1).sqrt() for part in (moved, stretched)]
    return torch.stack(found).amax(0) if found else None


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
