"""Whose updates go against the root data set, on numbers made by hand."""

import dataclasses
import math

import pytest
import torch

from skymask.defences.harm import harmful
from skymask.defences.known import Known, worth
from tests.defences.known import ERROR, SAMPLES, known


def out(found: Known, past=None, sure: float = 3.0) -> set[int]:
    ids = torch.arange(len(found.length) - 1)
    return set(harmful(found, sure, ids, past)[0])


def test_the_alignment_is_judged_in_its_own_standard_deviations():
    assert out(known(alignment=[-3.1 * ERROR, -2.9 * ERROR, 0.0]), sure=3.0) >= {0}
    # Where nobody is any better, nobody is an outlier.
    alike = known(alignment=[-2.9 * ERROR] * 10)
    assert out(alike) == set()
    assert out(alike, sure=2.8) == set(range(10))


def test_one_standard_deviation_is_enough_for_an_outlier():
    assert out(known(alignment=[-1.1 * ERROR, -0.9 * ERROR])) == {0}
    # However many they are.
    assert out(known(alignment=[-1.1 * ERROR] * 8, descent=[0.0] * 8)) == set(range(8))
    # Not beside those that are just above 0.
    near = [-1.1 * ERROR, *[0.5 * ERROR] * 9]
    assert out(known(alignment=near)) == set()


def test_who_is_against_the_labels_is_so_in_what_it_raises_too():
    assert out(known(alignment=[-4 * ERROR], raised=[-4 * ERROR])) == {0}
    # What it lowers may be against them: the scores of classes that it has no data of.
    assert out(known(alignment=[-9 * ERROR], raised=[2 * ERROR])) == set()
    assert out(known(alignment=[2 * ERROR], raised=[-9 * ERROR])) == set()


def test_honest_clients_about_0_are_as_wide_as_all_of_them():
    # In standard deviations: two thirds and more of them are between -2 and 2.
    spread = [-2.6, -1.9, -1.3, -0.8, -0.3, 0.2, 0.6, 1.1, 1.7, 2.3]
    around = known(alignment=[value * ERROR for value in spread])
    assert out(around) == set()
    # Those above 0 are no such measure where fewer than that are near them.
    split = known(alignment=[value * ERROR for value in (-2.6, -2.6, -2.6, -2.6, *spread[4:])])
    assert out(split) == {0, 1, 2, 3}


def test_attackers_that_are_known_do_not_make_outliers_of_honest_clients():
    # Seven of ten honest clients are near each other, which is not two thirds of all fifteen.
    honest = [-2.6, -2.0, -1.4, -0.9, -0.3, 0.4, 0.8, 1.3, 1.6, 2.2]
    values = torch.tensor([value * ERROR for value in [*honest, *[-2.0] * 5]])
    descent = [0.3] * 10 + [0.0] * 5
    found = known(alignment=values.tolist(), descent=descent, clients=15)
    ids = torch.arange(15)
    copies = range(10, 15)
    assert {0, 1} <= set(harmful(found, 3.0, ids, None)[0])
    assert set(harmful(found, 3.0, ids, None, copies)[0]) <= set(copies)
    # Nor do those that were harmful before, or are so without a doubt.
    attack = known(alignment=[0.0] * 10 + [-4 * ERROR] * 5, descent=descent, clients=15)
    _, memory = harmful(attack, 3.0, ids, None)
    assert set(harmful(found, 3.0, ids, memory)[0]) <= set(copies)
    values[10:] = -4 * ERROR
    surely = known(alignment=values.tolist(), descent=descent, clients=15)
    assert set(harmful(surely, 3.0, ids, None)[0]) == set(copies)


def test_who_was_harmful_is_back_where_others_are_as_low_as_it():
    ids = torch.arange(10)
    _, memory = harmful(known(descent=[-0.5]), 3.0, ids, None)
    low = [-0.03, *[-0.1, -0.05, -0.02, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4]]
    assert out(known(descent=low)) == set()
    assert out(known(descent=low), memory) == set()
    # Not where all others are higher.
    assert out(known(descent=[-0.03, *[0.3] * 9]), memory) == {0}


def test_a_descent_and_a_resistance_a_little_below_0_are_harm_together():
    values = [-0.08, -0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    found = known(descent=values, noise=0.05)
    assert -3 < float(found.deviations["descent"][0][0]) < -1
    ids, good = torch.arange(10), torch.full((10,), 2.0, dtype=torch.float64)
    one = good.clone()
    one[0] = -1.2
    assert harmful(found, 3.0, ids, None)[0] == {}
    reasons, memory = harmful(found, 3.0, ids, None, resistance=(one, one))
    assert list(reasons) == [0]
    assert "raise the loss of the root data set and push the model on" in reasons[0]
    assert "and resistance -1.2 standard deviations" in reasons[0]
    # It stays out until both together are above 0.
    better = good.clone()
    better[0] = 0.9 * -float(found.deviations["descent"][0][0])
    assert set(harmful(found, 3.0, ids, memory, resistance=(better, better))[0]) == {0}
    assert harmful(found, 3.0, ids, None, resistance=(better, better))[0] == {}
    assert harmful(found, 3.0, ids, memory, resistance=(good, good))[0] == {}
    # The late averages alone are asked for three standard deviations.
    assert harmful(found, 3.0, ids, None, resistance=(good, one))[0] == {}
    assert set(harmful(found, 3.0, ids, None, resistance=(good, 3 * one))[0]) == {0}
    # A resistance below 0 alone is none of it.
    lowers = known(descent=[0.2], noise=0.05)
    assert harmful(lowers, 3.0, ids, None, resistance=(one, one))[0] == {}


def test_the_descent_is_judged_by_how_descents_vary():
    found = known(descent=[-0.5, 0.3])
    assert out(found) == {0}
    slow, _ = found.deviations["descent"]
    # 0.2 a round, of which 0.1 / 1.9 is left, and what 100 root samples never average out.
    error = math.sqrt(0.2**2 * 0.1 / 1.9 + 0.25 / SAMPLES)
    assert slow[0].item() == pytest.approx(-0.5 / error, rel=0.4)
    assert slow[2:-1].mean().item() == pytest.approx(0.3 / error, rel=0.3)


def test_after_one_round_nothing_is_known_of_descents():
    found = known(descent=[-0.9], rounds=1)
    assert out(found) == set()
    assert (found.deviations["descent"][0] == 0).all()


def test_descents_that_hardly_vary_are_not_trusted_more_than_the_root_allows():
    found = known(descent=[-0.05] * 10, rounds=2, noise=1e-6)
    noise = 0.1 * 1.9 / (1.9 * 0.19) * (2 - 0.19) / 1.9  # after two rounds
    error = math.sqrt(noise / SAMPLES + 0.25 / SAMPLES)
    slow, _ = found.deviations["descent"]
    assert slow[0].item() == pytest.approx(-0.05 / error, rel=1e-3)


def test_a_class_of_one_sample_says_as_much_as_one_of_many():
    assert worth(torch.arange(10).repeat(10)) == pytest.approx(100)
    few = worth(torch.tensor([0] * 95 + [1, 2, 3, 4, 5]))
    assert few == pytest.approx(7.19, abs=0.01)
    # What so few samples say of descents is not much.
    found = known(descent=[-0.2], noise=0.02)
    assert out(found) == {0}
    assert out(dataclasses.replace(found, samples=few)) == set()


def test_long_good_conduct_buys_no_more_than_a_few_rounds():
    assert out(known(late=2)) == set()
    assert out(known(late=5)) == {0}


def test_who_raised_the_loss_is_back_when_it_lowers_it():
    ids = torch.arange(10)
    _, memory = harmful(known(descent=[-0.5]), 3.0, ids, None)
    doubtful = known(descent=[-0.12])
    assert 0 > doubtful.deviations["descent"][0][0] > -3
    assert out(doubtful, memory) == {0}
    assert out(known(descent=[0.1]), memory) == set()
    # For which of the two it was out does not matter.
    assert out(known(descent=[-0.12]), harmful(known(alignment=[-0.3]), 3.0, ids, None)[1]) == {0}
    # What was remembered goes by client id.
    others = harmful(doubtful, 3.0, ids + 10, memory)[0]
    assert set(others) == out(doubtful)


def test_who_lowers_the_loss_more_than_good_clients_is_not_out_for_the_alignment():
    assert out(known(alignment=[-0.3], descent=[0.2])) == {0}
    assert out(known(alignment=[-0.3], descent=[0.8])) == set()
    # Those that go against the labels are no measure, be they most.
    most = known(alignment=[-0.3] * 8, descent=[0.0] * 8)
    assert out(most) == set(range(8))


def test_an_outlier_in_both_measures_is_out_though_it_is_not_below_0():
    both = known(alignment=[0.02, 0.02], descent=[0.02, 0.3, 0.02], clients=20, noise=0.05)
    reasons, _ = harmful(both, 3.0, torch.arange(20), None)
    assert list(reasons) == [0]
    assert "do not teach what the others' do (alignment 0.4 and descent 0." in reasons[0]


def test_beside_a_majority_that_teaches_nothing_the_good_ones_decide():
    nothing = {"alignment": [0.0] * 14, "descent": [0.0] * 14}
    assert out(known(**nothing, clients=20, noise=0.02)) == set(range(14))
    # Two cannot say how good ones vary.
    nothing = {"alignment": [0.0] * 18, "descent": [0.0] * 18}
    assert out(known(**nothing, clients=20, noise=0.02)) == set()


def test_good_ones_that_noise_may_be_are_no_measure():
    # Four of twenty above 1, and nobody is told from noise: their upper end says nothing.
    values = [-1.9, *[-0.5, 0.0, 0.5] * 5, 1.2, 1.3, 1.3, 1.4]
    descents = [-0.03, *[0.0] * 15, 0.3, 0.3, 0.3, 0.3]
    noise = known([v * ERROR for v in values], descents, clients=20, noise=0.02)
    assert out(noise) == set()
    # Where they stand above it by three standard deviations it does.
    above = [v * ERROR for v in (-0.5, *[3.2] * 19)]
    assert out(known(above, [-0.05, *[0.3] * 19], clients=20, noise=0.02)) == {0}
    above = [v * ERROR for v in (-0.5, *[2.8] * 19)]
    assert out(known(above, [-0.05, *[0.3] * 19], clients=20, noise=0.02)) == set()


def test_good_clients_may_vary():
    spread = torch.linspace(0.0, 0.6, 20).tolist()
    assert out(known(alignment=spread, descent=spread, clients=20, noise=0.02)) == set()


def test_without_class_scores_nobody_is_harmful():
    seen = {"length": torch.zeros(4, dtype=torch.float64)}
    found = Known.of({}, torch.arange(3), seen, {}, 0.9, SAMPLES)
    assert found.deviations == {}
    assert harmful(found, 3.0, torch.arange(3), None)[0] == {}
