"""Vectors and modules: one layout, nothing shared, nothing changed behind one's back."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from skymask.errors import InputError
from skymask.flat import assign, flat_model, flatten
from tests.reference.nets import NO_BUFFERS, drawn, net


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


def test_a_mode_is_given_to_a_copy():
    model = flat_model(net())
    assert model.in_mode(True).training
    assert not model.in_mode(False)[1].training
    assert model.in_mode(False, batch_statistics=True)[1].training
    assert not model.in_mode(False, batch_statistics=True)[2].training
    assert model.module.training
