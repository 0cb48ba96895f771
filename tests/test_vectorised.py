"""Layers of many models in a few kernels: held to torch's own layers, model by model.

The kernels need a GPU (test_kernels.py holds them to the same reference); here their place is
taken by `layer_reference`, and what is tested is all around them.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skymask import vectorised
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.local_sgd import LocalSGD
from skymask.models import ResNet20, cnn
from skymask.root_loss import root_loss
from skymask.types import Batch, ClientData
from skymask.vectorised import with_kernels
from tests import layer_reference


@pytest.fixture
def kernels(monkeypatch):
    """The reference in the kernels' place; tells how often each was called."""
    names = ("unfold", "fold", "pool", "unpool", "normalise", "normalise_back", "normalise_along")
    calls = dict.fromkeys(names, 0)

    def counted(name):
        def call(*given, **named):
            calls[name] += 1
            return getattr(layer_reference, name)(*given, **named)

        return call

    for name in calls:
        monkeypatch.setattr(vectorised.kernels, name, counted(name))
    monkeypatch.setattr(vectorised.kernels, "takes", layer_reference.takes)
    return calls


def far(one, other):
    return float((one - other).norm() / other.norm())


def clients(*shape, n=3, each=12):
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(n * each, *shape, generator=draw)
    return ClientData(inputs, torch.arange(n * each) % 4, torch.arange(n + 1) * each, 4)


def net(*layers, features):
    torch.manual_seed(3)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 4))


NETS = {
    "plain": lambda: net(nn.Conv2d(2, 3, 3), nn.Tanh(), features=3 * 6 * 5),
    "two": lambda: net(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2), features=3 * 5 * 4),
    "padding": lambda: net(nn.Conv2d(2, 3, 3, padding=(2, 1)), nn.Tanh(), features=3 * 10 * 7),
    "stride": lambda: net(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 4, 2, 2, bias=False), features=16
    ),
    "wide": lambda: net(nn.Conv2d(2, 3, (5, 3), padding=1), nn.Tanh(), features=3 * 6 * 7),
    "point": lambda: net(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1, stride=3), features=2 * 3 * 3),
    "pool": lambda: net(nn.MaxPool2d(3), nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), features=3),
    "odd": lambda: net(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), features=3 * 3 * 3),
    "norm": lambda: net(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), features=3 * 6 * 5
    ),
    "mixed": lambda: net(
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, dilation=2), nn.Conv2d(4, 4, 2, groups=2),
        nn.MaxPool2d(2, stride=1), features=4 * 2 * 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_training_by_kernels_is_torchs_training(name, kernels):
    model, data = flat_model(NETS[name]()), clients(2, 8, 7)
    params, buffers = model.initial()
    local = LocalSGD(3, 5, 0.1, prox=0.2)
    by_kernels = plan(model, F.cross_entropy, local, data, path="vmap", chunk=2)
    one_by_one = plan(model, F.cross_entropy, local, data, path="loop")
    updates, after = by_kernels(params, buffers, data, [0, 1, 2], 7)
    usual, usual_after = one_by_one(params, buffers, data, [0, 1, 2], 7)
    assert sum(kernels.values()) > 0
    assert far(updates, usual) < 1e-5
    torch.testing.assert_close(after, usual_after)


@pytest.mark.parametrize(("make", "shape"), [(cnn, (1, 28, 28)), (ResNet20, (3, 32, 32))])
def test_the_papers_models_use_them(make, shape, kernels, monkeypatch):
    # Batch norm of six samples multiplies differences of rounding: double precision has few.
    monkeypatch.setattr(vectorised.kernels, "takes", lambda *tensors: True)
    model, data = flat_model(make().double()), clients(*shape, n=2)
    data = replace(data, inputs=data.inputs.double())
    params, buffers = model.initial()
    local = LocalSGD(2, 6, 0.05)
    updates, after = plan(model, F.cross_entropy, local, data, path="vmap", chunk=2)(
        params, buffers, data, [0, 1], 7
    )
    usual, usual_after = plan(model, F.cross_entropy, local, data, path="loop")(
        params, buffers, data, [0, 1], 7
    )
    assert far(updates, usual) < 1e-9
    torch.testing.assert_close(after, usual_after)
    convolutions = sum(isinstance(part, nn.Conv2d) for part in model.module.modules())
    # Two tries of two steps each, forwards and backwards; the first layer's images have no slope.
    assert kernels["unfold"] >= 2 * 2 * convolutions
    assert kernels["fold"] >= 2 * (convolutions - 1)


def test_the_gradient_of_the_root_loss_uses_them(kernels):
    model = flat_model(NETS["norm"]())
    batch = Batch(*(part[:10] for part in (clients(2, 8, 7).inputs, clients(2, 8, 7).labels)))
    params, buffers = model.initial()
    loss = root_loss(model, F.cross_entropy, buffers)
    slope = loss.gradient(params, batch)
    assert kernels["normalise_back"] == 2
    assert kernels["normalise_along"] == 0
    leaf = params.clone().requires_grad_()
    (usual,) = torch.autograd.grad(loss(leaf, batch), leaf)
    assert far(slope, usual) < 1e-5
    assert torch.equal(loss.buffers, buffers)


@pytest.mark.parametrize("name", NETS)
def test_derivatives_forwards_use_them(name, kernels, monkeypatch):
    monkeypatch.setattr(vectorised.kernels, "takes", lambda *tensors: True)
    model = flat_model(NETS[name]().double())
    params, buffers = model.initial()
    loss = root_loss(model, F.cross_entropy, buffers)
    for part in (*loss.differentiated.modules(), *loss.module.modules()):
        part._forward_pre_hooks.clear()  # of a CPU, on which this way is never taken
    images = clients(2, 8, 7).inputs[:10].double()
    steps = torch.randn(5, model.size, generator=torch.Generator().manual_seed(1)).double()
    found = loss.derivatives(params, steps, images, 2)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in model.module.modules())
    assert kernels["normalise_along"] == 3 * norms  # two steps at once, of five
    assert sum(kernels.values()) > 0
    plain = replace(loss, differentiated=loss.module)
    torch.testing.assert_close(found, plain.derivatives(params, steps, images, 1))


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "1.weight", "1.bias", "3.bias"])
def test_what_is_not_trained_has_no_derivative_and_no_gradient(frozen, kernels, monkeypatch):
    monkeypatch.setattr(vectorised.kernels, "takes", lambda *tensors: True)
    module = NETS["norm"]().double()
    module.get_parameter(frozen).requires_grad_(False)
    model, data = flat_model(module), clients(2, 8, 7)
    data = replace(data, inputs=data.inputs.double())
    params, buffers = model.initial()
    loss = root_loss(model, F.cross_entropy, buffers)
    for part in (*loss.differentiated.modules(), *loss.module.modules()):
        part._forward_pre_hooks.clear()
    steps = torch.randn(3, model.size, generator=torch.Generator().manual_seed(1)).double()
    plain = replace(loss, differentiated=loss.module)
    torch.testing.assert_close(
        loss.derivatives(params, steps, data.inputs[:10], 3),
        plain.derivatives(params, steps, data.inputs[:10], 1),
    )
    updates = [
        plan(model, F.cross_entropy, LocalSGD(2, 5, 0.1), data, path=path, chunk=3)(
            params, buffers, data, [0, 1, 2], 7
        )[0]
        for path in ("vmap", "loop")
    ]
    assert far(*updates) < 1e-9


def test_of_equal_pixels_the_first_has_the_slope(kernels):
    images = torch.tensor([[[[1.0, 1.0, 0.0], [1.0, 0.0, 2.0], [2.0, 2.0, 2.0]]]])
    layer = with_kernels(nn.Sequential(nn.MaxPool2d(2)))
    leaf = images.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert kernels["unpool"] == 1
    assert leaf.grad.nonzero().tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, stride=(1, 2)),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 7, padding=3),
        nn.MaxPool2d(3, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(2).eval(),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, momentum=None),
        nn.AvgPool2d(2),
    ],
    ids=str,
)
def test_layers_with_other_options_stay_torchs(layer, kernels):
    images = torch.randn(3, 2, 9, 9)
    expected = layer(images)
    assert torch.equal(with_kernels(layer)(images), expected)
    assert sum(kernels.values()) == 0


def test_what_the_kernels_are_not_for_is_torchs(kernels):
    layer = with_kernels(nn.Conv2d(2, 4, 3))
    assert layer(torch.randn(2, 9, 9)).shape == (4, 7, 7)  # one image
    doubles = with_kernels(nn.Conv2d(2, 4, 3).double())
    assert doubles(torch.randn(1, 2, 9, 9).double()).dtype == torch.float64
    assert sum(kernels.values()) == 0


def test_the_largest_matrix_is_told():
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 1, 2, stride=2), nn.Conv2d(1, 1, 7))
    with vectorised.largest_unfolding(module) as largest:
        module(torch.ones(3, 2, 20, 19))
    # 3 images x 18 x 17 pixels x 2 channels x 9 taps; the last one is torch's.
    assert largest == [3 * 18 * 17 * 2 * 9]


def test_a_second_derivative_is_refused(kernels):
    layer, images = with_kernels(nn.Conv2d(1, 1, 2)), torch.ones(1, 1, 3, 3, requires_grad=True)
    (slope,) = torch.autograd.grad((layer(images) ** 2).sum(), images, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        slope.sum().backward()


def test_the_users_choice_of_tf32_is_kept(kernels, monkeypatch):
    during = []
    assert torch.backends.cuda.matmul.allow_tf32 is False  # torch's default

    class Left:
        def __len__(self):
            return 1

        def __matmul__(self, right):
            during.append(torch.backends.cuda.matmul.allow_tf32)
            raise ValueError("as it may happen")

    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        with pytest.raises(ValueError, match="as it may happen"):
            vectorised._product(Left(), torch.ones(1))
        assert torch.backends.cuda.matmul.allow_tf32 is False
    assert during == [True, False]
