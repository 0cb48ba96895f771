"""Who sends what others send."""

import torch

from skymask.defences.copies import alike, copied
from skymask.randomness import generator


def test_updates_that_are_the_same_are_counted():
    draw = generator("copies")
    updates, server = torch.randn(8, 50, generator=draw), torch.randn(50, generator=draw)
    assert torch.equal(alike(updates, server), torch.eye(8, dtype=torch.bool))
    updates[1] = updates[0]
    updates[5] = updates[0]
    same = alike(updates, server)
    assert same.sum(1).tolist() == [3, 3, 1, 1, 1, 3, 1, 1]
    assert same[0].nonzero().flatten().tolist() == [0, 1, 5]


def test_clients_that_hardly_move_are_not_the_same():
    draw = generator("copies")
    updates, server = torch.randn(8, 50, generator=draw), torch.randn(50, generator=draw)
    updates[:5] *= 1e-4
    assert torch.equal(alike(updates, server), torch.eye(8, dtype=torch.bool))
    updates[:3] = updates[0]
    assert alike(updates, server).sum(1).tolist() == [3] * 3 + [1] * 5


def copies(*rounds: str, ids: list[int] | None = None) -> list[set[int]]:
    """Who is out in each of the `rounds`, such as "aab": who sent the same has the same letter."""
    memory, told = None, []
    for sent in rounds:
        letters = torch.tensor([ord(letter) for letter in sent])
        known = torch.arange(len(sent)) if ids is None else torch.tensor(ids)
        reasons, memory = copied(letters[:, None] == letters, known, memory, 0.9)
        told.append(set(reasons))
    return told


def test_three_copies_are_out_at_once_and_two_if_they_go_on():
    assert copies("abaa") == [{0, 2, 3}]
    assert copies(*["aabc"] * 4) == [set(), set(), {0, 1}, {0, 1}]
    # A chance that comes once in ten rounds is none.
    assert not any(copies(*["aabc", *["abcd"] * 9] * 3))


def test_attackers_that_take_turns_at_copying_an_honest_client_do_not_have_it_out():
    # Client 0 is copied in every round, by 1, 2 and 3 in turn.
    assert not any(copies(*["aabc", "abac", "abca"] * 20))
    # One that does it all the time is out with it.
    assert copies(*["aabc"] * 20)[-1] == {0, 1}


def test_a_client_whose_update_comes_twice_is_no_copy_of_itself():
    assert not any(copies(*["aab"] * 10, ids=[5, 5, 6]))


def test_who_sent_copies_is_out_while_alone_and_back_after_some_rounds():
    told = copies(*["aaab"] * 10, *["abcd"] * 6)
    assert told[9:] == [{0, 1, 2}] * 4 + [set()] * 3


def test_copies_say_so_and_go_by_client_id_and_who_is_away_stays_known():
    three = torch.ones(3, 3, dtype=torch.bool)
    reasons, memory = copied(three, torch.tensor([7, 3, 9]), None, 0.9)
    assert set(reasons.values()) == {"its update is a copy of 2 others'"}
    for _ in range(5):
        apart = torch.eye(2, dtype=torch.bool)
        reasons, memory = copied(apart, torch.tensor([1, 2]), memory, 0.9)
        assert not reasons
    apart = torch.eye(3, dtype=torch.bool)
    reasons, _ = copied(apart, torch.tensor([1, 9, 3]), memory, 0.9)
    assert reasons == dict.fromkeys((1, 2), "its last updates were copies of others'")
