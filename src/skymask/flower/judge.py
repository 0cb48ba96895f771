"""What the server makes of a round's usable replies: from arrays to the defence, and back."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from skymask.defences.assumed import TooFew
from skymask.defences.screening import checked
from skymask.errors import InputError
from skymask.flat import SampleLoss
from skymask.flower.layout import Arrays, Layout, layout
from skymask.flower.replies import Sent
from skymask.local_sgd import LocalSGD
from skymask.randomness import generator
from skymask.server import OwnTraining, Server, server
from skymask.types import Batch, Decision, Defence, Round

_FAR = 3.0
"""A root update this many times as long, or as short, as the median client's draws a warning."""


@dataclass(frozen=True, eq=False)
class OwnModel:
    """What the server trains beside its clients, and how: all or none of it is given.

    The root data set is on the device where the server computes.
    """

    loss: SampleLoss
    root: Batch
    local: LocalSGD | OwnTraining


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the defence makes of a round."""

    decision: Decision | None
    """None where the usable replies are too few for the defence."""
    memory: Any
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Judge:
    """A defence that is ready for the arrays of one model; made by `judge`."""

    defence: Defence
    layout: Layout
    server: Server | None
    """Trains the root model; None where the defence gets no root data set."""
    seed: int
    device: torch.device

    def __call__(
        self,
        index: int,
        globals_: Arrays,
        usable: Sequence[Sent],
        memory: Any,
        seconds: dict[str, float],
    ) -> Judgement:
        """Judge the `usable` replies to the global model `globals_`, in round `index` from 0.

        `memory` is that of the judgement before; `seconds` gets the times of the parts.
        """
        params, buffers = (part.to(self.device) for part in self.layout.vectors(globals_))
        updates = torch.stack([sent.params for sent in usable]).to(self.device) - params
        with timed(seconds, "root"):
            round = self._round(index, params, buffers, usable, memory)
        try:
            with timed(seconds, "defence"):
                decision = checked(self.defence(updates, round), self.defence, round)
        except TooFew as few:
            return Judgement(None, memory, [f"{few}; the global model stays as it is"])
        return Judgement(decision, decision.memory, list(_warnings(updates, round, decision)))

    def hand_on(self, globals_: Arrays, decision: Decision, accepted: Sequence[Sent]) -> None:
        """Put the defence's aggregate in the place of the arrays of the `accepted` replies."""
        params, buffers = self.layout.vectors(globals_)
        params = params + decision.update.cpu()
        if decision.buffers is not None:
            buffers = decision.buffers.cpu()
        for sent in accepted:
            records = sent.message.content.array_records
            ((name, own),) = records.items()
            records[name] = self.layout.record(params, buffers, own)

    def _round(
        self, index: int, params: Tensor, buffers: Tensor, usable: Sequence[Sent], memory: Any
    ) -> Round:
        clients = torch.tensor([_signed(sent.node) for sent in usable])
        counts = torch.tensor([sent.weight for sent in usable], dtype=torch.float64)
        own = torch.stack([sent.buffers for sent in usable]).to(self.device)
        client_buffers = own if own.numel() else None
        if self.server is None:
            return Round(
                index=index,
                clients=clients,
                params=params,
                layers=self.layout.params,
                buffers=client_buffers,
                buffer_layers=self.layout.buffers,
                counts=counts,
                generator=generator(self.seed, "defence", index),
                memory=memory,
            )
        if not buffers.numel():  # they are not sent, so the model's own are all that there are
            buffers = self.server.model.initial()[1].to(self.device)
        return self.server.round(
            index,
            params,
            buffers,
            clients=clients,
            counts=counts,
            client_buffers=client_buffers,
            memory=memory,
        )


def judge(
    defence: Defence,
    arrays: ArrayRecord,
    model: nn.Module | Callable[[], nn.Module] | None,
    own: OwnModel | None,
    seed: int,
    device: torch.device,
) -> Judge:
    """Find out how `arrays` and the `model` fit, and get the server's own training ready.

    Raises `InputError` where they do not, or the model cannot take the root data set.
    """
    made = copy.deepcopy(model) if model is None or isinstance(model, nn.Module) else model()
    if made is not None and not isinstance(made, nn.Module):
        raise InputError(f"model gives a {type(made).__name__} but must give an nn.Module")
    found = layout(arrays, made)
    trains = None
    if found.model is not None and own is not None:
        trains = server(found.model.to(device), own.loss, own.root, own.local, seed)
    return Judge(defence, found, trains, seed, device)


def _warnings(updates: Tensor, round: Round, decision: Decision) -> Iterator[str]:
    """What an operator should know of a decision."""
    if fallback := decision.evidence.get("fallback"):
        yield str(fallback)
    if round.server_update is not None and decision.accepted.any():
        client = float(updates[decision.accepted].norm(dim=1).median())
        root = float(round.server_update.norm())
        if not client / _FAR <= root <= client * _FAR:
            yield (
                f"the root update is {root / max(client, 1e-30):.2g} times as long as the "
                "median accepted one; local must train as a client does (steps, batch, lr)"
            )
    rejected = int((~decision.accepted).sum())
    if 2 * rejected > len(updates):
        yield (
            f"{rejected} of {len(updates)} replies are "
            "rejected, more than half: look at the root data set and at local"
        )


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block takes, in seconds."""
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - begin


def _signed(node: int) -> int:
    """A node id, which may take 64 bits, as the signed number that a tensor can hold."""
    return node - 2**64 if node >= 2**63 else node
