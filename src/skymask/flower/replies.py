"""What came back from the nodes of a round: sorted out, and screened before a rule sees it.

Flower's own strategies stop the whole run at the first reply that they cannot aggregate, and take
NaN for a number. Here such a reply costs its sender the round, and nobody else anything.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message, MetricRecord
from torch import Tensor

from skymask.flower.layout import Arrays, Layout, Malformed

Kind = Literal["accepted", "rejected", "malformed", "unjudged", "error", "silent", "excluded"]


@dataclass(frozen=True)
class Verdict:
    """What became of a node in a round.

    `accepted` and `rejected` are the defence's; `malformed` is a reply that no strategy could
    aggregate; `unjudged` one of too few for the defence; `error` an error in place of a reply;
    `silent` no reply in time; `excluded` a node that was not asked.
    """

    kind: Kind
    reason: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Sent:
    """A usable reply: the node, its message, and what a rule looks at."""

    node: int
    message: Message
    weight: float
    params: Tensor
    """The client's parameters W_i, (d,)."""
    buffers: Tensor
    """The client's floating-point buffers, (b,)."""


def sorted_out(
    asked: Sequence[Message], replies: Iterable[Message]
) -> tuple[dict[int, Message], dict[int, Verdict]]:
    """Replies by the node that was asked, in the order of node ids, and verdicts on the others.

    A reply belongs to the node that its request went to: one that the infrastructure makes up for
    a dead node carries a sender of its own. A second reply to the same request is ignored, and so
    is a reply to no request.
    """
    asked_of = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    came: dict[int, Message] = {}
    for message in replies:
        node = asked_of.get(message.metadata.reply_to_message_id)
        if node is not None:
            came.setdefault(node, message)
    verdicts: dict[int, Verdict] = {}
    for node in sorted(asked_of.values()):
        if node not in came:
            verdicts[node] = Verdict("silent", "no reply in time")
        elif came[node].has_error():
            verdicts[node] = Verdict(
                "error", came[node].error.reason or "an error without a reason"
            )
    return {node: came[node] for node in sorted(came) if node not in verdicts}, verdicts


def screened(
    came: dict[int, Message],
    layout: Layout,
    globals_: Arrays,
    weighted_by: str,
    max_weight_ratio: float,
    loss_key: str | None = None,
) -> tuple[list[Sent], dict[int, Verdict]]:
    """The usable training replies, and a `malformed` verdict on each of the others.

    Checked are the arrays (`Layout.decoded`), the metrics (`_metrics`), that both are named and
    made as most nodes have them (Flower refuses to aggregate otherwise), and that the example count
    is at most `max_weight_ratio` times the median one. A loss under `loss_key`, which the inner
    strategy takes a power of, must not be negative.
    """
    metrics, verdicts = _usable_metrics(came, weighted_by, max_weight_ratio, arrays=1)
    usable = []
    for node, weight in metrics.items():
        (record,) = came[node].content.array_records.values()
        try:
            _check_loss(came[node], loss_key)
            params, buffers = layout.vectors(layout.decoded(record, globals_))
        except Malformed as why:
            verdicts[node] = Verdict("malformed", str(why))
        else:
            usable.append(Sent(node, came[node], weight, params, buffers))
    return usable, verdicts


def screened_evaluation(
    came: dict[int, Message], weighted_by: str, max_weight_ratio: float
) -> tuple[list[Message], dict[int, Verdict]]:
    """The usable evaluation replies, and a `malformed` verdict on each of the others."""
    metrics, verdicts = _usable_metrics(came, weighted_by, max_weight_ratio, arrays=0)
    return [came[node] for node in metrics], verdicts


def _usable_metrics(
    came: dict[int, Message], weighted_by: str, max_weight_ratio: float, arrays: int
) -> tuple[dict[int, float], dict[int, Verdict]]:
    """The example count of each node whose metrics can be used, and verdicts on the others."""
    weights: dict[int, float] = {}
    shapes: dict[int, tuple[object, ...]] = {}
    verdicts: dict[int, Verdict] = {}
    for node, message in came.items():
        try:
            weights[node], shapes[node] = _metrics(message, weighted_by, arrays)
        except Malformed as why:
            verdicts[node] = Verdict("malformed", str(why))
    if not weights:
        return weights, verdicts
    usual = Counter(shapes.values()).most_common(1)[0][0]
    most = max_weight_ratio * statistics.median_low(weights.values())
    for node in list(weights):
        reason = None
        if shapes[node] != usual:
            reason = (
                "its reply names or shapes its records and metrics otherwise than most nodes do"
            )
        elif weights[node] > most:
            reason = (
                f"it states {weights[node]:g} examples ({weighted_by!r}), more than "
                f"{max_weight_ratio:g} times the median node's"
            )
        if reason is not None:
            verdicts[node] = Verdict("malformed", reason)
            del weights[node]
    return weights, verdicts


def _metrics(message: Message, weighted_by: str, arrays: int) -> tuple[float, tuple[object, ...]]:
    """The example count that a reply states, and how its records are named and made."""
    content = message.content
    if len(content.array_records) < arrays or (arrays and len(content.array_records) > 1):
        raise Malformed(f"its reply has {len(content.array_records)} records of arrays, not 1")
    if len(content.metric_records) != 1:
        raise Malformed(f"its reply has {len(content.metric_records)} records of metrics, not 1")
    ((name, record),) = content.metric_records.items()
    for key, value in record.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(abs(number) < math.inf for number in numbers):  # NaN is not; any integer is
            raise Malformed(f"its metric {key!r} is not finite")
    weight = record.get(weighted_by)
    if weight is None:
        raise Malformed(f"its metrics lack {weighted_by!r}")
    if isinstance(weight, list) or not 0 < weight < math.inf:
        raise Malformed(f"it states {weight!r} examples ({weighted_by!r}), not a positive number")
    array_names = tuple(content.array_records) if arrays else ()
    return float(weight), (array_names, name, _made(record))


def _check_loss(message: Message, loss_key: str | None) -> None:
    (record,) = message.content.metric_records.values()
    loss = None if loss_key is None else record.get(loss_key)
    if isinstance(loss, int | float) and loss < 0:
        raise Malformed(f"it states a loss of {loss!r} ({loss_key!r}), less than zero")


def _made(record: MetricRecord) -> frozenset[tuple[str, int]]:
    """Names and lengths of the metrics (-1: a single number)."""
    return frozenset(
        (key, len(value) if isinstance(value, list) else -1) for key, value in record.items()
    )
