"""The kernels of layers against their reference; without a GPU there is nothing to compare."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from skymask import layer_kernels as kernels
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.local_sgd import LocalSGD, Schedule
from skymask.models import ResNet20, cnn
from skymask.root_loss import root_loss
from skymask.types import ClientData
from tests import layer_reference as reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def far(some, other):
    """Relative distance of two tensors."""
    return float((some - other).norm() / other.norm().clamp_min(1e-30))


def drawn(*shape, seed=1):
    draw = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=draw)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((1, 1, 1, 3, 3), (3, 3), 1, (0, 0)),
        ((3, 2, 5, 9, 8), (3, 3), 1, (1, 1)),
        ((2, 3, 4, 17, 11), (5, 2), 1, (2, 0)),
        ((2, 5, 3, 10, 9), (3, 3), 2, (1, 1)),
        ((2, 4, 70, 8, 8), (1, 1), 3, (0, 0)),
    ],
)
def test_unfolding_and_folding(shape, kernel, stride, padding):
    images = drawn(*shape)
    size = tuple(
        (length + 2 * pad - side) // stride + 1
        for length, pad, side in zip(shape[3:], padding, kernel, strict=True)
    )
    for ones in (True, False):
        given = (images, kernel, size, stride, padding, ones)
        seen = kernels.unfold(*given)
        assert torch.equal(seen, reference.unfold(*given))
    slopes = drawn(*seen.shape, seed=2)
    given = (slopes, shape, kernel, size, stride, padding)
    assert far(kernels.fold(*given), reference.fold(*given)) < 1e-6


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 1, 1, 2, 2), 2), ((3, 5, 4, 26, 27), 2), ((2, 3, 40, 10, 11), 3)]
)
def test_pooling_and_its_gradient(shape, side):
    images = drawn(*shape).mul(3).round()  # with many that are equal
    pooled, place = kernels.pool(images, side)
    expected, expected_place = reference.pool(images, side)
    assert torch.equal(pooled, expected)
    assert torch.equal(place, expected_place)
    slopes = drawn(*pooled.shape, seed=2)
    assert torch.equal(
        kernels.unpool(slopes, place, side, shape[3:]),
        reference.unpool(slopes, place, side, shape[3:]),
    )


def test_what_is_no_number_is_seen():
    images = drawn(1, 2, 3, 4, 4)
    images[0, 1, 2, 1, 1] = float("nan")
    assert kernels.pool(images, 2)[0].isnan().sum() == 1


@pytest.mark.parametrize("shape", [(1, 1, 2, 1, 3), (3, 4, 5, 6, 7), (2, 16, 64, 32, 32)])
@pytest.mark.parametrize("level", [0.0, 1e3])
def test_batch_norm_and_its_gradients(shape, level):
    images, weight, bias = drawn(*shape) + level, drawn(*shape[:2]), drawn(*shape[:2]) + 1
    found = kernels.normalise(images, weight, bias, 1e-5)
    expected = reference.normalise(*(each.double() for each in (images, weight, bias)), 1e-5)
    # Of values around 1,000 single precision holds four digits behind the point.
    close = 1e-5 if level == 0 else 1e-3
    for one, other in zip(found, expected, strict=True):
        assert far(one, other) < close
    slopes = drawn(*shape, seed=2)
    back = kernels.normalise_back(slopes, images, weight, *found[1:], 1e-5)
    exact = (each.double() for each in (slopes, images, weight, *expected[1:]))
    for one, other in zip(back, reference.normalise_back(*exact, 1e-5), strict=True):
        assert far(one, other) < 3 * close


@pytest.mark.parametrize("shape", [(1, 2, 1, 3), (4, 5, 6, 7), (16, 64, 32, 32)])
@pytest.mark.parametrize("models", [1, 3])
def test_batch_norms_derivative_forwards(shape, models):
    images, weight = drawn(models, *shape) + 2, drawn(models, shape[0]) + 1
    statistics = kernels.normalise(images, weight, weight, 1e-5)[1:]
    steps, (by_weight, by_bias) = drawn(3, *shape, seed=2), drawn(2, 3, shape[0], seed=3)
    given = (steps, by_weight, by_bias, images, weight, *statistics)
    found = kernels.normalise_along(*given, 1e-5)
    assert far(found, reference.normalise_along(*(each.double() for each in given), 1e-5)) < 1e-5


@pytest.mark.parametrize(("make", "shape"), [(cnn, (1, 28, 28)), (ResNet20, (3, 32, 32))])
def test_derivatives_forwards_are_torchs(make, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, data = flat_model(make()).to(torch.device("cuda")), clients(*shape)
    params, buffers = model.initial()
    loss, steps = root_loss(model, F.cross_entropy, buffers), drawn(5, model.size)
    found = loss.derivatives(params, steps, data.inputs[:40], 3)
    plain = replace(loss, differentiated=loss.module)
    single = plain.derivatives(params, steps, data.inputs[:40], 1)
    exactly = replace(plain, buffers=buffers.double())
    double = exactly.derivatives(params.double(), steps.double(), data.inputs[:40].double(), 1)
    # Of ResNet-20 torch's own in single precision are up to 0.005 from those in double.
    assert far(found, double) < max(1e-3, 3 * far(single, double))


def clients(*shape):
    draw = torch.Generator().manual_seed(7)
    inputs, labels = torch.rand(90, *shape, generator=draw), torch.arange(90) % 10
    return ClientData(inputs, labels, torch.tensor([0, 20, 50, 90]), 10).to(torch.device("cuda"))


@pytest.mark.parametrize(
    ("make", "shape", "steps", "tolerance"),
    # Batch norm over few samples multiplies differences of rounding by ten in each step.
    [(cnn, (1, 28, 28), 3, 1e-4), (ResNet20, (3, 32, 32), 1, 1e-2)],
)
def test_training_by_kernels_equals_training_one_by_one(make, shape, steps, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, data = flat_model(make()).to(torch.device("cuda")), clients(*shape)
    params, buffers = model.initial()
    found = [
        plan(model, F.cross_entropy, LocalSGD(steps, 16, 0.05), data, path=path, chunk=2)(
            params, buffers, data, [0, 1, 2], 7
        )
        for path in ("vmap", "loop")
    ]
    for some, other in zip(*found, strict=True):
        assert not some.numel() or far(some, other) < tolerance


def test_half_precision_on_the_gpu_is_that_of_the_cpu():
    model, data = flat_model(ResNet20()), clients(3, 32, 32)
    params, buffers = model.initial()
    local, found = LocalSGD(1, 16, 0.05, precision="bfloat16"), []
    for device in (torch.device("cuda"), torch.device("cpu")):
        there = model.to(device)
        train = plan(there, F.cross_entropy, local, data.to(device), path="vmap", chunk=3)
        schedule = Schedule.of(data.to(device), [0, 1, 2], local)
        given = (params.to(device), buffers.to(device), data.to(device), schedule, 7)
        found.append([part.cpu() for part in train._together(*given)])
    assert F.cosine_similarity(found[0][0], found[1][0]).min() > 0.9
    assert far(found[0][1], found[1][1]) < 1e-2
