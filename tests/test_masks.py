"""Mask training: the closed form equals autograd on whole models, and stops when it should."""

import pytest
import torch

from skymask import masks as masks_module
from skymask.masks import MaskTraining
from skymask.randomness import generator
from tests.reference import masks as reference

N, D = 5, 12
FOREVER = -1.0  # a tolerance that is never reached


def problem(dtype=torch.float64):
    """Global parameters, updates, and a smooth loss with its gradient."""
    draw = generator("masks")
    shapes = (D,), (N, D), (20, D), (20,)
    params, updates, features, goals = (torch.randn(s, generator=draw).to(dtype) for s in shapes)

    def loss(model):
        return (torch.tanh(features @ model) - goals).square().sum()

    def gradient(shift):
        return torch.autograd.functional.jacobian(loss, params + shift)

    return params, updates, loss, gradient


def watched(training, updates, gradient):
    history = []
    result = training(updates, gradient, lambda step, m: history.append((step, m.clone())))
    assert [step for step, _ in history] == list(range(1, result.steps + 1))
    return result, [m for _, m in history]


@pytest.mark.parametrize(
    ("gamma", "relative"), [(1.0, True), (0.3, True), (0.5, False), (20.0, False)]
)
@pytest.mark.parametrize("tau", [0.5, 0.7])
def test_the_closed_form_equals_autograd(gamma, relative, tau):
    params, updates, loss, gradient = problem()
    training = MaskTraining(gamma, relative, steps=8, tolerance=FOREVER, tau=tau)
    result, history = watched(training, updates, gradient)
    expected, bits = reference.train(
        params + updates, loss, gamma=gamma, relative=relative, steps=8, tau=tau
    )
    assert result.steps == len(expected) == 8
    for ours, theirs in zip(history, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert result.bits.equal(bits)
    assert 0 < bits.double().mean() < 1


def test_single_precision_gives_the_same_bits():
    training = MaskTraining(steps=8, tolerance=FOREVER)
    double, single = (
        training(problem(t)[1], problem(t)[3]) for t in (torch.float64, torch.float32)
    )
    assert double.bits.float().mean() < 1
    assert (single.bits != double.bits).float().mean() < 0.02


def test_a_relative_step_moves_the_masks_by_gamma():
    _, updates, _, gradient = problem()
    _, (first, *_) = watched(MaskTraining(gamma=0.25), updates, gradient)
    assert (first - 1).square().mean().sqrt().item() == pytest.approx(0.25)
    _, (other, *_) = watched(
        MaskTraining(gamma=0.25), updates, lambda shift: 1e-6 * gradient(shift)
    )
    torch.testing.assert_close(first, other)


def test_training_lowers_the_loss_of_the_mean_model():
    params, updates, loss, gradient = problem()
    _, history = watched(MaskTraining(0.1, steps=15, tolerance=FOREVER), updates, gradient)
    losses = [
        loss(params + (m.sigmoid() * updates).sum(0) / m.sigmoid().sum(0)).item()
        for m in (torch.ones_like(updates), *history)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("entries", [1, N, 3 * N + 1, D * N])
def test_blocks_of_columns_do_not_change_the_masks(monkeypatch, entries):
    _, updates, _, gradient = problem()
    training = MaskTraining(steps=5, tolerance=FOREVER)
    whole, expected = watched(training, updates, gradient)
    monkeypatch.setattr(masks_module, "_BLOCK_ENTRIES", {"cpu": entries})
    parts, history = watched(training, updates, gradient)
    torch.testing.assert_close(history[-1], expected[-1], rtol=1e-10, atol=1e-10)
    assert parts.bits.equal(whole.bits)
    assert parts.flipped == whole.flipped


def test_the_threshold_is_on_the_sigmoid():
    _, updates, _, gradient = problem()
    shares = []
    for tau in (0.1, 0.5, 0.9):
        result, history = watched(
            MaskTraining(steps=3, tolerance=FOREVER, tau=tau), updates, gradient
        )
        assert result.bits.equal(history[-1].sigmoid() > tau)
        shares.append(result.bits.double().mean().item())
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_training_stops_once_few_enough_bits_change():
    params, updates, loss, gradient = problem()
    expected, _ = reference.train(
        params + updates, loss, gamma=0.5, relative=True, steps=50, tolerance=0.02
    )
    result = MaskTraining(0.5, steps=50, tolerance=0.02)(updates, gradient)
    assert result.steps == len(expected) < 50
    assert result.flipped <= 0.02
    capped = MaskTraining(0.5, steps=2, tolerance=FOREVER)(updates, gradient)
    assert capped.steps == 2


def test_flipped_is_the_share_that_the_last_step_changed():
    _, updates, _, gradient = problem()
    result, history = watched(MaskTraining(steps=2, tolerance=FOREVER), updates, gradient)
    before, after = ((m > 0).double() for m in history)
    assert result.flipped == pytest.approx((before != after).double().mean().item())
    assert result.flipped > 0


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_to_learn_from_stops_training(value):
    _, updates, _, gradient = problem()
    result = MaskTraining()(updates, lambda shift: torch.full((D,), value, dtype=torch.float64))
    assert result.steps == 0
    assert result.bits.all()

    calls = iter([gradient, lambda shift: torch.full_like(shift, value)])
    partly, history = watched(
        MaskTraining(tolerance=FOREVER), updates, lambda shift: next(calls)(shift)
    )
    assert partly.steps == 1
    assert partly.bits.equal(history[0] > 0)


def test_identical_models_get_identical_masks():
    _, updates, _, gradient = problem()
    bits = MaskTraining()(updates[:1].expand(N, D), gradient).bits
    assert bits.equal(bits[:1].expand(N, D))


def test_the_updates_are_left_alone():
    _, updates, _, gradient = problem()
    given = updates.clone()
    MaskTraining(steps=3)(updates, gradient)
    assert updates.equal(given)
