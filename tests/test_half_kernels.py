"""The kernels of layers in half precision against torch's; without a GPU nothing to compare."""

import pytest
import torch
import torch.nn.functional as F

from skymask import half_kernels as kernels
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.half import normalise_back_plainly, normalise_plainly
from skymask.local_sgd import LocalSGD
from skymask.models import ResNet20
from tests.test_layer_kernels import clients, drawn, far

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ROUNDING = 6e-3
"""Largest distance of two tensors that are the same but for bfloat16, in their length."""


@pytest.mark.parametrize("shape", [(2, 1), (50, 21), (192, 32), (5000, 70), (65536, 1600)])
@pytest.mark.parametrize("level", [0.0, 100.0])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_and_its_gradients(shape, level, adds, relu):
    images, slopes = (drawn(*shape) + level).bfloat16(), drawn(*shape, seed=2).bfloat16()
    weight, bias = drawn(shape[1], seed=3), drawn(shape[1], seed=4)
    addend = drawn(*shape, seed=5).bfloat16() if adds else None
    given = (images, weight, bias, addend, 1e-5, relu)
    found, expected = kernels.normalise(*given), normalise_plainly(*given)
    assert far(found[0], expected[0]) < ROUNDING
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert far(one, other) < 3e-5
    after, mean, scale = expected
    # What is as good as zero before ReLU is above it with one rounding and below with another.
    agreeing = (kernels.normalise(*given)[0] > 0) == (after > 0)
    slopes = torch.where(agreeing, slopes, 0)
    back = (slopes, images, after, weight, bias, mean, scale, adds, relu)
    wanted = zip(kernels.normalise_back(*back), normalise_back_plainly(*back), strict=True)
    for one, other in [*wanted][: 4 if adds else 3]:
        assert far(one.float(), other.float()) < ROUNDING or other.norm() < 1e-3


def test_what_is_no_number_stays_so():
    images = drawn(64, 16).bfloat16()
    images[5, 3] = float("nan")
    normal, *_ = kernels.normalise(images, drawn(16), drawn(16), None, 1e-5, True)
    assert normal[:, 3].isnan().all()
    assert not normal[:, 4:].isnan().any()


def test_training_is_as_near_to_single_precision_as_without(monkeypatch):
    model, data = flat_model(ResNet20()).to(torch.device("cuda")), clients(3, 32, 32)
    params, buffers = model.initial()

    def updates(precision):
        local = LocalSGD(1, 16, 0.05, precision=precision)
        train = plan(model, F.cross_entropy, local, data, chunk=3)
        return train(params, buffers, data, [0, 1, 2], 7)[0]

    exact, quick = updates("float32"), updates("bfloat16")
    monkeypatch.setattr(kernels, "takes", lambda images: False)
    plain = updates("bfloat16")
    assert not torch.equal(quick, plain)
    assert far(quick, exact) < 1.2 * far(plain, exact)
