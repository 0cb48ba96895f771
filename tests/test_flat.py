"""Vectors and modules: one layout, nothing shared, nothing changed behind one's back."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from skymask.errors import InputError
from skymask.flat import assign, flat_model, flatten, root_loss
from skymask.randomness import generator
from skymask.types import Batch

NO_BUFFERS = torch.empty(0)


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
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("flat", *shape))


def test_the_layout_is_that_of_torch():
    module = net()
    model = flat_model(module)
    params, buffers = model.initial()
    assert params.equal(parameters_to_vector(module.parameters()))
    assert flatten(module).equal(params)
    assert model.size == params.numel()
    assert buffers.tolist() == [0.0, 0, 0, 1, 1, 1]  # running mean, running variance; no counter
    assert model.initial()[1].shape == (6,)
    for name, parameter in module.named_parameters():
        assert params[model.layers[name]].equal(parameter.flatten())
    edges = [0] + [at.stop for at in model.layers.values()]
    assert [(at.start, at.stop) for at in model.layers.values()] == list(pairwise(edges))
    assert edges[-1] == model.size


def test_a_vector_decides_what_the_module_computes():
    module, images = net(), drawn(5, 2, 4, 4)
    model, params = flat_model(module), drawn(flat_model(module).size)
    _, buffers = model.initial()
    outputs = functional_call(model.in_mode(False), model.tensors(params, buffers), (images,))
    other = net()
    assign(other, params)
    torch.testing.assert_close(outputs, other.eval()(images))
    assert flatten(other).equal(params)


def test_the_flat_model_keeps_a_copy():
    module = net()
    model = flat_model(module)
    before = model.initial()[0]
    assign(module, torch.zeros(model.size))
    assert model.initial()[0].equal(before)
    model.initial()[0].zero_()
    assert model.initial()[0].equal(before)


def test_flatten_is_a_copy():
    module = nn.Linear(2, 1)
    before = flatten(module)
    flatten(module).zero_()
    assert flatten(module).equal(before)
    assert not before.requires_grad


def test_buffers_are_updated_in_copies_alone():
    model, images = flat_model(net()), drawn(5, 2, 4, 4)
    params, buffers = model.initial()
    given = buffers.clone()
    module = model.in_mode(True)
    named = model.tensors(params, buffers)
    functional_call(module, named, (images,))
    assert buffers.equal(given)
    assert flat_model(module).initial()[1].equal(given)
    layer = copy.deepcopy(model.module).train()
    layer(images)
    torch.testing.assert_close(
        model.joined_buffers(named), torch.cat([layer[1].running_mean, layer[1].running_var])
    )


def test_frozen_parameters_are_no_part_of_the_vector():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    model = flat_model(module)
    assert list(model.layers) == ["1.weight", "1.bias"]
    frozen = module[0].weight.clone()
    assign(module, torch.zeros(6))
    assert module[0].weight.equal(frozen)
    assert flatten(module).equal(torch.zeros(6))


def test_a_shared_weight_is_there_once():
    module = Tied()
    model = flat_model(module)
    assert model.size == 4 * 4 + 4 + 4
    params = drawn(model.size)
    outputs = functional_call(
        model.in_mode(False), model.tensors(params, NO_BUFFERS), (drawn(3, 4),)
    )
    assign(module, params)
    torch.testing.assert_close(outputs, module(drawn(3, 4)))


@pytest.mark.parametrize("size", [0, 5, 7])
def test_assign_says_which_size_it_needs_and_writes_nothing(size):
    module = nn.Linear(2, 2)
    before = flatten(module)
    with pytest.raises(InputError, match=rf"params has shape \({size},\).*\(6,\)"):
        assign(module, torch.zeros(size))
    assert flatten(module).equal(before)


def test_nothing_to_train_or_two_dtypes_is_refused():
    with pytest.raises(InputError, match="no trainable parameters"):
        flat_model(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(InputError, match=r"float32.*float64"):
        flat_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


def test_the_root_loss_uses_batch_statistics_and_no_dropout():
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model, batch = flat_model(module), Batch(drawn(8, 3), torch.tensor([0, 1] * 4))
    params, _ = model.initial()
    hidden = module[0](batch.inputs)
    normal = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    expected = F.cross_entropy(module[3](normal), batch.labels)
    for buffers in (torch.zeros(12), torch.full((12,), 3.0)):
        given = buffers.clone()
        loss = root_loss(model, F.cross_entropy, buffers)
        for _ in range(2):
            torch.testing.assert_close(loss(params, batch), expected)
        assert buffers.equal(given)


def test_the_root_loss_is_differentiable_in_the_parameters():
    model, batch = flat_model(nn.Linear(3, 2)), Batch(drawn(8, 3), torch.tensor([0, 1] * 4))
    params = model.initial()[0].requires_grad_()
    (slope,) = torch.autograd.grad(
        root_loss(model, F.cross_entropy, NO_BUFFERS)(params, batch), params
    )
    F.cross_entropy(model.module(batch.inputs), batch.labels).backward()
    torch.testing.assert_close(
        slope, torch.cat([p.grad.flatten() for p in model.module.parameters()])
    )


def test_outputs_are_those_of_the_model():
    module, images = net(), drawn(5, 2, 4, 4)
    model, params = flat_model(module), drawn(flat_model(module).size)
    buffers = torch.full((6,), 2.0)
    outputs = root_loss(model, F.cross_entropy, buffers).outputs(params, images)
    other = net()
    assign(other, params)
    torch.testing.assert_close(outputs, other.train()(images))  # the batch's own statistics
    assert buffers.tolist() == [2.0] * 6
    assert not outputs.requires_grad


class Doubled(torch.autograd.Function):
    """Knows its derivative backwards alone."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x):
        return Doubled.apply(self.inner(x))


@pytest.mark.parametrize("at_once", [1, 2, 99])
@pytest.mark.parametrize(
    "make", [net, lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.Tanh())]
)
def test_derivatives_are_the_changes_of_outputs(make, at_once):
    model, images = flat_model(make().double()), drawn(5, 2, 4, 4).double()
    params, buffers = model.initial()
    loss = root_loss(model, F.cross_entropy, buffers)
    steps = 1e-6 * drawn(3, model.size).double()
    before = loss.outputs(params, images)
    expected = torch.stack([loss.outputs(params + step, images) - before for step in steps])
    found = loss.derivatives(params, steps, images, at_once)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(
        loss.changes(params, steps, images, before), found, rtol=1e-3, atol=1e-9
    )
    assert not found.requires_grad


def test_what_cannot_be_differentiated_forwards_is_computed_all_the_same():
    model, inputs = flat_model(Odd()), drawn(5, 3)
    params, buffers = model.initial()
    loss = root_loss(model, F.cross_entropy, buffers)
    steps, before = drawn(2, model.size), loss.outputs(params, inputs)
    found = loss.changes(params, steps, inputs, before)
    for step, change in zip(steps, found, strict=True):
        torch.testing.assert_close(change, loss.outputs(params + step, inputs) - before)


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1}, {"ceil_mode": True}])
def test_pooling_without_gradients_is_the_same_bit_for_bit(pool, options):
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(pool, **options))
    images = drawn(4, 2, 9, 12)
    images[1, :, 3, 3] = torch.nan
    quick = flat_model(module).in_mode(False)
    expected = quick(images)
    assert expected.grad_fn is not None
    with torch.no_grad():
        assert torch.equal(quick(images).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_outputs_are_what_the_loss_is_of():
    model, batch = flat_model(nn.Linear(3, 2)), Batch(drawn(8, 3), torch.tensor([0, 1] * 4))
    loss, rows = root_loss(model, F.cross_entropy, NO_BUFFERS), drawn(4, 8)
    for params in rows:
        outputs = loss.outputs(params, batch.inputs)
        torch.testing.assert_close(F.cross_entropy(outputs, batch.labels), loss(params, batch))


def test_outputs_have_no_dropout_and_no_gradient():
    module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    model = flat_model(module)
    loss, inputs = root_loss(model, F.cross_entropy, NO_BUFFERS), drawn(8, 3)
    params = model.initial()[0].requires_grad_()
    first, second = (loss.outputs(params, inputs) for _ in range(2))
    assert first.equal(second)
    assert not first.requires_grad
    torch.testing.assert_close(first, module.eval()(inputs).detach())


def test_a_mode_is_given_to_a_copy():
    model = flat_model(net())
    assert model.in_mode(True).training
    assert not model.in_mode(False)[1].training
    assert model.in_mode(False, batch_statistics=True)[1].training
    assert not model.in_mode(False, batch_statistics=True)[2].training
    assert model.module.training
