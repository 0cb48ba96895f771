"""Crafted updates: exactly as far as their limits allow, and where the originals put them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skymask import FangTrim, InputError, MinSum, Round
from skymask.randomness import generator
from tests.reference import attacks as reference

N, F, D = 9, 3, 7
MALICIOUS = torch.arange(N) % 3 == 1


def updates_of(seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(N, D, generator=generator("crafted", seed), dtype=dtype) + 0.3


def directions(honest: torch.Tensor) -> dict[str, torch.Tensor]:
    mean = honest.mean(0)
    return {
        "unit": -mean / mean.norm(),
        "sign": -mean.sign(),
        "std": -honest.std(0, correction=0),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", ["min", "max"])
@pytest.mark.parametrize("direction", ["unit", "sign", "std"])
def test_min_sum_goes_as_far_as_its_limit(direction, limit, seed):
    updates = updates_of(seed)
    honest = updates[~MALICIOUS]
    sums = [reference.distance_sum(row, honest) for row in honest]
    bound = min(sums) if limit == "min" else max(sums)
    towards = directions(honest)[direction]

    poisoned = MinSum(direction, limit).poison_updates(updates, MALICIOUS, Round())
    (crafted,) = poisoned[MALICIOUS].unique(dim=0)
    assert reference.distance_sum(crafted, honest) == pytest.approx(bound, rel=1e-12)
    beyond = honest.mean(0) + 1.0001 * (crafted - honest.mean(0))
    assert reference.distance_sum(beyond, honest) > bound
    torch.testing.assert_close(crafted, reference.min_sum(honest, towards, bound))


def test_min_sum_by_hand():
    # Mean (2, 0); the nearest honest update is 1 away, the farthest 3.
    honest = torch.tensor([[1.0, 0.0], [2.0, -3.0], [2.0, 3.0], [3.0, 0.0]])
    updates = torch.cat([honest, torch.zeros(1, 2)])
    malicious = torch.tensor([False] * 4 + [True])
    for limit, expected in (("min", [1.0, 0.0]), ("max", [-1.0, 0.0])):
        assert (
            MinSum("unit", limit).poison_updates(updates, malicious, Round())[-1].tolist()
            == expected
        )


@pytest.mark.parametrize("direction", ["unit", "sign", "std"])
def test_min_sum_has_nowhere_to_go_from_equal_or_zero_updates(direction):
    for honest in (torch.zeros(N, D), torch.ones(N, D)):
        poisoned = MinSum(direction).poison_updates(honest, MALICIOUS, Round())
        assert poisoned.equal(honest)


def fang(updates: torch.Tensor, stretch: float = 2.0, seed: int = 0) -> torch.Tensor:
    return FangTrim(stretch).poison_updates(updates, MALICIOUS, Round(generator=generator(seed)))


@pytest.mark.parametrize("stretch", [1.5, 2.0, 10.0])
@given(arrays("float64", (N, 4), elements=st.floats(-100, 100, width=32)))
def test_fang_trim_lies_just_beyond_the_honest_values(stretch, numbers):
    updates = torch.from_numpy(numbers)
    poisoned = fang(updates, stretch)
    for column in range(4):
        honest = updates[~MALICIOUS, column].tolist()
        low, high = reference.fang_interval(honest, stretch)
        slack = 1e-12 * max(abs(low), abs(high))
        for value in poisoned[MALICIOUS, column].tolist():
            assert low - slack <= value <= high + slack


@pytest.mark.parametrize(
    ("honest", "low", "high"),
    [
        ([2.0, 3.0, 4.0], 1.0, 2.0),
        ([-1.0, 3.0, 4.0], -2.0, -1.0),
        ([-4.0, -3.0, 1.0], 1.0, 2.0),
        ([-4.0, -3.0, -2.0], -2.0, -1.0),
    ],
)
def test_fang_trim_fills_its_interval_in_each_sign_case(honest, low, high):
    updates = torch.tensor([honest + [0.0] * 200]).T
    malicious = torch.arange(203) >= 3
    values = FangTrim().poison_updates(updates, malicious, Round(generator=generator(1)))[3:, 0]
    assert low <= values.min() < low + 0.03
    assert high - 0.03 < values.max() <= high
    assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.08)
    assert (low, high) == reference.fang_interval(honest, 2.0)


def test_fang_trim_draws_for_each_client_and_coordinate():
    values = fang(updates_of())[MALICIOUS]
    assert len(values.unique()) == F * D
    assert fang(updates_of()).equal(fang(updates_of()))
    assert not fang(updates_of()).equal(fang(updates_of(), seed=1))


def test_fang_trim_needs_a_generator():
    with pytest.raises(InputError, match=r"round\.generator"):
        FangTrim().poison_updates(updates_of(), MALICIOUS, Round())


def test_the_malicious_clients_own_updates_do_not_matter():
    updates, other = updates_of(), updates_of()
    other[MALICIOUS] = 1e9
    assert fang(updates).equal(fang(other))
    for limit in ("min", "max"):
        attack = MinSum(limit=limit)
        assert attack.poison_updates(updates, MALICIOUS, Round()).equal(
            attack.poison_updates(other, MALICIOUS, Round())
        )
