"""How a client trains: its settings, and which of its samples each step takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skymask.errors import is_number, require, require_count
from skymask.randomness import hashed
from skymask.types import ClientData

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LocalSGD:
    """How a client trains: `steps` mini-batch steps of `batch` samples at learning rate `lr`.

    The paper's l, batch size and beta: W := W - beta * grad f(W; batch), section II-A. Mini-batches
    run through the client's samples in a fresh random order each epoch.

    `prox` is FedProx's mu (Li et al. 2020): each step also pulls towards the global model, by the
    gradient of mu / 2 |W - W_t|^2. It changes nothing with a single step, which starts at W_t.

    With `precision` "bfloat16" convolutions put out bfloat16 images, and what follows up to the
    next linear layer computes with them; parameters, gradients and updates stay float32. On a GPU
    that trained ResNet-20 three times as fast (docs/cost.md). It departs from the paper in rounding
    alone.
    """

    steps: int = 1
    batch: int = 32
    lr: float = 0.5
    prox: float = 0.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require_count("local steps", self.steps)
        require_count("batch", self.batch)
        require(is_number(self.lr) and self.lr > 0, "lr", self.lr, "a positive number")
        require(
            self.precision in ("float32", "bfloat16"),
            "precision", self.precision, "'float32' or 'bfloat16'",
        )  # fmt: skip
        require(is_number(self.prox) and self.prox >= 0, "prox", self.prox, "at least 0 and finite")


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which rows each client sees at each step, but for the random orders.

    A client's stream of samples is one random order of its rows after another (epochs); step t
    takes entries t * batch to (t + 1) * batch - 1.
    """

    shape: tuple[int, int, int]
    """Clients n, steps, batch."""
    owner: Tensor
    """(e, 1): the client of each of the e orders that are needed."""
    epoch: Tensor
    """(e, 1): its number among that client's."""
    columns: Tensor
    """(widest,): the places in an order."""
    beyond: Tensor
    """(e, widest) bool: where a client has no such sample."""
    starts: Tensor
    """(n, 1): each client's first row."""
    pair: Tensor
    """(n, steps * batch): the order that each sample comes from."""
    place: Tensor
    """(n, steps * batch): its place in there."""

    @classmethod
    def of(cls, data: ClientData, clients: Sequence[int], local: LocalSGD) -> "Schedule":
        """The schedule of `clients`, indices into `data`, on the data's device."""
        ids = torch.as_tensor(clients, dtype=torch.int64)
        counts, starts = data.counts[ids], data.offsets[ids]
        need = local.steps * local.batch
        epochs = (need + counts - 1) // counts
        owner = torch.repeat_interleave(torch.arange(len(ids)), epochs)
        first = epochs.cumsum(0) - epochs
        slot, columns = torch.arange(need), torch.arange(int(counts.max()))
        parts = (
            ids[owner, None],
            (torch.arange(len(owner)) - first[owner])[:, None],
            columns,
            columns >= counts[owner, None],
            starts[:, None],
            first[:, None] + slot // counts[:, None],
            slot % counts[:, None],
        )
        device = data.inputs.device
        return cls((len(ids), local.steps, local.batch), *(part.to(device) for part in parts))

    def rows(self, seed: int | Tensor) -> Tensor:
        """The rows of the data, (n, steps, batch) int64.

        Each order is sorted by a hash of (seed, client, epoch, slot), so it depends on nothing
        else. All clients in one sort, no loop.
        """
        order = hashed(seed, self.owner, self.epoch, self.columns)
        order = order.masked_fill(self.beyond, torch.iinfo(torch.int64).max).argsort(1)
        return (self.starts + order[self.pair, self.place]).view(self.shape)


def batch_rows(data: ClientData, clients: Sequence[int], local: LocalSGD, seed: int) -> Tensor:
    """Which rows of `data` each client sees at each step: (n, steps, batch) int64."""
    return Schedule.of(data, clients, local).rows(seed)
