import math

import pytest

import skymask as sm
from skymask.tables.cell import Cell
from skymask.tables.measures import MEASURES, Statistic, difference
from tests.tables.small import experiment, made_up

ROUNDS = 40
# Of 10 honest clients 2 are rejected in rounds 0 to 9, 5 in round 12; of 4 malicious ones all are
# accepted in rounds 0 to 24, one in rounds 25 to 29, none after.
POSITIVES = [2] * 10 + [0, 0, 5] + [0] * 27
NEGATIVES = [4] * 25 + [1] * 5 + [0] * 10
RECORD = made_up(experiment(), 0.8, (POSITIVES, NEGATIVES), success=0.3)


def of(measure: str, record=RECORD, **cell: object) -> float | None:
    return MEASURES[measure].of(record, Cell("row", "column", sm.Experiment(), **cell))


def test_measures_of_a_record_made_by_hand():
    assert of("accuracy") == 0.8
    assert of("attack_success") == 0.3
    assert of("fpr") == pytest.approx((10 * 0.2 + 0.5) / 40)
    assert of("fnr") == pytest.approx((25 + 5 * 0.25) / 40)
    # 13 of the 40 rounds are a third; the last one starts with round 27.
    assert of("fpr_first_third") == pytest.approx((10 * 0.2 + 0.5) / 13)
    assert of("fnr_first_third") == 1
    assert of("fpr_last_third") == 0
    assert of("fnr_last_third") == pytest.approx(3 * 0.25 / 13)
    # Rounds 10, 20, 30 and 40, which have the indices 9, 19, 29 and 39.
    assert of("fpr_sampled") == pytest.approx((0.2 + 0 + 0 + 0) / 4)
    assert of("fnr_sampled") == pytest.approx((1 + 1 + 0.25 + 0) / 4)
    assert of("fnr_since") == pytest.approx((5 + 5 * 0.25) / 20)
    assert of("fnr_since", since=30) == 0
    assert of("fnr_since", since=None) is None
    assert of("worst") == 0.5
    assert of("inverted") == 1  # round 12


@pytest.mark.parametrize(
    ("starts", "rounds"), [(30, 1), (25, 6), (20, 11), (0, 31), (39, 1), (40, None), (None, None)]
)
def test_late_attackers_are_caught_when_nine_tenths_are_out(starts, rounds):
    assert of("caught", starts=starts) == rounds


def test_attackers_that_are_never_caught():
    never = made_up(experiment(), 0.8, ([0] * 5, [4] * 5))
    assert of("caught", never, starts=2) == math.inf


def test_the_statistic_is_the_mean_with_the_sample_deviation_or_the_largest():
    records = [made_up(experiment(), a, ([p], [0])) for a, p in ((0.7, 1), (0.8, 3), (0.9, 2))]
    cell = Cell("row", "column", sm.Experiment())
    found = MEASURES["accuracy"].over(records, cell)
    assert (found.value, found.spread, found.seeds) == (
        pytest.approx(0.8),
        pytest.approx(0.1),
        3,
    )
    assert MEASURES["worst"].over(records, cell) == Statistic(0.3, None, 3)
    assert MEASURES["accuracy"].over(records[:1], cell) == Statistic(0.7, None, 1)
    assert MEASURES["attack_success"].over(records, cell) is None
    assert MEASURES["accuracy"].over([], cell) is None


def test_the_difference_of_means_has_its_standard_error():
    some, other = Statistic(0.8, 0.03, 3), Statistic(0.9, 0.04, 4)
    gap, error = difference(some, other)
    assert gap == pytest.approx(-0.1)
    assert error == pytest.approx(math.sqrt(0.03**2 / 3 + 0.04**2 / 4))
    assert difference(some, Statistic(0.9, None, 1)) == (pytest.approx(-0.1), None)
