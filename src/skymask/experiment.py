"""An experiment as a value: everything that decides a run's numbers."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from skymask.attacks import ATTACKS, NoAttack
from skymask.components import Kinds, build, describe
from skymask.data import PARTITIONS, BySubject, Groups, Partition
from skymask.defences import DEFENCES, FedAvg
from skymask.errors import InputError, is_number, require, require_count, told, unknown
from skymask.flat import SampleLoss
from skymask.local_sgd import LocalSGD
from skymask.models import MODELS
from skymask.types import Attack, Dataset, Defence

KINDS: Kinds = {"attack": ATTACKS, "defence": DEFENCES, "partition": PARTITIONS}
"""Every component that has a name."""


@dataclass(frozen=True)
class Defaults:
    """What a data set is used with unless an experiment says otherwise.

    The paper's settings (section IV-A) where it has the data set; it names no batch sizes, so
    those are ours: 32, and 64 for CIFAR-10.
    """

    model: str
    clients: int
    rounds: int
    local: LocalSGD
    partition: Partition
    gamma: float = 1e7
    """The mask learning rate of the paper's own rule."""


DEFAULTS: dict[str, Defaults] = {
    "digits": Defaults("mlp", 20, 100, LocalSGD(2, 16, 0.5), Groups(0.5)),
    "synthetic": Defaults("logistic", 20, 30, LocalSGD(1, 16, 0.5), Groups(0.5)),
    "fashion-mnist": Defaults("cnn", 100, 2500, LocalSGD(1, 32, 0.5), Groups(0.5)),
    "cifar-10": Defaults("resnet-20", 100, 500, LocalSGD(5, 64, 0.5), Groups(0.5), 1e8),
    "har": Defaults("logistic", 30, 1000, LocalSGD(1, 32, 0.5), BySubject()),
}


@dataclass(frozen=True)
class Experiment:
    """One run: data, model, clients, attack, defence and seed. Every field has a default.

    The default is FedAvg without attack, the base line (the command line defends with SkyMask).
    Fields that are None take the data set's default (`DEFAULTS`).
    """

    data: str | Dataset = "digits"
    """A name of `data.DATA_SETS`, or your own data set."""
    attack: Attack = NoAttack()  # noqa: RUF009 -- frozen
    defence: Defence = FedAvg()  # noqa: RUF009 -- frozen
    malicious: float = 0.2
    """Share of the clients that are malicious; they replace honest ones. From 0 to below 1."""
    honest_only: bool = False
    """The malicious clients stay away: with FedAvg the yardstick that a defence is held to."""
    clients: int | None = None
    participation: float = 1.0
    """Share of the clients that take part in a round, drawn anew each round."""
    partition: Partition | None = None
    model: str | Callable[[], nn.Module] | None = None
    """A name of `models.MODELS`, or a function that makes a new module."""
    loss: SampleLoss = F.cross_entropy
    """`loss(outputs, labels)`, the mean over a batch."""
    local: LocalSGD | None = None
    server_lr: float = 0.5
    """The paper's alpha, Eq. 7: the global model moves by this times the aggregate."""
    rounds: int | None = None
    eval_every: int = 10
    """Rounds between evaluations on the test set; the last round is always evaluated."""
    root_size: int = 100
    root_bias: float = 0.1
    """The paper's p: share of one class in the root data set, the rest even."""
    root_noise: float = 0.0
    """Share of the root data set's labels that are wrong, drawn by the seed."""
    seed: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.data, str) and self.data not in DEFAULTS:
            raise unknown("data set", self.data, DEFAULTS)
        if isinstance(self.model, str) and self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        for field in ("clients", "rounds"):
            if getattr(self, field) is not None:
                require_count(field, getattr(self, field))
        for field in ("eval_every", "root_size"):
            require_count(field, getattr(self, field))
        require(isinstance(self.seed, int), "seed", self.seed, "a whole number")
        for field, wanted in (
            ("attack", "skymask.MinSum()"),
            ("defence", "skymask.SkyMask()"),
            ("partition", "skymask.Groups(q=0.5)"),
        ):
            value = getattr(self, field)
            require(not isinstance(value, str | type), field, value, f"an object such as {wanted}")
        require(
            not isinstance(self.model, nn.Module),
            "model",
            type(self.model).__name__,
            "a name or a function that makes a module, such as lambda: Net()",
        )
        for method in ("poison_data", "poison_updates"):
            require(
                hasattr(self.attack, method),
                "attack",
                self.attack,
                f"an object with a method {method}",
            )
        require(
            isinstance(self.honest_only, bool), "honest_only", self.honest_only, "True or False"
        )
        m, p, lr = self.malicious, self.participation, self.server_lr
        require(is_number(m) and 0 <= m < 1, "malicious", m, "at least 0 and below 1")
        require(is_number(p) and 0 < p <= 1, "participation", p, "above 0, at most 1")
        require(is_number(lr) and lr > 0, "server_lr", lr, "a positive number")
        for field in ("root_bias", "root_noise"):
            x = getattr(self, field)
            require(is_number(x) and 0 <= x <= 1, field, x, "between 0 and 1")

    def resolved(self) -> "Experiment":
        """The same experiment with the data set's defaults filled in.

        Raises `InputError` where the data set is your own and a field that has no default for it
        (`model`, `clients`) is missing.
        """
        if isinstance(self.data, str):
            usual = DEFAULTS[self.data]
        else:
            for field in ("model", "clients"):
                if getattr(self, field) is None:
                    raise InputError(
                        f"{field} is None but must be given for your own data set "
                        f"{self.data.name!r}"
                    )
            usual = Defaults("", 0, 100, LocalSGD(), Groups())
        filled = {
            field: getattr(usual, field)
            for field in ("model", "clients", "rounds", "local", "partition")
            if getattr(self, field) is None
        }
        return dataclasses.replace(self, **filled)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """A resolved experiment as a manifest holds it; `from_json` reads it back.

    What is your own (data set, model, loss, component) is named but cannot be rebuilt.
    """
    e = experiment
    plain = {
        field.name: getattr(e, field.name)
        for field in dataclasses.fields(e)
        if isinstance(getattr(e, field.name), int | float | bool)
    }
    return plain | {
        "data": e.data if isinstance(e.data, str) else f"{OWN}{e.data.name}",
        "model": e.model if isinstance(e.model, str) else f"{OWN}{_name(e.model)}",
        "loss": "cross_entropy" if e.loss is F.cross_entropy else f"{OWN}{_name(e.loss)}",
        "local": dataclasses.asdict(e.local) if e.local else None,
        "attack": describe(e.attack, KINDS, "attack"),
        "defence": describe(e.defence, KINDS, "defence"),
        "partition": describe(e.partition, KINDS, "partition"),
    }


def from_json(described: dict[str, Any]) -> Experiment:
    """The experiment that `to_json` described.

    Raises `InputError` where it used something of the user's own, and for what `to_json` would
    not have written.
    """
    fields = dict(described)
    known = {field.name for field in dataclasses.fields(Experiment)}
    for name in fields:
        if name not in known:
            raise unknown("experiment field", name, known)
    for name in ("data", "model", "loss", "local", "attack", "defence", "partition"):
        require(name in fields, "experiment", fields, f"one with a field {name!r}")
    for name in ("data", "model", "loss"):
        require(isinstance(fields[name], str), f"experiment field {name}", fields[name], "a name")
        if fields[name].startswith(OWN):
            raise InputError(
                f"this run used {name} {fields[name].removeprefix(OWN)!r}, which is your own; "
                "resume it from Python with simulate(experiment, out=..., resume=True)"
            )
    require(fields["loss"] == "cross_entropy", "loss", fields["loss"], "'cross_entropy'")
    fields["loss"] = F.cross_entropy
    try:
        fields["local"] = LocalSGD(**fields["local"])
    except TypeError as error:
        raise InputError(f"experiment field local is {told(fields['local'])}: {error}") from error
    for kind in ("attack", "defence", "partition"):
        fields[kind] = build(fields[kind], KINDS, kind)
    return Experiment(**fields)


OWN = "own: "


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", type(thing).__qualname__)
