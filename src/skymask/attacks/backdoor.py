"""Backdoors: samples that carry a trigger are to be put in the target class, all else as before.

Two kinds. `Scaling`, `DBA` and `Neurotoxin` poison the malicious clients' samples once, at the
start, and let the training as told do the rest. `ModelReplacement` and `LayerBackdoor` leave the
samples alone, so that the clients' own updates are honest ones, and train the backdoored model
themselves, on clean samples of their own (`Round.own`) and copies of these with the trigger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from skymask.attacks.triggers import Trigger, poisoned
from skymask.components import check_settings, count, number, optional, setting
from skymask.errors import InputError
from skymask.root_loss import gradient
from skymask.types import Attack, Backdoor, Batch, ClientData, Poison, Round

_CLASS = count(0)
_SHARE = number(above=0, at_most=1)


@dataclass(frozen=True)
class Scaling(Attack):
    """Scaling (Bagdasaryan et al. 2020, as in FLTrust and the SkyMask paper): a boosted backdoor.

    A random `share` of each malicious client's samples carries the trigger and the label `target`,
    so that on average as large a share of each mini-batch does. The update that comes of training
    on them is sent `factor` times; None is n / f of the round, with which f attackers outvote
    everybody in a mean without weights.

    FLTrust adds the poisoned copies to a client's samples; here they take their originals' place,
    since nobody's number of samples may change. Only the update is scaled: buffers are as trained.

    value: what the trigger writes (`triggers.Trigger`). Knowledge: the malicious clients' own data.
    """

    target: int = setting(0, _CLASS)
    factor: float | None = setting(None, optional(number(above=0)))
    share: float = setting(0.5, _SHARE)
    value: float | None = setting(None, optional(number()))

    reference: ClassVar[str] = (
        "Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020; "
        "Cao et al., FLTrust, NDSS 2021"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """Put the trigger and the target label on a share of each malicious client's samples."""
        return poisoned(data, malicious, Trigger(self.value), self.target, self.share, generator)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """Malicious rows of `updates` (n, d) times `factor`."""
        return _boosted(updates, malicious, self.factor, round)

    def backdoor(self) -> Backdoor:
        """The trigger and its target."""
        return Backdoor(self.target, Trigger(self.value))


@dataclass(frozen=True)
class DBA(Attack):
    """DBA (Xie et al. 2020), distributed backdoor attack: everybody trains a part of the trigger.

    The trigger is cut into `parts`, and the malicious clients, by rank of their ids, take them in
    turn; there are as many parts as malicious clients where those are fewer, so that together they
    always have the whole. Success is measured with the whole trigger. All else, also the default
    of `factor`, is as in `Scaling`; the original names no single factor.
    """

    target: int = setting(0, _CLASS)
    factor: float | None = setting(None, optional(number(above=0)))
    share: float = setting(0.5, _SHARE)
    parts: int = setting(4, count(2))
    value: float | None = setting(None, optional(number()))

    reference: ClassVar[str] = (
        "Xie et al., DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """Put each malicious client's part of the trigger on a share of its samples."""
        parts = min(self.parts, int(malicious.sum()))
        rank = malicious.cumsum(0) - 1
        for part in range(parts):
            group = malicious & (rank % parts == part)
            trigger = Trigger(self.value, part, parts)
            data = poisoned(data, group, trigger, self.target, self.share, generator)
        return data

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """Malicious rows of `updates` (n, d) times `factor`."""
        return _boosted(updates, malicious, self.factor, round)

    def backdoor(self) -> Backdoor:
        """The whole trigger and its target."""
        return Backdoor(self.target, Trigger(self.value))


@dataclass(frozen=True)
class Neurotoxin(Attack):
    """Neurotoxin (Zhang et al. 2022): a backdoor where honest clients hardly ever move the model.

    The samples are poisoned as in `Scaling`. Of the update only those coordinates are kept that
    are NOT among the `top` share of the last aggregate by size, since honest clients will go on
    moving these and would wash the backdoor out. The last aggregate is W_t - W_{t-1}, which the
    attackers see (over more rounds, if no malicious client took part in the last ones); in their
    first round, and where the model has not moved since, nothing is masked.

    The original projects the gradient of every local step. Here the final update is projected,
    which is the same for one local step; with more, the later steps were taken from a point that
    the masked coordinates had moved too, and what is sent is a little less adapted to the mask.
    It is sent `factor` times; the original does not boost, but attacks among few participants.
    """

    target: int = setting(0, _CLASS)
    factor: float | None = setting(None, optional(number(above=0)))
    share: float = setting(0.5, _SHARE)
    top: float = setting(0.05, number(at_least=0, below=1))
    value: float | None = setting(None, optional(number()))

    reference: ClassVar[str] = (
        "Zhang et al., Neurotoxin: Durable Backdoors in Federated Learning, ICML 2022"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """Put the trigger and the target label on a share of each malicious client's samples."""
        return poisoned(data, malicious, Trigger(self.value), self.target, self.share, generator)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Poison:
        """Malicious rows of `updates` (n, d) outside the top coordinates, times `factor`."""
        params = needed(round, "params", "Neurotoxin")
        sent = _boosted(updates, malicious, self.factor, round)
        if round.memory is not None:
            moved = (params - round.memory["params"]).abs()
            masked = torch.zeros_like(moved, dtype=torch.bool)
            if moved.any():
                masked[moved.topk(int(self.top * len(moved))).indices] = True
            sent = torch.where(malicious[:, None] & masked, 0.0, sent)
        return Poison(sent, memory={"params": params.clone()})

    def backdoor(self) -> Backdoor:
        """The trigger and its target."""
        return Backdoor(self.target, Trigger(self.value))


@dataclass(frozen=True)
class ModelReplacement(Attack):
    """One-shot model replacement (Bagdasaryan et al. 2020): in one round the mean becomes theirs.

    In round `round` the malicious clients train a backdoored model X from the global W_t, by
    `steps` full-batch gradient steps at rate `lr` on clean samples of their own and copies of them
    with the trigger, and all send gamma (X - W_t) with gamma = sum_i |D_i| / (`server_lr` times the
    malicious clients' share of that sum). FedAvg at that server rate then moves the global model to
    X, but for what the honest clients add, which is small once training has converged. In every
    other round they are honest to the bit: no sample is poisoned, their updates are those of
    training as told. A run that ends before that round is one without attack.

    server_lr: what the attackers take the server's rate (the paper's alpha) to be; Byzantine
        clients know the settings of the training. The defaults of `steps` and `lr` are ours.

    Knowledge: the malicious clients' own clean samples, the loss and the example counts.
    """

    round: int = setting(50, count(0))
    target: int = setting(0, _CLASS)
    server_lr: float = setting(0.5, number(above=0))
    steps: int = setting(50, count())
    lr: float = setting(0.1, number(above=0))
    value: float | None = setting(None, optional(number()))

    reference: ClassVar[str] = (
        "Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """The boosted backdoor for malicious rows of `updates` (n, d), in round `round` alone."""
        if round.index != self.round or not malicious.any():
            return updates
        params = needed(round, "params", "ModelReplacement")
        samples = _backdoored(round, Trigger(self.value), self.target, "ModelReplacement")
        replaced = _trained(params, samples, self.steps, self.lr, round) - params
        counts = torch.ones(len(updates)) if round.counts is None else round.counts.double()
        share = float(counts[malicious.to(counts.device)].sum() / counts.sum())
        return torch.where(malicious[:, None], replaced / (share * self.server_lr), updates)

    def backdoor(self) -> Backdoor:
        """The trigger and its target."""
        return Backdoor(self.target, Trigger(self.value))


@dataclass(frozen=True)
class LayerBackdoor(Attack):
    """Layer-wise backdoor (Zhuang et al. 2024): only the backdoor-critical layers are poisoned.

    No sample is poisoned, so the malicious clients' own updates u_i are honest ones. From the
    benign model W_t + mean(u_i) they train a malicious one, by `steps` gradient steps at rate `lr`
    on clean samples of their own and copies of them with the trigger. Then, as in the original:

    1. each layer of the malicious model alone is replaced by the benign one; the more that costs
       the backdoor, the more critical the layer;
    2. the most critical layers are put into the benign model, one after another, until that has
       `enough` of the backdoor;
    3. each malicious client sends its own update, with the malicious model's in those layers
       (`factor` times).

    The original measures the backdoor by its success rate, which needs outputs; a `Round` has a
    loss. Here it is measured by the loss of samples with the trigger and the target label: what
    share of the way from the benign model's to the malicious model's it has come. Layers are the
    named parameters. The original's `enough` (its tau) is 0.95 of the rate and its factor lies
    about 1, adapted to the defence over rounds; here it is a setting.

    Knowledge: the malicious clients' own updates and clean samples, and the loss.
    """

    target: int = setting(0, _CLASS)
    enough: float = setting(0.95, number(above=0, at_most=1))
    factor: float = setting(1.0, number(above=0))
    steps: int = setting(20, count())
    lr: float = setting(0.1, number(above=0))
    value: float | None = setting(None, optional(number()))

    reference: ClassVar[str] = (
        "Zhuang et al., Backdoor Federated Learning by Poisoning Backdoor-Critical Layers, "
        "ICLR 2024"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """Critical layers of the malicious model for malicious rows of `updates` (n, d)."""
        if not malicious.any():
            return updates
        params = needed(round, "params", "LayerBackdoor")
        layers = needed(round, "layers", "LayerBackdoor")
        samples = _backdoored(round, Trigger(self.value), self.target, "LayerBackdoor")
        benign = updates[malicious].mean(0)
        harmful = _trained(params + benign, samples, self.steps, self.lr, round) - params
        half = len(samples.labels) // 2
        triggered = Batch(samples.inputs[half:], samples.labels[half:])
        where = self.critical(params + benign, params + harmful, triggered, layers, round)
        critical = torch.zeros_like(benign, dtype=torch.bool)
        for name in where:
            critical[layers[name]] = True
        return torch.where(malicious[:, None] & critical, self.factor * harmful, updates)

    def critical(
        self,
        benign: Tensor,
        harmful: Tensor,
        triggered: Batch,
        layers: Mapping[str, slice],
        round: Round,
    ) -> list[str]:
        """The backdoor-critical layers of the model `harmful` (d,), most critical first."""
        with torch.no_grad():
            least, most = _loss(harmful, triggered, round), _loss(benign, triggered, round)
            cost = {}
            for name, at in layers.items():
                mended = harmful.clone()
                mended[at] = benign[at]
                cost[name] = _loss(mended, triggered, round)
            found: list[str] = []
            mixed = benign.clone()
            for name in sorted(cost, key=lambda name: -cost[name]):
                found.append(name)
                mixed[layers[name]] = harmful[layers[name]]
                if most - _loss(mixed, triggered, round) >= self.enough * (most - least):
                    break
        return found

    def backdoor(self) -> Backdoor:
        """The trigger and its target."""
        return Backdoor(self.target, Trigger(self.value))


def _boosted(updates: Tensor, malicious: Tensor, factor: float | None, round: Round) -> Tensor:
    """Malicious rows times `factor`, by default n / f; clients not shown count among the n."""
    if factor is None:
        factor = (len(updates) + round.removed) / max(1, int(malicious.sum()))
    return torch.where(malicious[:, None], updates * factor, updates)


def _backdoored(round: Round, trigger: Trigger, target: int, who: str) -> Batch:
    """The attackers' clean samples, and after them the same with trigger and target label."""
    own: Batch = needed(round, "own", who)
    return Batch(
        torch.cat([own.inputs, trigger(own.inputs)]),
        torch.cat([own.labels, torch.full_like(own.labels, target)]),
    )


def _trained(params: Tensor, samples: Batch, steps: int, lr: float, round: Round) -> Tensor:
    """`params` (d,) after so many full-batch gradient steps on `samples`."""
    for _ in range(steps):
        params = params - lr * gradient(needed(round, "loss", "a backdoor"), params, samples)
    return params


def _loss(params: Tensor, samples: Batch, round: Round) -> float:
    return float(needed(round, "loss", "LayerBackdoor")(params, samples))


def needed(round: Round, name: str, who: str) -> Any:
    """A field of the round that the attack cannot do without."""
    value = getattr(round, name)
    if value is None or (name == "layers" and not value):
        raise InputError(f"round.{name} is {value!r} but {who} needs it")
    return value
