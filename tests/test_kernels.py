"""The GPU's fast paths against the plain ones; without a GPU there is nothing to compare."""

import pytest
import torch
import torch.nn.functional as F

import skymask as sm
from skymask import geometry, kernels
from skymask.clients import plan
from skymask.defences.masking import mask_summary, trained_masks
from skymask.evidence import root_evidence
from skymask.flat import flat_model
from skymask.kernels import FusedState
from skymask.local_sgd import LocalSGD, Schedule
from skymask.masks import MaskTraining, PlainState
from skymask.models import ResNet20, cnn
from skymask.root_loss import gradient, root_loss
from skymask.types import Batch, ClientData

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def far(some, other):
    """Relative distance of two tensors."""
    return float((some - other).norm() / other.norm().clamp_min(1e-30))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (16, 128), (17, 129), (101, 5000), (333, 1000)])
@pytest.mark.parametrize("with_server", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_the_fused_step_equals_the_plain_one(n, d, with_server, large, monkeypatch):
    monkeypatch.setattr(kernels, "_LARGE", 0 if large else n * d + d)
    draw = torch.Generator("cuda").manual_seed(n)
    updates = torch.randn(n, d, device="cuda", generator=draw)
    own = torch.randn(d, device="cuda", generator=draw) if with_server else None
    fused, plain = FusedState(updates, 0.4, own), PlainState(updates, 0.4, own)
    for step in range(6):
        slope = torch.randn(d, device="cuda", generator=draw) if step else updates.new_zeros(d)
        relative = step < 4
        squares = [state.square(slope) / plain.values.numel() for state in (fused, plain)]
        assert far(*squares) < 1e-5
        told = fused.advance(slope, squares[0], 1.5, relative).tolist()
        expected = plain.advance(slope, squares[1], 1.5, relative).tolist()
        assert told[0] > 0 if expected[0] else told[0] == 0
        assert abs(told[1] - expected[1]) <= 1e-5 * n * d
        for name in ("values", "mean", "total", "spread"):
            assert far(getattr(fused, name), getattr(plain, name)) < 1e-5, name
    assert (fused.bits != plain.bits).float().mean() < 1e-5


@pytest.mark.parametrize(
    ("make", "shape", "tolerance"), [(cnn, (1, 28, 28), 1e-3), (ResNet20, (3, 32, 32), 1e-2)]
)
def test_a_recorded_gradient_equals_the_usual_one(make, shape, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = flat_model(make()).to(torch.device("cuda"))
    params, buffers = model.initial()
    batch = Batch(torch.rand(50, *shape, device="cuda"), torch.arange(50, device="cuda") % 10)
    loss = root_loss(model, F.cross_entropy, buffers)
    for step in range(3):
        at = params + 0.01 * step * torch.randn_like(params)
        assert far(loss.gradient(at, batch), gradient(loss, at, batch)) < tolerance
    assert loss.repeated["gradient"].graph is not None


def test_a_loss_that_waits_for_the_device_is_not_recorded_and_still_right(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = flat_model(cnn()).to(torch.device("cuda"))
    params, buffers = model.initial()
    batch = Batch(torch.rand(8, 1, 28, 28, device="cuda"), torch.arange(8, device="cuda"))

    def waiting(outputs, labels):
        value = F.cross_entropy(outputs, labels)
        return value * (2 if value.item() > 0 else 3)

    loss = root_loss(model, waiting, buffers)
    for _ in range(3):
        assert far(loss.gradient(params, batch), gradient(loss, params, batch)) < 1e-4
    assert loss.repeated["gradient"].graph is None


@pytest.mark.parametrize(
    ("make", "shape", "tolerance"),
    # Libraries may choose other algorithms while recording; batch norm over few samples
    # multiplies such differences.
    [(cnn, (1, 28, 28), 1e-3), (ResNet20, (3, 32, 32), 1e-2)],
)
def test_recorded_training_equals_the_usual_one(make, shape, tolerance, monkeypatch):
    # With TF32, which torch uses by default, another order of operations changes a percent.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    draw = torch.Generator().manual_seed(7)
    inputs, labels = torch.rand(90, *shape, generator=draw), torch.arange(90) % 10
    data = ClientData(inputs, labels, torch.tensor([0, 20, 50, 90]), 10).to(torch.device("cuda"))
    model = flat_model(make()).to(torch.device("cuda"))
    trainer = plan(model, F.cross_entropy, LocalSGD(2, 16, 0.1), data, chunk=3)
    params, buffers = model.initial()
    for seed, clients in enumerate([[0, 1, 2]] * 4 + [[2, 0]] + [[0, 1]] * 3):
        updates, after = trainer(params, buffers, data, clients, seed)
        schedule = Schedule.of(data, clients, trainer.local)
        usual, usual_after = trainer._together(params, buffers, data, schedule, seed)
        assert far(updates, usual) < tolerance
        assert not buffers.numel() or far(after, usual_after) < tolerance
        params = params + updates.mean(0)
    assert trainer.repeated.graph is not None


def test_masks_on_the_gpu_equal_masks_on_the_cpu():
    draw = torch.Generator().manual_seed(3)
    updates = torch.randn(40, 3000, generator=draw)
    target = torch.randn(3000, generator=draw)
    train = MaskTraining(steps=8)
    on_cpu = train(updates, lambda mean: mean - target)
    on_gpu = train(updates.cuda(), lambda mean: mean - target.cuda())
    assert on_gpu.steps == on_cpu.steps
    assert (on_gpu.bits.cpu() != on_cpu.bits).float().mean() < 1e-4


@pytest.mark.parametrize("tolerance", [-1.0, 0.05])
def test_recorded_masks_are_those_of_one_step_after_another(tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = flat_model(cnn())
    draw = torch.Generator().manual_seed(11)
    root = Batch(torch.rand(50, 1, 28, 28, generator=draw), torch.arange(50) % 10)
    start, buffers = model.initial()
    updates = 0.01 * torch.randn(3, 12, model.size, generator=draw)
    updates[1, 3] *= 1e6  # much longer than the server's
    training = MaskTraining(100.0, steps=5, tolerance=tolerance)
    where = torch.device("cuda")
    root = Batch(*(part.to(where) for part in root))
    loss = root_loss(model.to(where), F.cross_entropy, buffers.to(where))
    for index, sent in enumerate(updates.to(where)):
        round = sm.Round(
            index=index, params=start.to(where) + 0.01 * index, layers=model.layers, loss=loss,
            root=root, server_update=sent[0] / 2,
        )  # fmt: skip
        found = mask_summary(training, sent, round, root=True)
        masks = trained_masks(training, sent, round, root=True)
        assert found.steps == masks.steps
        # Sums in another order flip a bit here and there, and every step multiplies that.
        assert found.flipped == pytest.approx(masks.flipped, abs=5e-3)
        assert found.moved
        bits = masks.bits.double().cpu()
        assert far(found.products[0], bits @ bits.T) < 5e-3
        for name, at in model.layers.items():
            assert far(found.ones[name], bits[:, at].mean(1).float()) < 1e-2
    assert len(loss.repeated) == 2  # of the masks, and of the gradient alone
    assert all(each.graph is not None for each in loss.repeated.values())


@pytest.mark.parametrize(("make", "shape"), [(cnn, (1, 28, 28)), (ResNet20, (3, 32, 32))])
def test_recorded_evidence_is_that_of_a_cpu(make, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    where, model = torch.device("cuda"), flat_model(make())
    draw = torch.Generator().manual_seed(13)
    root = Batch(torch.rand(40, *shape, generator=draw), torch.arange(40) % 10)
    params, buffers = model.initial()
    updates = torch.randn(3, 9, model.size, generator=draw)
    on_cpu = root_loss(model, F.cross_entropy, buffers)
    on_gpu = root_loss(model.to(where), F.cross_entropy, buffers.to(where))
    there = Batch(*(part.to(where) for part in root))
    for sent in updates:
        found = root_evidence(
            on_gpu, params.to(where), sent[:-1].to(where), there, 1.0, sent[-1].to(where)
        )
        # Differences of outputs on the CPU: a shorter step is more linear, but loses digits.
        expected = root_evidence(on_cpu, params, sent[:-1], root, 0.1, sent[-1])
        for name, value in vars(expected).items():
            assert float((getattr(found, name) - value).abs().max()) < 0.02, name
    assert on_gpu.repeated["evidence"].graph is not None


def test_ones_are_counted_in_parts(monkeypatch):
    bits = torch.rand(7, 1000, device="cuda") > 0.4
    monkeypatch.setattr(geometry, "_ENTRIES", 50)
    for at in (slice(0, 1000), slice(3, 400), slice(5, 5)):
        assert torch.equal(geometry.ones_in(bits, at), bits[:, at].sum(1))
