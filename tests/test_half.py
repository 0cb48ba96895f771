"""Layers with bfloat16 images: exact where the numbers are, close where they are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from skymask import InputError
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.half import in_half_precision
from skymask.local_sgd import LocalSGD
from skymask.models import NormReLU, ResNet20, Shortcut, cnn
from skymask.types import ClientData


def whole(*shape, seed=1, largest=2):
    """Small whole numbers, of which bfloat16 holds products and short sums exactly."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=draw).float()


LAYERS = {
    "plain": lambda: nn.Conv2d(3, 4, 2, bias=False),
    "bias": lambda: nn.Conv2d(3, 4, 2),
    "padding": lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), bias=False),
    "stride": lambda: nn.Conv2d(2, 5, 3, stride=2, padding=1, bias=False),
    "unequal": lambda: nn.Conv2d(2, 3, (5, 3), stride=3, padding=(2, 1)),
    "left over": lambda: nn.Conv2d(2, 3, 2, stride=4),
    "eights": lambda: nn.Conv2d(8, 8, 2, bias=False),
    "point": lambda: nn.Conv2d(9, 2, 1, stride=3),
    "shortcut": lambda: Shortcut(2, 3),
    "widening": lambda: Shortcut(1, 2),
    "nothing": lambda: Shortcut(1, 0),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shared", [True, False])
def test_whole_numbers_come_out_exactly(name, shared):
    n, layer = 3, LAYERS[name]()
    channels = next(iter(layer.parameters())).shape[1] if [*layer.parameters()] else 4
    images = whole(n, 2, channels, 6, 5)
    weights = whole(*layer(images[0]).shape, seed=9, largest=1)
    params = {
        key: whole(*(() if shared else (n,)), *value.shape, seed=len(key), largest=1)
        for key, value in layer.named_parameters()
    }

    def slopes(module):
        def total(params, images):
            found = functional_call(module, params, (images,))
            return (found * weights).sum(dtype=torch.float32), found

        each = (None if shared else 0, 0)
        return vmap(grad(total, argnums=(0, 1), has_aux=True), in_dims=each)(params, images)

    (by_params, by_images), found = slopes(in_half_precision(LAYERS[name]()))
    (usual_params, usual_images), usual = slopes(layer)
    assert name == "nothing" or found.dtype == torch.bfloat16
    assert torch.equal(found.float(), usual)
    assert torch.equal(by_images.float(), usual_images)
    for key in params:
        assert by_params[key].dtype == torch.float32
        assert torch.equal(by_params[key], usual_params[key]), key


@pytest.mark.parametrize("adds", [False, True])
def test_norm_and_relu_are_those_of_single_precision_but_for_rounding(adds):
    n = 3
    images, addend, slopes = (whole(n, 8, 4, 5, 5, seed=seed, largest=9) for seed in (1, 2, 3))
    params = {"weight": whole(n, 4, seed=4) + 0.5, "bias": whole(n, 4, seed=5) + 0.25}
    given = (images, addend) if adds else (images,)

    def found(module):
        def total(params, slopes, *given):
            normal = functional_call(module, params, given)
            return (normal * slopes).sum(dtype=torch.float32), normal

        by = (0, *range(2, 2 + len(given)))
        back, normal = vmap(grad(total, argnums=by, has_aux=True))(params, slopes, *given)
        return [normal, *back[0].values(), *back[1:]]

    def layer():
        return NormReLU(4, track_running_stats=False)

    for one, other in zip(found(in_half_precision(layer())), found(layer()), strict=True):
        assert one.shape == other.shape
        assert (one.float() - other).norm() < 0.02 * other.norm()


def clients(*shape, n=3, each=24):
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(n * each) % 4
    images = torch.randn(n * each, *shape, generator=draw) + labels.view(-1, 1, 1, 1)
    return ClientData(images, labels, torch.arange(n + 1) * each, 4)


def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "shape"),
    [(small, (2, 9, 9)), (cnn, (1, 28, 28)), (ResNet20, (3, 32, 32))],
)
@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_updates_are_those_of_single_precision_but_for_rounding(make, shape, path):
    model, data = flat_model(make()), clients(*shape)
    params, buffers = model.initial()
    found = {}
    for precision in ("float32", "bfloat16"):
        local = LocalSGD(2, 16, 0.01, precision=precision)
        train = plan(model, F.cross_entropy, local, data, path=path, chunk=2)
        found[precision] = train(params, buffers, data, [0, 1, 2], 7)
    (updates, after), (usual, usual_after) = found["bfloat16"], found["float32"]
    assert updates.dtype == after.dtype == torch.float32
    assert not torch.equal(updates, usual)
    assert F.cosine_similarity(updates, usual).min() > 0.95
    torch.testing.assert_close(after, usual_after, rtol=0.02, atol=0.01)


def test_both_paths_agree():
    model, data = flat_model(small()), clients(2, 9, 9)
    params, buffers = model.initial()
    local = LocalSGD(1, 16, 0.01, precision="bfloat16")
    one, other = (
        plan(model, F.cross_entropy, local, data, path=path, chunk=2)(
            params, buffers, data, [0, 1, 2], 7
        )
        for path in ("vmap", "loop")
    )
    assert F.cosine_similarity(one[0], other[0]).min() > 0.999
    torch.testing.assert_close(one[1], other[1], rtol=1e-2, atol=1e-3)


def test_evaluation_and_unbatched_images_are_as_usual():
    layer = nn.BatchNorm2d(3).eval()
    images = torch.randn(2, 3, 4, 4)
    expected = layer(images)
    assert torch.equal(in_half_precision(layer)(images), expected)
    assert in_half_precision(nn.Conv2d(3, 2, 2))(images[0]).shape == (2, 3, 3)


def test_another_precision_is_refused():
    with pytest.raises(InputError, match="precision is 'float16' but must be 'float32' or"):
        LocalSGD(precision="float16")


def test_a_model_without_convolutions_is_refused():
    model, local = flat_model(nn.Linear(3, 4)), LocalSGD(precision="bfloat16")
    with pytest.raises(InputError, match=r"for convolutions .* but Linear has none"):
        plan(model, F.cross_entropy, local, clients(3))


def test_a_model_that_cannot_is_refused_with_the_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.own = nn.Conv2d(1, 2, 2), nn.Parameter(torch.ones(2, 4))

        def forward(self, images):
            return self.conv(images).mean((2, 3)) @ self.own

    local = LocalSGD(precision="bfloat16")
    with pytest.raises(InputError, match=r"but Mixed cannot compute with it \(.*\); it must be"):
        plan(flat_model(Mixed()), F.cross_entropy, local, clients(1, 4, 4))
