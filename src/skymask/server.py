"""What the server prepares for a round: the root model, and all else a rule may know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skymask.clients import Trainer, plan
from skymask.errors import InputError, require
from skymask.flat import FlatModel, SampleLoss, assign, flat_model, flatten, flatten_buffers
from skymask.local_sgd import LocalSGD
from skymask.randomness import generator, key
from skymask.root_loss import RootLoss, root_loss
from skymask.shards import Shard
from skymask.types import Batch, ClientData, Round

OwnTraining = Callable[[nn.Module, Batch], None]
"""Trains a module on the root data set in place, as a client would."""


@dataclass(frozen=True, eq=False)
class Server:
    """The server's side of a federation whose model and root data set stay the same."""

    model: FlatModel
    root: Batch
    local: Trainer | OwnTraining
    seed: int
    root_loss: RootLoss

    def round(
        self,
        index: int,
        params: Tensor,
        buffers: Tensor,
        *,
        clients: Tensor | None = None,
        counts: Tensor | None = None,
        client_buffers: Tensor | None = None,
        memory: object = None,
        server_update: Tensor | None = None,
        server_buffers: Tensor | None = None,
        shard: Shard = Shard(),  # noqa: B008 -- frozen
    ) -> Round:
        """Train the root model from `params` (d,) and `buffers` (b,) and put the `Round` together.

        The root model takes as many steps, of the same batch size and rate, as a client (Eq. 6).
        `client_buffers` is (n, b). A `server_update` (d,) that is given already, because the root
        model was trained beside the clients, is taken as it is, with its `server_buffers` (b,).
        """
        if server_update is None:
            server_update, server_buffers = self._root_update(index, params, buffers)
        return Round(
            index=index,
            clients=clients,
            params=params,
            layers=self.model.layers,
            buffers=client_buffers,
            buffer_layers=self.model.buffer_layers,
            loss=replace(self.root_loss, buffers=buffers),
            root=self.root,
            server_update=server_update,
            server_buffers=None if client_buffers is None else server_buffers,
            counts=counts,
            generator=generator(self.seed, "defence", index),
            memory=memory,
            shard=shard,
        )

    def _root_update(self, index: int, params: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """The root model minus the global one, (d,), and its buffers (b,)."""
        if isinstance(self.local, Trainer):
            batches = key(self.seed, "root batches", index)
            updates, own = self.local(params, buffers, as_client(self.root), [0], batches)
            return updates[0], own[0]
        module = self.model.in_mode(True)
        assign(module, params, buffers)
        self.local(module, self.root)
        return flatten(module).to(params) - params, flatten_buffers(module).to(buffers)


def server(
    model: FlatModel,
    loss: SampleLoss,
    root: Batch,
    local: LocalSGD | Trainer | OwnTraining,
    seed: int,
) -> Server:
    """A `Server` on the device of `root`.

    Raises `InputError` for a root data set that is empty or no pair of as many inputs as labels,
    and as `check_start` does.
    """
    require(
        len(root.inputs) == len(root.labels) > 0,
        "root",
        f"{len(root.inputs)} inputs and {len(root.labels)} labels",
        "as many of both, at least 1",
    )
    measure = check_start(model, loss, root)
    trainer = plan(model, loss, local, as_client(root)) if isinstance(local, LocalSGD) else local
    return Server(model, root, trainer, seed, measure)


def check_start(model: FlatModel, loss: SampleLoss, root: Batch) -> RootLoss:
    """The `RootLoss` of `model` at its own buffers, once it is sure that it can be computed.

    Raises `InputError` where the model or the loss cannot take the root data set, and where the
    loss is not one finite number.
    """
    params, buffers = (part.to(root.inputs.device) for part in model.initial())
    measure = root_loss(model, loss, buffers)
    try:
        with torch.no_grad():
            start = measure(params, root)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"model {type(model.module).__name__} and the loss cannot take the root data set, "
            f"inputs {tuple(root.inputs.shape)} of {root.inputs.dtype} and labels up to "
            f"{int(root.labels.max())}: {str(error).splitlines()[0]}"
        ) from error
    if start.dim() or not start.isfinite():
        shown = start.item() if start.numel() == 1 else f"of shape {tuple(start.shape)}"
        raise InputError(
            f"the loss on the root data set is {shown} before training but must be one finite "
            "number; check the model's initial values, the loss and the data"
        )
    return measure


def as_client(root: Batch) -> ClientData:
    """The root data set as the data of one client."""
    offsets = torch.tensor([0, len(root.labels)])
    return ClientData(root.inputs, root.labels, offsets, 0)


def with_client(data: ClientData, samples: Batch) -> ClientData:
    """`data` with one more client, the last, who holds `samples`."""
    return replace(
        data,
        inputs=torch.cat([data.inputs, samples.inputs]),
        labels=torch.cat([data.labels, samples.labels]),
        offsets=torch.cat([data.offsets, data.offsets[-1:] + len(samples.labels)]),
    )


def server_round(
    model: nn.Module,
    loss: SampleLoss,
    root: Sequence[Tensor],
    local: LocalSGD | OwnTraining,
    *,
    index: int = 0,
    clients: Sequence[int] | Tensor | None = None,
    counts: Sequence[int] | Tensor | None = None,
    client_buffers: Tensor | None = None,
    memory: object = None,
    seed: int = 0,
    shard: Shard = Shard(),  # noqa: B008 -- frozen
) -> Round:
    """A `Round` for a training loop of your own.

    Args:
        model: the global model W_t of this round, on the device of `root`. It is not changed.
        loss: `loss(outputs, labels)`, the mean over a batch, such as `F.cross_entropy`.
        root: the server's clean samples, `(inputs, labels)`.
        local: how a client trains, as a `LocalSGD`, or as a function that trains the module it is
            given on the root batch it is given, in place.
        index: number of the round, from 0; a rule with memory counts on it.
        clients: stable client ids, (n,), in the order of the updates' rows.
        counts: number of samples of each client, (n,); without them all weigh the same.
        client_buffers: the clients' floating-point buffers, (n, b).
        memory: `Decision.memory` of the round before.
        seed: decides the root model's mini-batches and what a rule draws.
        shard: which columns of the updates this process will give the rule, if not all: what
            `skymask.shard` made. Everything else is given in whole, the same in each process.

    Raises:
        InputError: as `server` does.

    Example:
        >>> import torch, skymask as sm
        >>> model = torch.nn.Linear(5, 2)
        >>> root = torch.randn(20, 5), torch.randint(2, (20,))
        >>> round = sm.server_round(model, torch.nn.functional.cross_entropy, root, sm.LocalSGD())
        >>> sm.SkyMask()(torch.randn(8, 12), round).accepted.shape
        torch.Size([8])
    """
    batch = Batch(*root)
    flat = flat_model(model).to(batch.inputs.device)
    params, buffers = flat.initial()
    return server(flat, loss, batch, local, seed).round(
        index,
        params,
        buffers,
        clients=None if clients is None else torch.as_tensor(clients),
        counts=None if counts is None else torch.as_tensor(counts),
        client_buffers=client_buffers,
        memory=memory,
        shard=shard,
    )
