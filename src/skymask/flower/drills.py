"""Mods that turn a node malicious or faulty, for tests and drills. Never in a real client.

    app = ClientApp(mods=[drills.sign_flip(on=drills.partitions(0, 1))])

A drill shows whether your server would notice. Each mod changes the replies to training requests
of the nodes that `on` picks, and says so in the log every time.
"""

import logging
import time
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray
from torch import Tensor

from skymask.errors import require

_log = logging.getLogger("flwr")

On = Callable[[Context], bool]
"""Whether a node, known by its context, is one of the bad ones."""


def partitions(*ids: int) -> On:
    """The nodes whose `partition-id` is one of `ids`, in simulation and with such a node config."""
    return lambda context: context.node_config.get("partition-id") in ids


def configured(name: str = "drill") -> On:
    """The nodes that were started with `--node-config "drill=true"`."""
    return lambda context: bool(context.node_config.get(name, False))


def flip_labels(labels: Tensor, classes: int) -> Tensor:
    """Label k becomes classes - 1 - k: for the client app to apply to its training labels.

    Raises `InputError` for labels outside 0 to classes - 1.
    """
    if labels.numel():
        low, high = int(labels.min()), int(labels.max())
        require(low >= 0 and high < classes, "labels", (low, high), f"0 to {classes - 1}")
    return classes - 1 - labels


def sign_flip(on: On, scale: float = 1.0) -> Mod:
    """Sends W_t - scale * (W_i - W_t): the model moves the wrong way."""
    return _changed(on, "sign flip", lambda own, sent: sent - scale * (own - sent))


def scaling(on: On, factor: float = 10.0) -> Mod:
    """Sends W_t + factor * (W_i - W_t): one client outweighs the others."""
    return _changed(on, "scaling", lambda own, sent: sent + factor * (own - sent))


def not_a_number(on: On) -> Mod:
    """Sends NaN."""
    return _changed(on, "not a number", lambda own, sent: np.full_like(own, np.nan))


def wrong_shape(on: On) -> Mod:
    """Sends arrays with one entry too many."""
    return _changed(on, "wrong shape", lambda own, sent: np.zeros(own.size + 1, own.dtype))


def garbage(on: On) -> Mod:
    """Sends bytes that are no arrays, under the right names."""

    def spoil(message: Message, reply: Message) -> None:
        record = _arrays(reply)
        for key, array in record.items():
            record[key] = Array(array.dtype, array.shape, array.stype, b"garbage")

    return _mod(on, "garbage", spoil)


def wrong_keys(on: On) -> Mod:
    """Sends the arrays under other names."""

    def spoil(message: Message, reply: Message) -> None:
        records = reply.content.array_records
        ((name, record),) = records.items()
        records[name] = ArrayRecord({f"other.{key}": array for key, array in record.items()})

    return _mod(on, "wrong keys", spoil)


def examples(on: On, stated: float, key: str = "num-examples") -> Mod:
    """States this many examples, such as 1e15 or -1."""

    def spoil(message: Message, reply: Message) -> None:
        _metrics(reply)[key] = stated

    return _mod(on, f"{stated:g} examples", spoil)


def missing_metrics(on: On) -> Mod:
    """Leaves the record of metrics out."""

    def spoil(message: Message, reply: Message) -> None:
        for name in list(reply.content.metric_records):
            del reply.content[name]

    return _mod(on, "missing metrics", spoil)


def additional_metrics(on: On) -> Mod:
    """States a metric that the others do not."""

    def spoil(message: Message, reply: Message) -> None:
        _metrics(reply)["of-my-own"] = 1.0

    return _mod(on, "additional metrics", spoil)


def fails(on: On) -> Mod:
    """Raises an exception in the client app."""

    def spoil(message: Message, reply: Message) -> None:
        raise RuntimeError("this drill makes the client fail")

    return _mod(on, "failure", spoil)


def slow(on: On, seconds: float) -> Mod:
    """Answers this much later."""
    return _mod(on, f"{seconds:g} s late", lambda message, reply: time.sleep(seconds))


_Change = Callable[[NDArray[np.floating], NDArray[np.floating]], NDArray[np.floating]]


def _changed(on: On, name: str, change: _Change) -> Mod:
    """A mod that sends `change(own, sent)` for each floating-point array of the model."""

    def spoil(message: Message, reply: Message) -> None:
        (before,) = message.content.array_records.values()
        record = _arrays(reply)
        for key, array in record.items():
            own = array.numpy()
            if own.dtype.kind == "f":
                record[key] = Array(np.asarray(change(own, before[key].numpy())))

    return _mod(on, name, spoil)


def _mod(on: On, name: str, spoil: Callable[[Message, Message], None]) -> Mod:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == MessageType.TRAIN and on(context):
            _log.warning("skymask drill on node %s: %s", context.node_id, name)
            spoil(message, reply)
        return reply

    return mod


def _arrays(reply: Message) -> ArrayRecord:
    (record,) = reply.content.array_records.values()
    return record


def _metrics(reply: Message) -> MetricRecord:
    (record,) = reply.content.metric_records.values()
    return record
