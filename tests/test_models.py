"""The paper's models: their sizes and shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skymask.models import MODELS, ResNet20, cnn, logistic, mlp
from skymask.randomness import generator


@pytest.fixture(autouse=True)
def same_weights():
    """Modules draw their first weights from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "shape", "parameters"),
    [
        (logistic(561, 6), (561,), 561 * 6 + 6),
        (logistic(64, 10), (1, 8, 8), 650),
        (mlp(64, 10), (64,), 64 * 64 + 64 + 650),
        (cnn(), (1, 28, 28), 139_960),
        (cnn(3, 7), (3, 28, 28), 139_960 + 2 * 9 * 30 - 3 * 101),
        (ResNet20(), (3, 32, 32), 269_722),  # "0.27M" in He et al. 2016, table 6
    ],
)
def test_sizes_and_outputs(module, shape, parameters):
    assert size(module) == parameters
    images = torch.randn(2, *shape, generator=generator("models"))
    outputs = module.eval()(images)
    assert outputs.dim() == 2
    assert outputs.isfinite().all()
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_name_fits_its_shape_and_classes(name):
    shape = {"cnn": (2, 28, 28), "resnet-20": (2, 32, 32)}.get(name, (2, 5, 5))
    assert MODELS[name](shape, 7).eval()(torch.zeros(3, *shape)).shape == (3, 7)


def test_the_cnn_is_layer_by_layer_that_of_the_paper():
    module, image = cnn(), torch.rand(1, 1, 28, 28, generator=generator("cnn"))
    weights = list(module.parameters())
    x = F.max_pool2d(F.relu(F.conv2d(image, weights[0], weights[1])), 2)
    assert x.shape[1:] == (30, 13, 13)
    x = F.max_pool2d(F.relu(F.conv2d(x, weights[2], weights[3])), 2)
    assert x.shape[1:] == (50, 5, 5)
    x = F.relu(F.linear(x.flatten(1), weights[4], weights[5]))
    torch.testing.assert_close(module(image), F.linear(x, weights[6], weights[7]))


def test_resnet_shortcuts_subsample_and_pad_without_parameters():
    model = ResNet20().eval()
    assert len(model.blocks) == 9
    widths = [block.conv2.out_channels for block in model.blocks]
    assert widths == [16] * 3 + [32] * 3 + [64] * 3
    block, image = model.blocks[3], torch.rand(1, 16, 8, 8, generator=generator("resnet"))
    nn.init.zeros_(block.conv2.weight)
    out = block(image)
    assert out.shape == (1, 32, 4, 4)
    assert out[:, :16].equal(image[:, :, ::2, ::2])
    assert not out[:, 16:].any()
    features = model.blocks(torch.zeros(1, 16, 32, 32))
    assert features.shape == (1, 64, 8, 8)
