"""Each reason to reject a client, on numbers made by hand."""

import dataclasses
import math

import pytest
import torch

from skymask.defences.judging import Clustering, Known, copied, harmful, too_long
from skymask.randomness import generator

SAMPLES = 100
ERROR = 0.05


def known(
    alignment=None,
    descent=None,
    length=None,
    clients: int = 10,
    rounds: int = 30,
    late: int = 0,
    noise: float = 0.2,
) -> Known:
    """What is known of `clients` that did the same in every one of `rounds` rounds.

    The numbers given are of the first clients; the others are honest: alignment 0.2, descent 0.3
    give or take, length 1. In the `late` rounds at the end the first client has alignment -0.5.
    """
    draw = generator("judged")
    past, ids = {}, torch.arange(clients)
    for index in range(rounds):
        varied = noise * torch.randn(clients + 1, generator=draw, dtype=torch.float64)
        seen = {
            "length": _filled(clients, 1.0, length).log(),
            "alignment": _filled(clients, 0.2, alignment),
            "error": torch.full((clients + 1,), ERROR, dtype=torch.float64),
            "descent": _filled(clients, 0.3, descent) + varied,
        }
        if index >= rounds - late:
            seen["alignment"][0] = -0.5
        seen["square"] = seen["descent"].square()
        found = Known.of(past, ids, seen, 0.9, SAMPLES)
        past = found.stored()
    return found


def _filled(clients: int, usual: float, first) -> torch.Tensor:
    values = torch.full((clients + 1,), usual, dtype=torch.float64)
    if first is not None:
        values[: len(first)] = torch.tensor(first, dtype=torch.float64)
    return values


def out(found: Known, past=None, sure: float = 3.0) -> set[int]:
    ids = torch.arange(len(found.length) - 1)
    return set(harmful(found, sure, ids, past)[0])


# Harm.


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
    # What was remembered goes by client id.
    others = harmful(doubtful, 3.0, ids + 10, memory)[0]
    assert set(others) == out(doubtful)


def test_who_lowers_the_loss_more_than_good_clients_is_not_out_for_the_alignment():
    assert out(known(alignment=[-0.3], descent=[0.2])) == {0}
    assert out(known(alignment=[-0.3], descent=[0.8])) == set()
    # Those that go against the labels are no measure, be they most.
    most = known(alignment=[-0.3] * 8, descent=[0.0] * 8)
    assert out(most) == set(range(8))


def test_without_class_scores_nobody_is_harmful():
    seen = {"length": torch.zeros(4, dtype=torch.float64)}
    found = Known.of({}, torch.arange(3), seen, 0.9, SAMPLES)
    assert found.deviations == {}
    assert harmful(found, 3.0, torch.arange(3), None)[0] == {}


# Copies and size.


def test_copies_are_three_at_least():
    draw = generator("copies")
    updates, server = torch.randn(8, 50, generator=draw), torch.randn(50, generator=draw)
    updates[1] = updates[0]
    assert copied(updates, server) == {}
    updates[5] = updates[0]
    assert copied(updates, server) == dict.fromkeys((0, 1, 5), "its update is a copy of 2 others'")


def test_too_long_is_measured_against_those_that_are_kept():
    found = known(length=[4.0, 2.0, 2.6])
    assert set(too_long(found, range(10), 2.5)) == {0, 2}
    assert set(too_long(found, [1, 2, 3, 4, 5], 2.5)) == {2}
    assert too_long(found, [], 2.5) == {}
    assert "4.0 times" in too_long(found, range(10), 2.5)[0]


def test_an_update_ten_times_as_long_is_out_at_once():
    found = known()
    now = dataclasses.replace(
        found, length=found.length.clone().index_fill(0, torch.tensor(3), 2.4)
    )
    assert set(too_long(now, range(10), 2.5)) == {3}


# Clusters.

CLUSTERING = Clustering(dims=2, tight=4.0, apart=1.5, larger=2.5, keep=0.9)


@pytest.mark.parametrize(
    ("facts", "gain", "expected"),
    [
        ({"alignment": [-0.1, -0.1, 0.1, -0.1]}, 2.0, {0, 1, 3}),
        ({"descent": [-0.4, -0.4, 0.3, -0.4]}, 2.0, {0, 1, 3}),
        ({"length": [3.0, 3.0, 2.0, 3.0]}, 2.0, {0, 1, 3}),
        ({}, 2.0, set()),
        ({"length": [3.0] * 4}, 1.0, set()),
        ({"alignment": [-0.1] * 10}, 2.0, set()),  # those near the root are no better
        ({}, 4.5, {0, 1, 2, 3}),
    ],
)
def test_who_of_a_cluster_apart_is_suspect(facts, gain, expected):
    away, rows = [0, 1, 2, 3], [*range(11)]
    assert set(CLUSTERING.suspects(known(**facts), away, rows, gain, "")) == expected
    # In a single layer only tightness tells.
    if gain < 4:
        assert CLUSTERING.suspects(known(**facts), away, rows, gain, " in layer 1") == {}


def test_few_are_no_cluster():
    found = known()
    assert CLUSTERING.suspects(found, [0, 1], [*range(11)], 9.0, "") == {}
    assert CLUSTERING.suspects(found, [*range(8)], [*range(8), 10], 9.0, "") == {}


def test_a_majority_apart_from_the_root_may_be_the_honest_clients():
    away, rows = [*range(7)], [*range(11)]
    assert CLUSTERING.suspects(known(), away, rows, 9.0, "") == {}
    worse = known(alignment=[0.1] * 7)
    assert set(CLUSTERING.suspects(worse, away, rows, 9.0, "")) == set(away)


def points(*groups: tuple[int, float, float]) -> torch.Tensor:
    """Products (n + 1, n + 1) of groups of so many points around a place, so widely scattered."""
    draw = generator("points")
    parts = [
        torch.tensor([place] + [0.0] * 5)
        + scatter * torch.randn(size, 6, generator=draw, dtype=torch.float64)
        for size, place, scatter in groups
    ]
    rows = torch.cat(parts)
    rows = rows - rows.mean(0)
    return rows @ rows.T / rows.square().sum()


def test_a_tight_cluster_in_one_layer_must_be_there_again_and_again():
    apart, none = points((6, 9.0, 0.01), (25, 0.0, 1.0)), points((31, 0.0, 1.0))
    found, ids, past = known(clients=30), torch.arange(30), None
    outs = []
    for layer in (*[none] * 9, apart, apart, none):
        clusters = CLUSTERING(found, {"": none, " in layer 1": layer}, ids, range(30), past)
        past = clusters.memory
        outs.append(set(clusters.reasons))
    assert outs == [*[set()] * 10, set(range(6)), set()]
    once = CLUSTERING(found, {"": none, " in layer 1": apart}, ids, range(30), None)
    assert set(once.reasons) == set(range(6))
    assert "6 in layer 1 apart from the root's, too tight" in once.reasons[0]


def test_several_kinds_are_taken_out_one_after_another():
    kinds = points((9, 30.0, 0.01), (6, -9.0, 0.01), (20, 0.0, 1.0))
    clusters = CLUSTERING(known(clients=34), {"": kinds}, torch.arange(34), range(34), None)
    assert set(clusters.reasons) == set(range(15))
    assert clusters.reasons[0] != clusters.reasons[14]
    assert clusters.gain > 4


def test_one_group_is_none():
    clusters = CLUSTERING(
        known(clients=30), {"": points((31, 0.0, 1.0))}, torch.arange(30), range(30), None
    )
    assert clusters.reasons == {}
    assert clusters.gain < 1.5
