"""Local training: the fast paths equal a readable loop, and batches are the client's own."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from skymask import clients as clients_module
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.local_sgd import LocalSGD, batch_rows
from skymask.models import ResNet20, logistic
from skymask.randomness import generator
from skymask.types import ClientData
from tests.reference import training

SEED = 12345
SIZES = [9, 1, 30, 4]  # one client has fewer samples than a batch, one has a single sample


@pytest.fixture(autouse=True)
def same_weights():
    """Modules draw their first weights from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.rnn(x[:, :, None])[0][:, -1])


class Branching(nn.Module):
    """What it computes hangs on a parameter's value: that cannot be vectorised over clients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        return self.linear(x if self.linear.bias.norm() < 100 else -x)


def small_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    )


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5))


def half_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
    module[0].requires_grad_(False)
    return module


def partly_unused() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 5))
    module.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return module


def clients(*shape: int, sizes=SIZES, dtype=torch.float64, classes=4) -> ClientData:
    rows, draw = sum(sizes), generator("clients", *shape)
    inputs = torch.randn(rows, *shape, dtype=dtype, generator=draw)
    labels = torch.randint(classes, (rows,), generator=draw)
    return ClientData(inputs, labels, torch.tensor([0, *sizes]).cumsum(0), classes)


def reference(module, data, rows, lr):
    """Updates and buffers of the clients whose batches are `rows` (n, steps, batch), one by one."""
    results = [
        training.train(
            module, F.cross_entropy, [(data.inputs[at], data.labels[at]) for at in own], lr
        )
        for own in rows
    ]
    return tuple(torch.stack(part) for part in zip(*results, strict=True))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("path", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: logistic(25, 4), (1, 5, 5)),
        (small_conv, (1, 8, 8)),
        (normalised, (5,)),
        (Tied, (5,)),
        (half_frozen, (5,)),
        (partly_unused, (5,)),
        (lambda: ResNet20(3, 4), (3, 8, 8)),
    ],
    ids=["logistic", "conv", "batch norm", "tied", "frozen", "unused", "resnet-20"],
)
def test_training_equals_a_readable_loop(make, shape, path, steps):
    # In double precision: in single, ReLU's kinks alone move a ResNet's update by a hundredth.
    module, data, local = make().double(), clients(*shape), LocalSGD(steps, 6, 0.3)
    given = copy.deepcopy(module)
    trainer = plan(flat_model(module), F.cross_entropy, local, data, path=path, chunk=3)
    params, buffers = trainer.model.initial()
    updates, after = trainer(params, buffers, data, [2, 0, 3, 1], SEED)

    rows = batch_rows(data, [2, 0, 3, 1], local, SEED)
    expected, expected_buffers = reference(given, data, rows, 0.3)
    assert updates.norm(dim=1).min() > 1e-3
    torch.testing.assert_close(updates, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(after.to(expected_buffers), expected_buffers, rtol=1e-7, atol=1e-9)
    for name, value in given.state_dict().items():
        assert trainer.model.module.state_dict()[name].equal(value)


@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_fedprox_pulls_each_step_towards_the_global_model(path):
    module, data = logistic(25, 4).double(), clients(1, 5, 5)
    local = LocalSGD(4, 6, 0.3, prox=0.7)
    trainer = plan(flat_model(module), F.cross_entropy, local, data, path=path)
    params, buffers = trainer.model.initial()
    updates, _ = trainer(params, buffers, data, [0, 1, 2, 3], SEED)

    start = params.clone()
    for client, rows in enumerate(batch_rows(data, [0, 1, 2, 3], local, SEED)):
        weights = start.clone()
        for at in rows:
            named = trainer.model.tensors(weights.clone().requires_grad_(), buffers)
            leaves = [named[name].detach().requires_grad_() for name in trainer.model.layers]
            outputs = functional_call(
                module, dict(zip(trainer.model.layers, leaves, strict=True)), (data.inputs[at],)
            )
            slopes = torch.autograd.grad(F.cross_entropy(outputs, data.labels[at]), leaves)
            weights = weights - 0.3 * (flat(slopes) + 0.7 * (weights - start))
        torch.testing.assert_close(updates[client], weights - start)


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_neither_chunk_nor_path_matters(chunk):
    data = clients(5, sizes=[9, 3, 30, 4], dtype=torch.float32)
    local = LocalSGD(3, 6, 0.3)
    model = flat_model(normalised())
    once = plan(model, F.cross_entropy, local, data, path="loop")
    parts = plan(model, F.cross_entropy, local, data, path="vmap", chunk=chunk)
    for one, other in zip(
        *(t(*model.initial(), data, range(4), SEED) for t in (once, parts)), strict=True
    ):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_training_starts_from_the_vectors_it_is_given_and_leaves_them_alone():
    data, module = clients(5), normalised().double()
    trainer = plan(flat_model(module), F.cross_entropy, LocalSGD(2, 4), data)
    params, buffers = (part + 0.25 for part in trainer.model.initial())
    given = params.clone(), buffers.clone()
    updates, after = trainer(params, buffers, data, [0, 2], SEED)
    assert params.equal(given[0])
    assert buffers.equal(given[1])
    moved = copy.deepcopy(module)
    nn.utils.vector_to_parameters(params, moved.parameters())
    moved[1].running_mean += 0.25
    moved[1].running_var += 0.25
    rows = batch_rows(data, [0, 2], LocalSGD(2, 4), SEED)
    expected = reference(moved, data, rows, 0.5)
    torch.testing.assert_close(updates, expected[0])
    torch.testing.assert_close(after, expected[1])


def test_no_grad_around_it_does_not_matter():
    data = clients(5)
    for path in ("vmap", "loop"):
        trainer = plan(flat_model(Tied().double()), F.cross_entropy, LocalSGD(), data, path=path)
        run = (*trainer.model.initial(), data, [0, 1], SEED)
        expected = trainer(*run)[0]
        with torch.no_grad():
            assert trainer(*run)[0].equal(expected)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: logistic(5, 4), "vmap"),
        (normalised, "vmap"),
        (Tied, "vmap"),
        (lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 2)), "loop"),
    ],
)
def test_the_usual_path_on_a_cpu_needs_no_warning(make, path):
    trainer = plan(flat_model(make().double()), F.cross_entropy, LocalSGD(), clients(5))
    assert trainer.path == path
    assert trainer.note is None


@pytest.mark.parametrize(
    "make",
    [Recurrent, Branching, lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5))],
    ids=["lstm", "branch", "dropout"],
)
def test_what_cannot_be_vectorised_is_looped_over_with_one_warning(make):
    data, local = clients(5), LocalSGD(2, 4)
    with pytest.warns(UserWarning, match="cannot be vectorised.*one by one") as caught:
        trainer = plan(flat_model(make().double()), F.cross_entropy, local, data)
    assert len(caught) == 1
    assert trainer.path == "loop"
    assert trainer.note == str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates, _ = trainer(*trainer.model.initial(), data, range(4), SEED)
    assert (updates.norm(dim=1) > 0).all()


def test_trying_to_vectorise_leaves_the_warning_filters_of_other_threads_alone():
    """Flower starts its simulation in one thread and the server app in another."""
    before, during = list(warnings.filters), []

    class Watching(nn.Linear):
        def forward(self, x):
            during.append(list(warnings.filters))
            return super().forward(x)

    plan(flat_model(Watching(5, 5).double()), F.cross_entropy, LocalSGD(), clients(5))
    assert len(during) > 0
    assert all(filters == before for filters in during)


def test_a_recurrent_module_trains_as_the_reference_does():
    data, module = clients(5), Recurrent().double()
    trainer = plan(flat_model(module), F.cross_entropy, LocalSGD(3, 4, 0.3), data, path="loop")
    rows = batch_rows(data, range(4), trainer.local, SEED)
    updates, _ = trainer(*trainer.model.initial(), data, range(4), SEED)
    torch.testing.assert_close(updates, reference(module, data, rows, 0.3)[0])


def test_dropout_depends_on_seed_and_client_alone():
    data, module = clients(5), nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5)).double()
    trainer = plan(flat_model(module), F.cross_entropy, LocalSGD(2, 4), data, path="loop")
    before = torch.random.get_rng_state()

    def train(chosen: list[int], seed: int = SEED) -> torch.Tensor:
        return trainer(*trainer.model.initial(), data, chosen, seed)[0]

    everybody = train([0, 1, 2, 3])
    assert torch.random.get_rng_state().equal(before)
    torch.rand(1)  # what else is drawn in the process does not matter
    assert train([3, 2]).equal(everybody[[3, 2]])
    # Client 1 has one sample: its batches are always the same.
    assert not train([1], SEED + 1).equal(everybody[[1]])
    # Two clients that see the same rows do not drop the same inputs.
    twins = ClientData(data.inputs[[0, 0]], data.labels[[0, 0]], torch.arange(3), 4)
    first, second = trainer(*trainer.model.initial(), twins, [0, 1], SEED)[0]
    assert not first.equal(second)


def test_an_unvectorised_training_is_not_forced_on_without_a_word():
    data, module = clients(5), nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5)).double()
    trainer = plan(flat_model(module), F.cross_entropy, LocalSGD(), data, path="vmap", chunk=2)
    with pytest.raises(RuntimeError, match="random"):
        trainer(*trainer.model.initial(), data, [0, 1], SEED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_quick_cross_entropy_is_that_of_torch(dtype):
    draw = generator("cross entropy")
    outputs = torch.randn(7, 20, 6, generator=draw).to(dtype)
    labels = torch.randint(6, (7, 20), generator=draw)

    def each(loss):
        return vmap(grad_and_value(loss))(outputs, labels)

    for ours, theirs in zip(
        each(clients_module._cross_entropy), each(F.cross_entropy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_labels_that_are_no_classes_keep_torch_s_own_cross_entropy():
    data = clients(5)
    ignored = replace(data, labels=torch.where(data.labels == 0, -100, data.labels))
    model = flat_model(logistic(5, 5).double())
    assert plan(model, F.cross_entropy, LocalSGD(), ignored).loss is F.cross_entropy
    assert plan(model, F.cross_entropy, LocalSGD(), data).loss is clients_module._cross_entropy


@pytest.mark.parametrize("make", [small_conv, ResNet20])
def test_clients_side_by_side_train_as_one_after_another(make):
    shape = (1, 8, 8) if make is small_conv else (3, 8, 8)
    data, local = clients(*shape), LocalSGD(2, 4, 0.1)
    trainer = plan(flat_model(make().double()), F.cross_entropy, local, data, path="loop")
    several = replace(trainer, copies=tuple(trainer.model.in_mode(True) for _ in range(3)))
    params, buffers = trainer.model.initial()
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    for clients_of_round in ([0, 1, 2, 3], [2], [3, 0]):
        each = several(params, buffers, data, clients_of_round, SEED)
        torch.set_num_threads(1)  # as each of the threads does
        alone = replace(trainer, copies=())(params, buffers, data, clients_of_round, SEED)
        torch.set_num_threads(threads)
        assert all(one.equal(other) for one, other in zip(each, alone, strict=True))
    assert torch.random.get_rng_state().equal(state)


def test_a_module_that_draws_random_numbers_is_not_trained_side_by_side(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    data, local = clients(5), LocalSGD(2, 4)
    steady, drawing = nn.Linear(5, 5), nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 5))
    copies = [
        plan(flat_model(module.double()), F.cross_entropy, local, data, path="loop").copies
        for module in (steady, drawing)
    ]
    assert [len(each) for each in copies] == [3, 0]
