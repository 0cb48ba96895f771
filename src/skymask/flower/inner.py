"""The strategy inside: what it goes by, and its aggregate where that can be the next model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from skymask.flower.layout import Layout

_STAYS = "the global model stays as it is"


def weighted_by(strategy: Strategy) -> str:
    """The metric that `strategy`, or the one that it wraps, weights replies by."""
    if isinstance(key := getattr(strategy, "weighted_by_key", None), str):
        return key
    wrapped = getattr(strategy, "strategy", None)
    return weighted_by(wrapped) if isinstance(wrapped, Strategy) else "num-examples"


def loss_key(strategy: Strategy) -> str | None:
    """The metric that `strategy` takes for a client's loss, as QFedAvg does."""
    key = getattr(strategy, "train_loss_key", None)
    return key if isinstance(key, str) else None


def aggregated(
    strategy: Strategy, index: int, messages: Sequence[Message], layout: Layout, whole: bool
) -> tuple[ArrayRecord | None, MetricRecord | None, str | None]:
    """The aggregate of the `messages`, its metrics, and why it is not taken if it is not.

    One that is not taken leaves no trace in the strategy, but for what it changes in place. With
    `whole` nothing was left out of the round, so that an error is the strategy's own: it is raised.
    """
    name, before = type(strategy).__name__, _attributes(strategy)
    try:
        arrays, metrics = strategy.aggregate_train(index, messages)
    except Exception as error:
        if whole:
            raise
        _restore(before)
        told = f"{type(error).__name__}: {error}"
        return None, None, f"{name} could not aggregate {len(messages)} replies ({told}); {_STAYS}"
    if arrays is not None and (problem := _unusable(arrays, layout)):
        _restore(before)
        return None, metrics, f"the aggregate of {name} {problem}; {_STAYS}"
    return arrays, metrics, None


def _unusable(arrays: ArrayRecord, layout: Layout) -> str | None:
    """Why the aggregate cannot be the next global model; None if it can.

    A server optimiser takes batch norm's running variance for a parameter, and its momentum can
    make it negative: in the next round every honest reply would be, too.
    """
    decoded = {key: array.numpy() for key, array in arrays.items()}
    if not all(np.isfinite(value).all() for value in decoded.values() if value.dtype.kind == "f"):
        return "is not finite"
    if layout.model is None or not layout.buffers:
        return None
    _, buffers = layout.vectors(decoded)
    for name, at in layout.model.buffer_layers.items():
        if name.endswith("running_var") and bool((buffers[at] < 0).any()):
            return f"has a negative {name}, which a server optimiser should not be given"
    return None


def _attributes(strategy: Strategy) -> list[tuple[Strategy, dict[str, Any]]]:
    """The attributes of `strategy`, and of those inside it, as they are bound now."""
    inside = [value for value in vars(strategy).values() if isinstance(value, Strategy)]
    return [(strategy, dict(vars(strategy))), *(part for s in inside for part in _attributes(s))]


def _restore(attributes: list[tuple[Strategy, dict[str, Any]]]) -> None:
    """Give the strategies back what `_attributes` noted, such as a server optimiser's moments."""
    for strategy, values in attributes:
        vars(strategy).clear()
        vars(strategy).update(values)
