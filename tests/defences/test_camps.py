"""Camps that go against the root data set, on numbers made by hand."""

import torch

from skymask.defences.camps import opposed
from skymask.randomness import generator
from tests.defences.known import ERROR, known

WORSE = {"alignment": [-0.5 * ERROR] * 6, "descent": [-0.03] * 6}
"""Six clients that go against the root by too little for anybody to be out by itself."""


def alike(*camps: int, within: float = 0.8, clients: int = 30) -> torch.Tensor:
    """How alike `clients` and last the root are, of whom the first are in `camps` of such sizes."""
    draw = generator("alike", *camps)
    rows = torch.randn(clients + 1, 40, generator=draw, dtype=torch.float64)
    start = 0
    for size in camps:
        way = torch.randn(40, generator=draw, dtype=torch.float64)
        rows[start : start + size] += (within / (1 - within)) ** 0.5 * way
        start += size
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def out(facts: dict, *rounds: torch.Tensor) -> list[set[int]]:
    """Who is out in each of the `rounds`, of which each says how alike the clients are."""
    memory, told = None, []
    for each in rounds:
        clients = len(each) - 1
        found = known(**facts, clients=clients)
        reasons, memory = opposed(found, each, torch.arange(clients), 2, 3.0, 0.9, memory)
        told.append(set(reasons))
    return told


def test_a_camp_against_the_root_is_out_when_it_is_there_again():
    camp, nobody = alike(6), alike()
    assert out(WORSE, *[camp] * 4) == [set(), *[set(range(6))] * 3]
    assert not any(out(WORSE, *[nobody] * 9))
    # Who was often in one stays out for some rounds, and is back.
    told = out(WORSE, *[camp] * 20, *[nobody] * 9)
    assert told[19:] == [set(range(6))] * 4 + [set()] * 6


def test_alike_is_no_reason_by_itself():
    camp = alike(6)
    assert not any(out({}, *[camp] * 9))
    # Nor is it to go against the labels alone, or to raise the loss alone.
    others = {"alignment": [1.5 * ERROR] * 24, "descent": [0.02] * 24}
    for alignment, descent in ((-0.5, 0.2), (0.5, -0.1)):
        facts = {"alignment": [alignment * ERROR] * 6, "descent": [descent] * 6}
        assert not any(out({k: facts[k] + others[k] for k in facts}, *[camp] * 9))


def test_a_member_that_is_good_itself_stays():
    one_is = {"alignment": [*[-0.5 * ERROR] * 5, 6 * ERROR], "descent": WORSE["descent"]}
    assert out(one_is, *[alike(6)] * 3)[-1] == set(range(5))


def test_much_worse_than_the_others_and_not_good_is_enough():
    doubtful = {"alignment": [0.3 * ERROR] * 6, "descent": [0.02] * 6}
    assert out(doubtful, *[alike(6)] * 3)[-1] == set(range(6))
    near = {"alignment": [*[0.3 * ERROR] * 6, *[1.5 * ERROR] * 24], "descent": [0.02] * 30}
    assert not any(out(near, *[alike(6)] * 9))


def test_where_the_others_are_not_good_nobody_is_judged():
    lost = {"alignment": [*WORSE["alignment"], *[0.4 * ERROR] * 24], "descent": [-0.03] * 6}
    lost["descent"] += [0.0] * 24
    assert not any(out(lost, *[alike(6)] * 9))


def test_a_camp_among_clients_of_other_classes_is_found():
    # Half of the honest clients are far more alike than the attackers.
    first = [*[2 * ERROR] * 12, *WORSE["alignment"]]
    facts = {"alignment": first, "descent": [*[0.3] * 12, *WORSE["descent"]]}
    assert out(facts, *[alike(12, 6, within=0.9)] * 3)[-1] == set(range(12, 18))


def test_a_majority_and_several_camps_are_found():
    many = {"alignment": [-0.5 * ERROR] * 20, "descent": [-0.03] * 20}
    assert out(many, *[alike(20)] * 3)[-1] == set(range(20))
    several = {"alignment": [-0.5 * ERROR] * 12, "descent": [-0.03] * 12}
    assert out(several, *[alike(6, 6)] * 3)[-1] == set(range(12))


def test_few_clients_form_no_camps():
    assert not any(out(WORSE, *[alike(3, clients=7)] * 9))
