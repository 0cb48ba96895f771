"""Derivatives along many steps, layer by layer, against differentiating forwards."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skymask import layerwise
from skymask.flat import flat_model
from skymask.layerwise import Steps
from skymask.models import ResNet20, cnn, mlp
from skymask.root_loss import root_loss


class Tokens(nn.Module):
    """A convolution over a picture and a linear layer for each of its rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, stride=(2, 2))
        self.mix = nn.Linear(14, 5, bias=False)
        self.out = nn.Linear(2 * 14 * 5, 4)

    def forward(self, images):
        return self.out(self.mix(self.conv(images).tanh()).flatten(1))


class Frozen(Tokens):
    """Of which only a part is trained."""

    def __init__(self):
        super().__init__()
        self.mix.requires_grad_(False)
        self.conv.bias.requires_grad_(False)
        self.out.weight.requires_grad_(False)


class Twice(Tokens):
    def forward(self, images):
        return self.out(self.mix(self.conv(-images) + self.conv(images)).flatten(1))


class Never(Tokens):
    def forward(self, images):
        return images.flatten(1)[:, :4] * self.out(torch.ones(140, dtype=images.dtype))


class Elsewhere(Tokens):
    """Its linear layer's weight is used by more than that layer."""

    def forward(self, images):
        return super().forward(images) * self.out.weight.exp().sum()


class Together(Tokens):
    """Samples see each other."""

    def forward(self, images):
        scores = super().forward(images)
        return scores - scores.mean(0)


class Apart(nn.Module):
    """A parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = Tokens(), nn.Parameter(torch.ones(4))

    def forward(self, images):
        return self.inner(images) * self.scale


def prepared(make, count=7):
    torch.manual_seed(2)
    model = flat_model(make().double())
    params, buffers = model.initial()
    draw = torch.Generator().manual_seed(4)
    images = torch.randn(6, 1, 28, 28, generator=draw).double()
    steps = torch.randn(count, model.size, generator=draw).double()
    return root_loss(model, F.cross_entropy, buffers), params, steps, images


@pytest.mark.parametrize("make", [cnn, Tokens, Frozen])
@pytest.mark.parametrize("count", [1, 3, 70])
@pytest.mark.parametrize("entries", [1, 1 << 26])
def test_equals_differentiating_forwards(make, count, entries, monkeypatch):
    monkeypatch.setattr(layerwise, "_ENTRIES", entries)
    loss, params, steps, images = prepared(make, count)
    assert loss.goes_by_layers(params, images, 20)
    expected = loss.derivatives(params, steps, images, 4)
    for found in loss.slopes(params, images, Steps(steps), Steps(steps)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [cnn, Tokens, Frozen])
@pytest.mark.parametrize("width", [1, 7, 24, 1000])
def test_columns_add_up(make, width):
    loss, params, steps, images = prepared(make, 2)
    last = len(params)
    # Within rows and beyond them, at both ends of the parameters, and all that is between.
    bounds = [0, width, 2 * width + 3, last - width - 2, last - 1, last]
    bounds = sorted({min(max(0, at), last) for at in bounds})
    given = [Steps(steps[:, slice(*at)], at[0]) for at in pairwise(bounds)]
    whole, *parts = loss.slopes(params, images, Steps(steps), *given)
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("make", [Twice, Never, Elsewhere, Together, Apart])
def test_where_it_would_be_wrong_it_is_not_used(make):
    loss, params, _, images = prepared(make)
    assert not loss.goes_by_layers(params, images, 20)


@pytest.mark.parametrize("make", [lambda: mlp(28 * 28, 4), lambda: ResNet20(1)])
def test_nor_where_it_is_slower_or_samples_see_each_other(make):
    loss, params, _, images = prepared(make)
    assert not loss.goes_by_layers(params, images, 20)


def test_a_large_model_goes_by_layers_without_convolutions_too():
    loss, params, steps, images = prepared(lambda: mlp(28 * 28, 4, 100))
    assert loss.goes_by_layers(params, images, 20)
    (found,) = loss.slopes(params, images, Steps(steps))
    torch.testing.assert_close(found, loss.derivatives(params, steps, images, 4))


def test_nor_with_few_steps():
    loss, params, _, images = prepared(cnn)
    assert loss.goes_by_layers(params, images, 20)
    assert not loss.goes_by_layers(params, images, 19)
