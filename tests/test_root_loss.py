"""The root data set's loss and what small steps change in a model's outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skymask.flat import assign, flat_model
from skymask.root_loss import root_loss
from skymask.types import Batch
from tests.reference.nets import NO_BUFFERS, drawn, net


@pytest.fixture(autouse=True)
def same_weights():
    """Modules draw their first weights from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


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
