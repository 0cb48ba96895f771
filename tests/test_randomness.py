"""Keys and counter-based numbers: what they depend on, and that they are splitmix64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skymask.randomness import generator, hashed, key
from tests.reference import hashing

WORDS = st.lists(st.integers() | st.text(st.characters(exclude_characters="\0")), max_size=4)


def test_a_chain_of_one_counter_is_splitmix64():
    # The first five outputs of the published generator for this seed, less the top bit.
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    expected = [number & (2**63 - 1) for number in known]
    assert hashed(1234567, torch.arange(5)).tolist() == expected


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=4))
def test_hashed_equals_integer_arithmetic(start, counters):
    assert hashed(start, *map(torch.tensor, counters)).item() == hashing.hashed(start, *counters)


def test_counters_broadcast_and_each_entry_depends_on_its_own():
    rows, columns = torch.arange(3)[:, None], torch.arange(4)
    table = hashed(9, rows, columns)
    assert table.shape == (3, 4)
    assert len(table.unique()) == 12
    assert table[2, 3] == hashed(9, torch.tensor(2), torch.tensor(3))
    assert table[2, 3] != hashed(9, torch.tensor(3), torch.tensor(2))


def test_numbers_of_neighbours_look_independent():
    shares = hashed(key("any"), torch.arange(20), torch.arange(500)[:, None]).double() / 2**63
    assert (shares >= 0).all()
    assert shares.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert shares.square().mean().item() == pytest.approx(1 / 3, abs=0.01)
    for axis in (0, 1):
        rolled = shares.roll(1, axis).flatten()
        assert abs(np.corrcoef(shares.flatten(), rolled)[0, 1]) < 0.04


@given(WORDS, WORDS)
def test_keys_differ_where_the_words_do(some, others):
    assert (key(*some) == key(*others)) == (some == others)
    assert 0 <= key(*some) < 2**63


def test_any_string_is_a_word():
    assert key("\ud800") != key("\ud801")


def test_a_word_and_a_number_that_look_alike_are_different_words():
    assert len({key(1, "2"), key("1", 2), key(12), key("12"), key(1, 2)}) == 5


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    first, again = (torch.rand(5, generator=generator(1, "a")) for _ in range(2))
    assert first.equal(again)
    assert not first.equal(torch.rand(5, generator=generator(1, "b")))
    assert torch.random.get_rng_state().equal(before)
