"""Camps that go against the root data set, on numbers made by hand."""

import pytest
import torch

from skymask.defences.camps import opposed
from skymask.defences.known import Known
from skymask.randomness import generator
from tests.defences.known import ERROR, known

CLIENTS = 30


def facts(*groups: tuple[int, float, float]) -> Known:
    """What is known of groups of so many clients, in standard deviations of both measures.

    Alignment and descent, as good as without noise. The clients left have 1.5 and 0.3.
    """
    left = CLIENTS - sum(size for size, _, _ in groups)
    rows = [(a, d) for size, a, d in [*groups, (left, 1.5, 0.3)] for _ in range(size)]
    found = known([a * ERROR for a, _ in rows], [0.0] * CLIENTS, clients=CLIENTS, noise=0.01)
    spread = found.slow.values["descent"][0] / found.deviations["descent"][0][0]
    descents = [float(spread) * d for _, d in rows]
    return known([a * ERROR for a, _ in rows], descents, clients=CLIENTS, noise=1e-3)


def alike(*camps: int, within: float = 0.8) -> torch.Tensor:
    """How alike the clients and last the root are, of whom the first are in camps of such sizes."""
    draw = generator("alike", *camps)
    rows = torch.randn(CLIENTS + 1, 40, generator=draw, dtype=torch.float64)
    start = 0
    for size in camps:
        way = torch.randn(40, generator=draw, dtype=torch.float64)
        rows[start : start + size] += (within / (1 - within)) ** 0.5 * way
        start += size
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def told(found: Known, *rounds: torch.Tensor, out=()) -> list[set[int]]:
    """Who is out as a camp in each of the `rounds`, of which each says how alike clients are."""
    memory, told = None, []
    for each in rounds:
        ids = torch.arange(CLIENTS)
        reasons, memory = opposed(found, each, ids, 2, 3.0, 0.9, memory, out)
        told.append(set(reasons))
    return told


def out(found: Known, each: torch.Tensor, **given) -> set[int]:
    """Who is out when clients were so much alike for ten rounds."""
    return told(found, *[each] * 10, **given)[-1]


def test_a_camp_against_the_root_is_out_when_it_is_there_again():
    found, camp, nobody = facts((6, -0.5, -0.3)), alike(6), alike()
    assert told(found, *[camp] * 4) == [set(), *[set(range(6))] * 3]
    assert out(found, nobody) == set()
    # Who was often in one stays out for some rounds, and is back.
    assert told(found, *[camp] * 20, *[nobody] * 9)[19:] == [set(range(6))] * 4 + [set()] * 6


@pytest.mark.parametrize(
    ("alignment", "descent"),
    [(1.5, 0.3), (0.2, -0.9), (-0.2, 0.9)],
    ids=["alike and good", "not against the labels", "not together with the descent"],
)
def test_alike_is_no_reason_by_itself(alignment, descent):
    assert out(facts((6, alignment, descent)), alike(6)) == set()


def test_a_member_that_is_good_itself_stays():
    found = facts((4, -0.9, -0.3), (1, 0.4, 0.3), (1, 0.8, 0.4))
    assert out(found, alike(6)) == set(range(5))


def test_much_worse_than_the_others_and_not_good_is_enough():
    good = (24, 5.0, 1.0)
    assert out(facts((6, 0.3, 0.2), good), alike(6)) == set(range(6))
    assert out(facts((6, 0.3, 0.2)), alike(6)) == set()  # the others are no better by that much
    some_are = facts((4, 0.8, 0.5), (2, -0.9, -0.3), good)
    assert out(some_are, alike(6)) == set()  # the camp is good


@pytest.mark.parametrize(
    "others", [(24, 1.2, -0.5), (24, 0.8, 0.9)], ids=["not good together", "not in alignment"]
)
def test_where_the_others_are_not_good_nobody_is_judged(others):
    assert out(facts((6, -0.9, -0.9), others), alike(6)) == set()


def test_a_majority_is_out_if_it_is_below_0_and_two_standard_deviations_below_the_others():
    assert out(facts((20, -0.5, -0.3)), alike(20)) == set()
    assert out(facts((20, -0.8, -0.4)), alike(20)) == set(range(20))
    # Flippers that lead the model are right by their own labels: the descent tells of them.
    assert out(facts((20, 0.1, -0.5), (10, 2.5, 1.2)), alike(20)) == set(range(20))
    # However good others are, a majority that is not below 0 itself stays.
    assert out(facts((20, 0.1, 0.0), (10, 2.5, 1.2)), alike(20)) == set()


def test_a_few_who_are_alike_and_very_good_do_not_have_the_others_out():
    # They are apart, so that everybody else is what is left, which is no camp.
    assert out(facts((3, 8.0, 8.0), (27, 0.3, 0.2)), alike(3, within=0.95)) == set()
    assert out(facts((12, 8.0, 8.0), (18, 0.3, 0.2)), alike(12)) == set()


def test_a_camp_among_clients_of_other_classes_is_found():
    # Twelve of the honest clients are far more alike than the attackers.
    found = facts((12, 1.5, 0.3), (6, -0.5, -0.3))
    assert out(found, alike(12, 6, within=0.9)) == set(range(12, 18))


def test_several_camps_are_found():
    assert out(facts((12, -0.5, -0.3)), alike(6, 6)) == set(range(12))


def test_who_is_out_for_another_reason_does_not_hide_a_camp():
    # Three that are all but the same are what the clients are divided by.
    found = facts((6, -0.5, -0.3), (3, 1.5, 0.3))
    both = alike(6, 3, within=0.5)
    both[6:9, 6:9] = 1.0
    assert set(range(6)) <= out(found, both, out=(6, 7, 8))
    assert not {6, 7, 8} & out(found, both, out=(6, 7, 8))


def test_clients_that_have_nothing_to_do_with_each_other_form_no_camps():
    found = facts((8, -0.9, -0.9))
    draws = generator("camps", "chance")
    for _ in range(50):
        rows = torch.randn(CLIENTS + 1, 400, generator=draws, dtype=torch.float64)
        rows = rows / rows.norm(dim=1, keepdim=True)
        assert out(found, rows @ rows.T) == set()
