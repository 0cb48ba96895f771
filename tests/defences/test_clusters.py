"""Clusters apart from the root's, on numbers made by hand."""

import pytest
import torch

from skymask.clustering import two_gaussians_each
from skymask.defences.clusters import Clustering
from skymask.randomness import generator
from tests.defences.known import known

CLUSTERING = Clustering(dims=2, tight=4.0, apart=1.5, larger=2.5, keep=0.9)


@pytest.mark.parametrize(
    ("facts", "gain", "expected"),
    [
        ({"alignment": [-0.1, -0.1, 0.1, -0.1]}, 2.0, {0, 1, 3}),
        ({"alignment": [-0.1, 0.1, 0.1, 0.1]}, 2.0, set()),  # the cluster is not against them
        ({"descent": [-0.4, -0.4, 0.3, -0.4]}, 2.0, {0, 1, 3}),
        ({"length": [3.0, 3.0, 2.0, 3.0]}, 2.0, {0, 1, 3}),
        ({}, 2.0, set()),
        ({"length": [3.0] * 4}, 1.0, set()),
        ({"alignment": [-0.1] * 10}, 2.0, set()),  # those near the root are no better
        ({}, 5.2, {0, 1, 2, 3}),
        ({}, 5.0, set()),  # of so few, 4 is no surprise
        ({"length": [3.0] * 4, "descent": [0.5] * 4}, 2.0, set()),  # they have something to teach
        ({"alignment": [-0.1] * 4, "descent": [0.8] * 4}, 2.0, set()),  # what corrects the others
        ({"length": [3.0] * 4 + [0.1, 0.3, 1.0, 3.0, 0.5, 2.0]}, 2.0, set()),  # so do lengths vary
    ],
)
def test_who_of_a_cluster_apart_is_suspect(facts, gain, expected):
    away, rows = [0, 1, 2, 3], [*range(11)]
    assert set(CLUSTERING.suspects(known(**facts), away, rows, gain, "")) == expected
    # In a single layer only tightness tells.
    if gain < 4:
        assert CLUSTERING.suspects(known(**facts), away, rows, gain, " in layer 1") == {}


@pytest.mark.parametrize("count", [8, 10, 13, 20])
def test_chance_gains_less_than_the_bound(count):
    draws = torch.randn(500, count, 2, generator=generator("chance", count), dtype=torch.float64)
    fits = two_gaussians_each(draws.numpy())
    sizes = [min(fit.labels.sum(), count - fit.labels.sum()) for fit in fits]
    gains = [fit.gain for fit, size in zip(fits, sizes, strict=True) if size > CLUSTERING.dims]
    away, rows = [0, 1, 2], [*range(count)]
    assert max(gains) > 0.5  # what is found are clusters of a sort
    assert CLUSTERING.suspects(known(clients=count - 1), away, rows, max(gains), "") == {}


def test_few_are_no_cluster():
    found = known()
    assert CLUSTERING.suspects(found, [0, 1], [*range(11)], 9.0, "") == {}
    assert CLUSTERING.suspects(found, [*range(8)], [*range(8), 10], 9.0, "") == {}


def test_a_majority_apart_from_the_root_may_be_the_honest_clients():
    away, rows = [*range(7)], [*range(11)]
    length = [0.0, 0.1, -0.1, 0.2, -0.2, 0.1, 0.0]
    assert CLUSTERING.suspects(known(length=length), away, rows, 9.0, "") == {}
    worse = known(length=length, descent=[-0.1] * 7)
    assert set(CLUSTERING.suspects(worse, away, rows, 9.0, "")) == set(away)
    # Worse than a few who are worse themselves, by the other measure.
    barely = {"length": length, "descent": [-0.02] * 7, "noise": 0.01}
    assert set(CLUSTERING.suspects(known(**barely), away, rows, 9.0, "")) == set(away)
    fooled = known(**barely, alignment=[0.2] * 7 + [-0.4] * 3)
    assert CLUSTERING.suspects(fooled, away, rows, 9.0, "") == {}
    # Worse than a few and not bad.
    not_bad = known(length=length, alignment=[0.1] * 7)
    assert CLUSTERING.suspects(not_bad, away, rows, 9.0, "") == {}


def test_a_majority_of_the_same_length_is_made_up_if_it_is_no_better():
    away, rows = [*range(7)], [*range(11)]
    alike = [0.5, 0.501, 0.499, 0.5, 0.502, 0.498, 0.5]
    assert set(CLUSTERING.suspects(known(length=alike), away, rows, 9.0, "")) == set(away)
    assert CLUSTERING.suspects(known(length=alike), away, rows, 3.9, "") == {}  # not tight
    better = known(length=alike, descent=[9.0] * 7)
    assert CLUSTERING.suspects(better, away, rows, 9.0, "") == {}


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
