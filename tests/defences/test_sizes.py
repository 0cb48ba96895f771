"""Whose updates are too long, on numbers made by hand."""

import dataclasses

import torch

from skymask.defences.sizes import too_long
from tests.defences.known import filled, known


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
    # Where lengths vary a lot it takes more.
    lengths = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0, 0.2, 0.4, 2.0, 4.0, 11.0, 1.0]).log().double()
    assert too_long(dataclasses.replace(found, length=lengths), range(10), 2.5) == {}


def test_a_layer_may_not_be_much_more_of_an_update_than_of_the_others():
    found = known(shares=[4.0, 2.0, 2.6])
    reasons = too_long(found, range(10), 2.5)
    assert set(reasons) == {0, 2}
    assert reasons[0] == "layer head is 4.0 times as much of its updates as of the median client's"
    assert set(too_long(known(shares=[0.1, 0.01]), range(10), 2.5)) == set()
    # Unless it is what the others have not learned.
    assert too_long(known(shares=[4.0], descent=[0.5]), range(10), 2.5) == {}
    now = {"head": filled(10, 1.0, [12.0])[:-1].log()}
    assert set(too_long(dataclasses.replace(known(shares=[]), shares_now=now), range(10), 2.5)) == {
        0
    }


def test_who_has_something_to_teach_may_be_long():
    assert set(too_long(known(length=[4.0, 4.0]), range(10), 2.5)) == {0, 1}
    assert too_long(known(length=[4.0, 4.0], descent=[0.5, 0.5]), range(10), 2.5) == {}
    # Not whatever it is against, and not in one round.
    against = known(length=[4.0, 4.0], descent=[0.5, 0.5], alignment=[-0.1, -0.1])
    assert set(too_long(against, range(10), 2.5)) == {0, 1}
    teaching = known(descent=[0.5])
    now = teaching.length.index_fill(0, torch.tensor(0), 2.4)
    assert set(too_long(dataclasses.replace(teaching, length=now), range(10), 2.5)) == {0}
