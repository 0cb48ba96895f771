"""The vocabulary. Read this file and you know what flows through SkyMask.

Shapes are written the same way everywhere: n clients, d parameters, b floating-point buffer
entries, N samples. An update is a delta to ADD to the global parameters, `W_i - W_t`; the paper's
own sign is the opposite one (its Delta W = W_t - W_i).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from skymask.shards import Shard


class Batch(NamedTuple):
    """Samples with their labels: `inputs` (N, ...), `labels` (N,)."""

    inputs: Tensor
    labels: Tensor

    @property
    def identity(self) -> tuple[int, int]:
        """Which tensors these are, among all that there are at the time."""
        return id(self.inputs), id(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set before it is divided among clients.

    `train` and `test` are all samples; `classes` says how many labels there are, 0 to classes - 1.
    `subjects` (N_train,) names the natural client of each training row, where there is one.
    """

    name: str
    train: Batch
    test: Batch
    classes: int
    subjects: Tensor | None = None


@dataclass(frozen=True)
class ClientData:
    """All clients' samples, one client after another, without padding.

    `inputs` (N, ...) and `labels` (N,) hold client i's rows at `offsets[i]` up to
    `offsets[i + 1]`; `offsets` is (n + 1,) int64 and starts with 0. Labels are 0 to classes - 1.
    """

    inputs: Tensor
    labels: Tensor
    offsets: Tensor
    classes: int

    @property
    def counts(self) -> Tensor:
        """Number of samples of each client, (n,) int64."""
        return self.offsets.diff()

    def rows(self, clients: Tensor) -> Tensor:
        """Which samples belong to the clients marked in `clients` (n,) bool, as (N,) bool."""
        marks = torch.repeat_interleave(clients.to(self.offsets.device), self.counts)
        return marks.to(self.labels.device)

    def to(self, device: torch.device) -> "ClientData":
        """The same data on `device`; the offsets stay on the CPU, where the batches are planned."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            labels=self.labels.to(device),
            offsets=self.offsets.cpu(),
        )


Loss = Callable[[Tensor, Batch], Tensor]
"""Mean loss of the model with parameters (d,) over a batch: a scalar, differentiable."""


@dataclass(frozen=True)
class Round:
    """What a server may honestly know in one round. It never says which clients are malicious.

    Every field has a default so that a rule that needs little can be called with little; a rule
    that lacks something it needs says which field.
    """

    index: int = 0
    """Number of the round, from 0."""
    clients: Tensor | None = None
    """Stable client ids, (n,) int64, in the order of the updates' rows."""
    params: Tensor | None = None
    """Global parameters W_t, (d,)."""
    layers: Mapping[str, slice] = field(default_factory=dict)
    """Where each named parameter lies in a (d,) vector."""
    buffers: Tensor | None = None
    """The clients' floating-point buffers (batch-norm statistics), (n, b); None without any."""
    buffer_layers: Mapping[str, slice] = field(default_factory=dict)
    """Where each named buffer lies in a (b,) vector."""
    loss: Loss | None = None
    """Mean loss over a batch; batch norm, where there is one, uses the batch's own statistics."""
    root: Batch | None = None
    """The server's clean root data set."""
    server_update: Tensor | None = None
    """The root model minus the global one, (d,), trained on `root` exactly as a client trains."""
    server_buffers: Tensor | None = None
    """The root model's buffers after that training, (b,)."""
    counts: Tensor | None = None
    """Number of samples of each client, (n,); None counts every client the same."""
    generator: torch.Generator | None = None
    """The only source of randomness a rule may use."""
    memory: Any = None
    """`Decision.memory` of the round before; in an attack's round `Poison.memory`."""
    removed: int = 0
    """How many clients were left out before the rule was asked; among the f that a rule assumes."""
    own: Batch | None = None
    """In an attack's round alone: clean samples of the malicious clients' own."""
    shard: Shard = Shard()  # noqa: RUF009 -- frozen
    """Which columns the (n, d) updates have that the rule is given; its update has the same.

    All other fields hold whole vectors. SkyMask's rules work on a part of the columns, others
    refuse it.
    """

    def __post_init__(self) -> None:
        """Take plain pairs and lists too: a `root` of (inputs, labels), numbers as `counts`."""
        for name in ("root", "own"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Batch(*getattr(self, name)))
        for name in ("clients", "counts"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, torch.as_tensor(value))
        if self.server_update is not None:
            object.__setattr__(self, "server_update", self.server_update.detach())


@dataclass(frozen=True)
class Decision:
    """What a defence makes of one round."""

    update: Tensor
    """Delta to add to the global parameters, (d,)."""
    accepted: Tensor
    """Whose update had a part in it, (n,) bool."""
    scores: Tensor | None = None
    """One number a client, (n,); higher is more trusted, on the rule's own scale."""
    memory: Any = None
    """Goes into the next round. Nested dicts of tensors, numbers, strings and lists only."""
    reasons: tuple[str | None, ...] | None = None
    """Why each client was rejected (None: it was not), one entry a client."""
    buffers: Tensor | None = None
    """The new global buffers, (b,), or None without any."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What a report may show of how the decision came about."""


class Defence(Protocol):
    """A rule: what the server does with a round's updates. A frozen dataclass that is called."""

    def __call__(self, updates: Tensor | Sequence[Tensor], round: Round, /) -> Decision:
        """Decide on `updates`, (n, d) deltas W_i - W_t."""
        ...


@dataclass(frozen=True)
class Poison:
    """What malicious clients send instead. Honest rows of every field are bit-identical."""

    updates: Tensor
    """Deltas to add, (n, d)."""
    buffers: Tensor | None = None
    """The clients' buffers, (n, b); None leaves them as they are."""
    counts: Tensor | None = None
    """The example counts that the clients state, (n,); None leaves them as they are."""
    memory: Any = None
    """Goes into the attack's next round, as `Round.memory`; kept as `Decision.memory` is."""


@dataclass(frozen=True)
class Backdoor:
    """What an attack wants of samples that carry its trigger."""

    target: int
    """The class they should be put in."""
    embed: Callable[[Tensor], Tensor]
    """Clean inputs (N, ...) to the same inputs with the whole trigger; a new tensor."""


def as_poison(sent: "Tensor | tuple[Tensor, Tensor] | Poison") -> Poison:
    """What `Attack.poison_updates` returned, in its full form."""
    if isinstance(sent, Poison):
        return sent
    return Poison(*sent) if isinstance(sent, tuple) else Poison(sent)


class Attack(Protocol):
    """What the malicious clients do. Honest rows come back bit-identical from both methods.

    A class that inherits from this one has the identity for the method it leaves out, and no
    backdoor.
    """

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """Rewrite the samples of the clients marked in `malicious` (n,) bool, once at the start."""
        return data

    def poison_updates(
        self, updates: Tensor, malicious: Tensor, round: Round
    ) -> "Tensor | tuple[Tensor, Tensor] | Poison":
        """Rewrite malicious rows of `updates` (n, d), all of them trained as told on their data.

        May return a pair of updates and poisoned buffers (n, b), or a `Poison`. `round` holds what
        the attack's stated knowledge allows: never the root data set or the server's update.
        """
        return updates

    def backdoor(self) -> Backdoor | None:
        """The trigger whose success is measured on the test set, if the attack has one."""
        return None
