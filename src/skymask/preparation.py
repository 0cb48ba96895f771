"""What a run needs before its first round, made of the experiment and the seed alone."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from skymask.attacks import NoAttack
from skymask.clients import Trainer, plan
from skymask.data import check_labels, divide, load
from skymask.defences.assumed import how_many
from skymask.environment import require_room
from skymask.errors import InputError, require
from skymask.experiment import Experiment
from skymask.flat import FlatModel, flat_model
from skymask.metrics import Evaluation, evaluation
from skymask.models import MODELS
from skymask.randomness import generator, key
from skymask.server import Server, check_start, server, with_client
from skymask.types import Backdoor, Batch, ClientData, Dataset

_OWN_SAMPLES = 100
"""Clean samples that the attackers pool; as many as the server's root data set usually has."""


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same over the rounds of one run."""

    experiment: Experiment
    data: ClientData
    """The clients' samples, and after the last client's the root data set."""
    malicious: Tensor
    """(clients,) bool on the CPU. The defence never sees it."""
    trainer: Trainer
    server: Server
    evaluate: Evaluation
    own: Batch
    """Clean samples of the malicious clients, for the attack to use."""


def prepare(experiment: Experiment, device: torch.device, data_dir: str | Path | None) -> Run:
    """Load and divide the data, let the attack poison it, and plan training and evaluation.

    Raises `InputError` for all that `simulate` refuses before anything is trained.
    """
    e, seed = experiment, experiment.seed
    dataset = (
        e.data
        if isinstance(e.data, Dataset)
        else load(e.data, None if data_dir is None else Path(data_dir), seed)
    )
    if not (e.clients and e.partition and e.local):
        raise InputError("the experiment is not resolved")
    parts = divide(dataset, e.clients, e.partition, e.root_size, e.root_bias, seed, e.root_noise)
    malicious = malicious_clients(e.clients, e.malicious, seed)
    if not malicious.any() and attacks(e):
        warnings.warn(
            f"malicious is {e.malicious} of {e.clients} clients, which is nobody: no attack",
            stacklevel=3,
        )
    model = _model(e, dataset).to(device)
    own = _own_samples(parts.clients, malicious, seed)
    data = _poisoned(e, parts.clients, malicious)
    data = with_client(data, parts.root).to(device)
    root = Batch(*(part.to(device) for part in parts.root))
    check_start(model, e.loss, root)  # before training is planned, which tries the model out
    trainer = plan(model, e.loss, e.local, data)
    side = server(model, e.loss, root, trainer, seed)
    _require_room(e, model, device)
    return Run(
        e,
        data,
        malicious,
        trainer,
        side,
        evaluation(
            model, e.loss, Batch(*(part.to(device) for part in parts.test)), _backdoor(e, dataset)
        ),
        Batch(*(part.to(device) for part in own)),
    )


def _require_room(experiment: Experiment, model: FlatModel, device: torch.device) -> None:
    """Refuse a run whose updates do not fit, before anything is trained."""
    n = how_many_take_part(experiment, experiment.clients or 1)
    entry = next(model.module.parameters()).element_size()
    require_room(
        2 * n * model.size * entry,  # what an attack makes of them is a copy
        device,
        f"a round of {n:,} clients' updates, {model.size:,} parameters each,",
        "fewer clients a round (participation) would fit",
    )


def _own_samples(data: ClientData, malicious: Tensor, seed: int) -> Batch:
    """At most `_OWN_SAMPLES` of the malicious clients' samples, before any poisoning."""
    rows = data.rows(malicious).nonzero().flatten()
    drawn = torch.randperm(len(rows), generator=generator(seed, "own samples"))[:_OWN_SAMPLES]
    return Batch(data.inputs[rows[drawn]], data.labels[rows[drawn]])


def _backdoor(experiment: Experiment, dataset: Dataset) -> Backdoor | None:
    """The attack's backdoor; an attack of one's own need not know of any."""
    found = getattr(experiment.attack, "backdoor", lambda: None)()
    if found is not None:
        classes = dataset.classes
        require(0 <= found.target < classes, "target", found.target, f"from 0 to {classes - 1}")
    return found


def _poisoned(experiment: Experiment, data: ClientData, malicious: Tensor) -> ClientData:
    """The data after the attack; refuses an attack that touches honest samples or breaks labels."""
    if not attacks(experiment):
        return data
    honest = ~data.rows(malicious)
    before = Batch(data.inputs[honest], data.labels[honest])
    poisoned = experiment.attack.poison_data(
        data, malicious, generator(experiment.seed, "poison data")
    )
    same = poisoned.offsets.equal(data.offsets) and poisoned.labels.shape == data.labels.shape
    if not (
        same
        and poisoned.inputs[honest].equal(before.inputs)
        and poisoned.labels[honest].equal(before.labels)
    ):
        raise InputError(
            f"attack {type(experiment.attack).__name__} must leave the honest clients' samples, "
            "and everybody's number of samples, as they are"
        )
    check_labels(poisoned.labels, data.classes, "label after the attack")
    return poisoned


def attacks(experiment: Experiment) -> bool:
    """Whether there is an attack; one of your own may build on `NoAttack`."""
    return type(experiment.attack) is not NoAttack


def malicious_clients(clients: int, share: float, seed: int) -> Tensor:
    """Which clients are malicious, (clients,) bool: `share` of them, rounded, drawn by `seed`."""
    order = torch.randperm(clients, generator=generator(seed, "malicious"))
    marks = torch.zeros(clients, dtype=torch.bool)
    marks[order[: how_many(share, clients)]] = True
    return marks


def _model(experiment: Experiment, dataset: Dataset) -> FlatModel:
    """The initial global model; its random weights depend on the seed alone."""
    make = experiment.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(experiment.seed, "model"))  # noqa: TID251
        if isinstance(make, str):
            shape = tuple(dataset.train.inputs.shape[1:])
            return flat_model(MODELS[make](shape, dataset.classes))
        assert make is not None
        return flat_model(make())


def how_many_take_part(experiment: Experiment, there: int) -> int:
    """How many of so many clients `there` take part in a round."""
    return max(1, int(experiment.participation * there + 0.5))
