"""The alignment of an update with the root's labels: its formula, its invariances, its error."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skymask import Batch, LocalSGD, root_loss, server_round
from skymask.evidence import root_evidence
from skymask.randomness import generator
from skymask.types import Round
from tests.reference import digits, evidence


def judged(updates, round, length=1.0):
    return root_evidence(round.loss, round.params, updates, round.root, length)


def small(
    classes: int, samples: int = 60, clients: int = 6, module=None
) -> tuple[torch.Tensor, Round]:
    """Updates drawn at random and a round of a small model, whose labels mean nothing."""
    draw = generator("evidence", classes, samples)
    inputs = torch.randn(samples, 8, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=draw)
    labels[:classes] = torch.arange(classes)
    model = (module or torch.nn.Linear(8, classes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    round = server_round(model, F.cross_entropy, (inputs, labels), LocalSGD(1, samples, 0.1))
    updates = torch.randn(clients, len(round.params), generator=draw, dtype=torch.float64)
    return updates, round


def mlp(classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, classes)
    )


def parts(round):
    def scores(params: np.ndarray) -> np.ndarray:
        return round.loss.outputs(torch.from_numpy(params), round.root.inputs).numpy()

    return scores, round.params.numpy(), round.root.labels.numpy()


def by_hand(updates, round, raised=False):
    scores, params, labels = parts(round)
    return evidence.alignment(scores, params, updates.numpy(), labels, raised)


# With two classes the ranks of the median client of a sample are ties, which rounding decides.
@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("clients", [1, 5, 6])
@pytest.mark.parametrize("make", [None, mlp], ids=["linear", "deep"])
def test_the_alignment_is_that_of_a_loop(classes, clients, make):
    updates, round = small(classes, clients=clients, module=make and make(classes))
    for length in (0.3, 1.0):
        found = judged(updates, round, length)
        for of, raised in ((found.alignment, False), (found.raised, True)):
            expected = by_hand(updates, round, raised)
            np.testing.assert_allclose(of, expected, rtol=1e-7)


@pytest.mark.parametrize("missing", [False, True])
def test_what_is_raised_is_told_class_by_class(missing):
    updates, round = small(5)
    if missing:  # of class 3 the root has no samples
        inputs, labels = round.root
        round = dataclasses.replace(round, root=Batch(inputs[labels != 3], labels[labels != 3]))
    found = judged(updates, round)
    assert found.classes == ((0, 1, 2, 4) if missing else (0, 1, 2, 3, 4))
    scores, params, labels = parts(round)
    expected = np.array(evidence.by_classes(scores, params, updates.numpy(), labels, raised=True))
    np.testing.assert_allclose(found.shares, expected[:, :, 0], rtol=1e-7)
    np.testing.assert_allclose(found.contrasts, expected[:, :, 1], rtol=1e-7, atol=1e-12)
    torch.testing.assert_close((found.shares * found.contrasts).sum(1), found.raised)


def test_the_alignment_of_real_updates_is_that_of_a_loop():
    updates, round = digits.flipped(6, torch.float64)
    found = judged(updates[3:11], round)
    for of, raised in ((found.alignment, False), (found.raised, True)):
        np.testing.assert_allclose(of, by_hand(updates[3:11], round, raised), rtol=1e-7)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("make", [None, mlp], ids=["linear", "deep"])
def test_the_descent_is_that_of_a_loop(classes, make):
    updates, round = small(classes, module=make and make(classes))
    scores, params, labels = parts(round)
    expected = [evidence.descent(scores, params, u, labels) for u in updates.numpy()]
    np.testing.assert_allclose(judged(updates, round).descent, expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("make", [None, mlp], ids=["linear", "deep"])
def test_how_alike_two_are_is_the_mean_correlation_of_what_they_change(classes, make):
    updates, round = small(classes, module=make and make(classes))
    scores, params, _ = parts(round)
    expected = evidence.alike(scores, params, updates.numpy())
    np.testing.assert_allclose(judged(updates, round).alike, expected, atol=1e-6)


def test_who_follows_the_same_wrong_labels_is_alike():
    updates, round = digits.flipped(6, torch.float64)
    found = judged(updates, round).alike
    flipped, honest = found[:6, :6], found[6:, 6:]
    assert flipped.min() > 0.3
    assert honest.min() > 0.3
    assert found[:6, 6:].max() < 0


def test_a_small_step_down_the_gradient_is_a_descent():
    updates, round = digits.honest(torch.float64)
    down = -round.loss.gradient(round.params, round.root)
    found = judged(torch.stack([down, -down, updates[0]]), round).descent
    assert (found[[0, 2]] > 0.1).all()
    assert found[1].item() == pytest.approx(-found[0].item())
    assert found.abs().max() <= 1


def test_what_raises_a_class_for_every_sample_is_neither_when_the_model_is_calibrated():
    """The descent of a class-wide change is 0 where predictions have the classes' shares."""
    _, round = small(4, samples=40)
    balanced = torch.arange(40) % 4
    flat = dataclasses.replace(
        round, root=Batch(round.root.inputs, balanced), params=torch.zeros_like(round.params)
    )
    raise_first = torch.zeros_like(round.params)
    raise_first[round.layers["bias"].start] = 1.0
    assert judged(raise_first[None], flat).descent.item() == pytest.approx(0, abs=1e-12)


def test_classes_that_the_root_has_no_samples_of_have_no_say():
    updates, round = small(7)
    kept = round.root.labels % 2 == 0
    round = dataclasses.replace(round, root=Batch(*(part[kept] for part in round.root)))
    found = judged(updates, round)
    np.testing.assert_allclose(found.alignment, by_hand(updates, round), rtol=1e-7)
    assert found.error.isfinite().all()


def test_honest_updates_agree_and_turned_ones_disagree():
    updates, round = digits.flipped(6)
    found = judged(updates, round)
    assert (found.alignment[6:] > 3 * found.error[6:]).all()
    assert (found.alignment[:6] < -3 * found.error[:6]).all()
    assert found.alignment.dtype == found.error.dtype == torch.float64
    assert (found.raised[6:] > 3 * found.raised_error[6:]).all()
    assert (found.raised[:6] < -3 * found.raised_error[:6]).all()


def test_who_lowers_what_it_has_no_data_of_is_aligned_in_what_it_raises():
    """A client with two classes, in a model that has learned them all."""
    classes, each = 6, 10
    labels = torch.arange(classes).repeat_interleave(each)
    draw = generator("lowers")
    inputs = F.one_hot(labels, classes) + 0.3 * torch.randn(
        classes * each, classes, generator=draw, dtype=torch.float64
    )
    model = torch.nn.Linear(classes, classes, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(3 * torch.eye(classes))
    round = server_round(model, F.cross_entropy, (inputs, labels), LocalSGD(1, 60, 0.1))
    raises, lowers = (torch.zeros(classes, classes, dtype=torch.float64) for _ in range(2))
    raises[0, 0] = raises[1, 1] = 1.0
    for c in range(2, classes):
        lowers[c, c] = -1.2
    found = judged(torch.stack([(raises + lowers).flatten(), -lowers.flatten()]), round)
    assert found.alignment[0] < -2 * found.error[0]
    assert found.raised[0] > 2 * found.raised_error[0]


def test_layer_by_layer_it_is_the_same(monkeypatch):
    updates, round = digits.honest(torch.float64)
    forwards = judged(updates, round)
    monkeypatch.setattr(root_loss, "_MANY", 0)
    round.loss.repeated.clear()
    assert round.loss.goes_by_layers(round.params, round.root.inputs, len(updates))
    monkeypatch.setattr(root_loss.RootLoss, "changes", None)
    for name, value in vars(judged(updates, round)).items():
        torch.testing.assert_close(value, getattr(forwards, name))


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 7.0, 1e6, 1e15])
def test_how_long_an_update_is_does_not_matter(factor):
    updates, round = digits.honest(torch.float64)
    one, other = judged(updates, round), judged(updates * factor, round)
    torch.testing.assert_close(one.alignment, other.alignment)
    torch.testing.assert_close(one.error, other.error)


def test_an_update_turned_round_has_the_opposite_alignment():
    # A linear model's scores change by the opposite exactly.
    updates, round = digits.honest(torch.float64)
    one, other = judged(updates, round), judged(-updates, round)
    torch.testing.assert_close(one.alignment, -other.alignment)
    torch.testing.assert_close(one.error, other.error)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_ends_of_the_scale(classes):
    """Updates that raise for each sample the score of its own class reach the top."""
    samples = 6 * classes
    labels = torch.arange(samples) % classes
    inputs = F.one_hot(labels, classes).double()
    model = torch.nn.Linear(classes, classes, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    round = server_round(model, F.cross_entropy, (inputs, labels), LocalSGD(1, samples, 0.1))
    best = torch.eye(classes, dtype=torch.float64).flatten()
    found = judged(torch.stack([best, -best]), round).alignment
    # Samples of one class are ties, which take the ranks of the class together.
    top = samples / (2 * (samples - 1))
    assert found[0].item() == pytest.approx(top)
    if classes == 2:
        assert found[1].item() == pytest.approx(-top)
    assert found.abs().max() <= 1


@pytest.mark.parametrize("classes", [2, 5])
def test_it_lies_between_minus_one_and_one(classes):
    updates, round = small(classes, samples=classes, clients=50)
    found = judged(updates, round)
    assert found.alignment.abs().max() <= 1
    assert found.alignment.abs().max() > 0.5
    assert found.error.isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_error_is_the_standard_deviation_under_permuted_labels(classes):
    updates, round = small(classes)
    draw = generator("permuted", classes)
    inputs, labels = round.root
    drawn = []
    for _ in range(500):
        order = torch.randperm(len(labels), generator=draw)
        permuted = dataclasses.replace(round, root=Batch(inputs, labels[order]))
        permuted_too = judged(updates, permuted)
        drawn.append(torch.stack([permuted_too.alignment, permuted_too.raised]))
    usual = judged(updates, round)
    errors = torch.stack([usual.error, usual.raised_error])
    found = torch.stack(drawn)
    assert (found.mean(0).abs() < 4 * errors / 500**0.5).all()
    # The standard deviation of 500 draws is itself known to one in thirty.
    np.testing.assert_allclose(found.std(0), errors, rtol=0.12)


def test_a_zero_update_says_nothing_and_harms_nobody_elses():
    updates, round = digits.flipped(6)
    sent = updates.clone()
    sent[0] = 0
    for length in (1.0, 1e3):
        found = judged(sent, round, length)
        assert found.alignment[0] == 0
        assert found.error[0] == 0
        assert found.descent[0] == found.raised[0] == found.raised_error[0] == 0
        assert found.shares[0].eq(0).all()
        assert (found.alignment[1:6] < -0.1).all()
        assert (found.alignment[6:] > 0.1).all()


def test_the_model_is_left_as_it_is():
    updates, round = digits.honest()
    before = round.params.clone(), updates.clone()
    judged(updates, round)
    assert round.params.equal(before[0])
    assert updates.equal(before[1])


def test_a_root_of_one_class_tells_nothing():
    updates, round = small(4)
    ones = Batch(round.root.inputs, torch.full_like(round.root.labels, 2))
    assert judged(updates, dataclasses.replace(round, root=ones)) is None


class Reshaped(torch.nn.Module):
    """A model whose outputs are something else than one score for each class."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = torch.nn.Linear(8, 4), shape

    def forward(self, inputs):
        return self.layer(inputs).view(len(inputs), *self.shape)


@pytest.mark.parametrize(
    ("module", "labels"),
    [
        (Reshaped(2, 2), torch.arange(20) % 2),
        (Reshaped(2, 2), torch.arange(40).view(20, 2) % 2),
        (Reshaped(4), torch.arange(20) % 5),  # a label without a score
        (torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Flatten(0)), torch.arange(20) % 2),
        (torch.nn.Linear(8, 1), torch.arange(20) % 2),
        pytest.param(
            torch.nn.Linear(8, 4),
            torch.arange(80).view(20, 4) % 3 % 2,  # several labels a sample
        ),
    ],
    ids=["two scores a class", "sequences", "label without score", "one number", "one", "several"],
)
def test_models_without_class_scores_tell_nothing(module, labels):
    inputs = torch.randn(20, 8, generator=generator("outputs"))

    def loss(outputs, _):
        return outputs.square().mean()

    round = server_round(module, loss, (inputs, labels), LocalSGD(1, 10, 0.1))
    updates = torch.randn(4, len(round.params), generator=generator("sent"))
    assert judged(updates, round) is None
