"""A federation in this process: eight nodes that hold the embedded digits, and a faulty line.

Each node runs a real `ClientApp` with real mods; only the transport is made up.
"""

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import (
    ArrayRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from sklearn.datasets import load_digits
from torch import nn

import skymask as sm
from skymask.flower import RobustStrategy, SkyMask

NODES = 8
LOCAL = sm.LocalSGD(steps=5, batch=32, lr=0.3)
EACH = 150


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The embedded digits in a fixed random order: inputs (1797, 64), labels (1797,)."""
    inputs, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(inputs / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def part(start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = digits()
    return inputs[start : start + size], labels[start : start + size]


def root() -> tuple[torch.Tensor, torch.Tensor]:
    return part(0, 100)


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    return part(100, 400)


def model() -> nn.Module:
    """The same small network every time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def node_id(partition: int) -> int:
    """Ids as Flower has them: 64 bits, some beyond what a signed number can hold."""
    return 2**63 - 3 + partition


def client_app(mods: Sequence[Mod] = (), flipped: Collection[int] = ()) -> ClientApp:
    """A client as a Flower user writes it; the partitions in `flipped` flip their labels."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        which = int(context.node_config["partition-id"])
        inputs, labels = part(500 + EACH * which, EACH)
        if which in flipped:
            labels = 9 - labels
        net = model()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(net.parameters(), lr=LOCAL.lr)
        seed = 1000 * which + int(message.content["config"]["server-round"])
        random = torch.Generator().manual_seed(seed)
        loss = torch.tensor(0.0)
        for _ in range(LOCAL.steps):
            rows = torch.randperm(EACH, generator=random)[: LOCAL.batch]
            optimiser.zero_grad()
            loss = F.cross_entropy(net(inputs[rows]), labels[rows])
            loss.backward()
            optimiser.step()
        metrics = MetricRecord({"num-examples": EACH, "loss": float(loss.detach())})
        content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        inputs, labels = part(500 + EACH * int(context.node_config["partition-id"]), EACH)
        metrics = {"accuracy": accuracy(message.content["arrays"], (inputs, labels))}
        metrics["num-examples"] = EACH
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def accuracy(arrays: ArrayRecord, data: tuple[torch.Tensor, torch.Tensor] | None = None) -> float:
    """Share of `data` (default: the test set) that the model gets right."""
    inputs, labels = data or held_out()
    net = model()
    net.load_state_dict({k: v.float() for k, v in arrays.to_torch_state_dict().items()})
    return float((net(inputs).argmax(1) == labels).float().mean())


def evaluated(index: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": accuracy(arrays)})


Line = Callable[[int, list[Message]], list[Message]]
"""What the network does with the replies of the so-manieth exchange."""


@dataclass
class Federation(Grid):
    """A grid whose nodes live in this process."""

    app: ClientApp
    line: Line = lambda exchange, replies: replies
    nodes: int = NODES
    exchanges: int = 0
    asked: list[list[int]] = field(default_factory=list)
    """Partitions that got a training request, a list for each round."""

    def get_node_ids(self) -> Iterable[int]:
        return [node_id(i) for i in range(self.nodes)]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node_id(i), name=f"clinic-{i}", public_key=b"key %d" % i)
            for i in range(self.nodes)
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        for message in messages:
            # As the grids of Flower do it: the id is set on the message that was handed over.
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        if messages and messages[0].metadata.message_type == MessageType.TRAIN:
            self.asked.append(sorted(partition(m.metadata.dst_node_id) for m in messages))
        replies = [self._reply(message) for message in messages]
        self.exchanges += 1
        return self.line(self.exchanges, replies)

    def _reply(self, message: Message) -> Message:
        which = partition(message.metadata.dst_node_id)
        config = {"partition-id": which, "num-partitions": self.nodes}
        context = Context(1, node_id(which), config, RecordDict(), {})
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(code=0, reason=repr(error)), reply_to=message)
        return reply

    # What else a Grid must have. Strategies only send and receive: a call here is a test's mistake.

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **settings: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def partition(node: int) -> int:
    return node - node_id(0)


def lost(partitions: Collection[int]) -> Line:
    """A line on which the replies of these partitions never arrive."""
    return lambda exchange, replies: [
        reply for reply in replies if partition(reply.metadata.src_node_id) not in partitions
    ]


def skymask(inner: Strategy, **settings: Any) -> SkyMask:
    given = {"model": model, "loss": F.cross_entropy, "root_data": root(), "local": LOCAL}
    return SkyMask(inner, **given | {"device": "cpu"} | settings)


def start(
    strategy: Strategy, federation: Federation, rounds: int = 6, **settings: Any
) -> tuple[Any, float]:
    """The result of a run, and the final accuracy on the test set."""
    initial = ArrayRecord(model().state_dict())
    result = strategy.start(federation, initial, num_rounds=rounds, **settings)
    return result, accuracy(result.arrays)


def excluded(strategy: RobustStrategy) -> set[int]:
    return {partition(node) for node in strategy.excluded}
