"""A round as the server prepares it: the root model trains exactly as a client does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skymask import Batch, ClientData, InputError, LocalSGD, SkyMask, server_round
from skymask.flat import flat_model, flatten
from skymask.local_sgd import batch_rows
from skymask.models import logistic, mlp
from skymask.randomness import generator, key
from skymask.server import as_client, server
from tests.reference import training

LOCAL = LocalSGD(steps=3, batch=8, lr=0.2)


@pytest.fixture(autouse=True)
def same_weights():
    """Modules draw their first weights from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def root_set(samples: int = 20) -> Batch:
    draw = generator("server")
    return Batch(torch.randn(samples, 5, generator=draw), torch.arange(samples) % 3)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def descend(module: nn.Module, root: Batch) -> None:
    """One step of full-batch gradient descent, as a user may write it."""
    F.cross_entropy(module(root.inputs), root.labels).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.2 * parameter.grad


@pytest.mark.parametrize("samples", [3, 20])
@pytest.mark.parametrize("make", [lambda: logistic(5, 3), normalised])
def test_the_root_model_takes_a_clients_steps(make, samples):
    module, root = make(), root_set(samples)
    round = server_round(module, F.cross_entropy, root, LOCAL, index=7, seed=11)
    (rows,) = batch_rows(as_client(root), [0], LOCAL, key(11, "root batches", 7))
    assert rows.shape == (3, 8)
    batches = [(root.inputs[at], root.labels[at]) for at in rows]
    expected, _ = training.train(module, F.cross_entropy, batches, LOCAL.lr)
    torch.testing.assert_close(round.server_update, expected, rtol=1e-4, atol=1e-6)


def test_the_root_set_as_a_client():
    root = root_set(6)
    data = as_client(root)
    assert isinstance(data, ClientData)
    assert data.counts.tolist() == [6]
    assert data.inputs is root.inputs


def test_every_field_of_the_round():
    module, root = normalised(), root_set()
    buffers, counts = torch.ones(4, 8), torch.tensor([5, 6, 7, 8])
    round = server_round(
        module,
        F.cross_entropy,
        root,
        LOCAL,
        index=3,
        clients=[9, 2, 4, 1],
        counts=counts,
        client_buffers=buffers,
        memory={"a": 1},
        seed=5,
    )
    model = flat_model(module)
    assert round.index == 3
    assert round.clients.tolist() == [9, 2, 4, 1]
    assert round.counts.equal(counts)
    assert round.params.equal(flatten(module))
    assert round.layers == model.layers
    assert round.buffers is buffers
    assert round.buffer_layers == model.buffer_layers
    assert round.root.inputs is root.inputs
    assert round.memory == {"a": 1}
    expected = F.cross_entropy(module(root.inputs), root.labels)  # in training mode
    torch.testing.assert_close(round.loss(round.params, round.root), expected)


def test_seed_and_index_decide():
    def make(**words: int):
        return server_round(module, F.cross_entropy, root_set(), LOCAL, **words)

    module = logistic(5, 3)
    one, again, later, other = make(), make(), make(index=1), make(seed=1)
    assert one.server_update.equal(again.server_update)
    draw = torch.rand(3, generator=one.generator)
    assert draw.equal(torch.rand(3, generator=again.generator))
    for round in (later, other):
        assert not one.server_update.equal(round.server_update)
        assert not draw.equal(torch.rand(3, generator=round.generator))


def test_the_users_module_is_left_alone():
    module = normalised()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for local in (LOCAL, descend):
        round = server_round(module, F.cross_entropy, root_set(), local)
        round.loss(round.params, round.root)
        SkyMask()(torch.randn(4, len(round.params)), round)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_training_of_ones_own():
    module, root = mlp(5, 3, hidden=4), root_set()
    own = server_round(module, F.cross_entropy, root, descend)
    library = server_round(module, F.cross_entropy, root, LocalSGD(1, len(root.labels), 0.2))
    torch.testing.assert_close(own.server_update, library.server_update, rtol=1e-4, atol=1e-6)


def test_training_of_ones_own_starts_from_the_rounds_parameters_and_buffers():
    seen = {}

    def spy(module: nn.Module, root: Batch) -> None:
        seen["params"] = flatten(module)
        seen["buffers"] = flat_model(module).initial()[1]

    side = server(flat_model(normalised()), F.cross_entropy, root_set(), spy, seed=0)
    params, buffers = (part + 2 for part in side.model.initial())
    assert not side.round(0, params, buffers).server_update.any()
    assert seen["params"].equal(params)
    assert seen["buffers"].equal(buffers)


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ((torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)), "root is '0 inputs and 0 labels'"),
        ((torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64)), "root is '3 inputs and 2 labels'"),
        (
            (torch.full((2, 5), float("nan")), torch.tensor([0, 1])),
            "loss on the root data set is nan",
        ),
    ],
)
def test_a_root_set_that_is_of_no_use_is_refused(root, says):
    with pytest.raises(InputError, match=says):
        server_round(logistic(5, 3), F.cross_entropy, root, LOCAL)


def test_a_loss_that_is_no_mean_is_refused():
    def per_sample(outputs, labels):
        return F.cross_entropy(outputs, labels, reduction="none")

    with pytest.raises(InputError, match=r"of shape \(20,\).*one finite number"):
        server_round(logistic(5, 3), per_sample, root_set(), LOCAL)
