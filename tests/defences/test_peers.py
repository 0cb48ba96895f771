"""Peers: clients beside those that teach the same classes, on numbers made by hand."""

import pytest
import torch

import skymask as sm
from skymask.defences.peers import _medians, behind, taught
from skymask.evidence import Evidence
from skymask.randomness import generator
from tests.defences.known import ERROR, known

CLASSES = (0, 3, 7)


def group(teaches: int, *alignments: float) -> list[tuple[int, float]]:
    """Clients that teach one class, with what they reach there, in standard deviations."""
    return [(teaches, alignment) for alignment in alignments]


def evidence(clients: list[tuple[int, float]]) -> Evidence:
    """What a round shows of them: nine tenths of what each raises are of the class it teaches.

    The rest is of the other classes, with a contrast of 0. The root is the last row, and best.
    """
    n, count = len(clients) + 1, len(CLASSES)
    shares = torch.full((n, count), 0.1 / (count - 1), dtype=torch.float64)
    contrasts = torch.zeros(n, count, dtype=torch.float64)
    shares[-1], contrasts[-1] = 1 / count, 0.5
    for i, (teaches, alignment) in enumerate(clients):
        at = CLASSES.index(teaches)
        shares[i, at] = 0.9
        contrasts[i, at] = alignment * ERROR / 0.9
    nothing = torch.zeros(n, dtype=torch.float64)
    alike = torch.zeros(n, n, dtype=torch.float64)
    return Evidence(*[nothing] * 5, CLASSES, shares, contrasts, alike)


def out(*groups: list[tuple[int, float]], out=()) -> set[int]:
    """Who is behind its peers, if that is what clients did on average."""
    clients = [client for each in groups for client in each]
    facts = known([each * ERROR for _, each in clients], clients=len(clients))
    reasons = behind(facts, taught(None, torch.arange(len(clients)), evidence(clients), 0.9), out)
    assert all("that teach the same classes" in reason for reason in reasons.values())
    return set(reasons)


USUAL = group(0, 3.0, 3.1, 2.9, 3.2), group(7, 2.0, 2.1, 1.9, 2.2)


def test_who_goes_less_with_the_labels_than_its_peers_is_out():
    assert out(group(3, 0.2, 2.9, 3.0, 3.1), *USUAL) == {0}
    # As low as all who teach the class: the root has unusual samples of it.
    assert out(group(3, 0.2, 0.1, 0.3, 0.2), *USUAL) == set()
    # Lower than those of other classes, not than its own.
    assert out(group(3, 1.5, 1.6, 1.4, 1.5), *USUAL) == set()


def test_the_better_a_client_is_by_itself_the_further_behind_it_has_to_be():
    peers = 3.0, 3.1, 2.9
    assert out(group(3, 0.4, *peers), *USUAL) == {0}
    assert out(group(3, 0.6, *peers), *USUAL) == set()
    assert out(group(3, 1.4, 5.0, 5.1, 4.9), *USUAL) == {0}
    assert out(group(3, 2.0, 5.0, 5.1, 4.9), *USUAL) == set()


def test_how_much_clients_differ_from_their_peers_counts():
    assert out(group(3, -1.0, 1.1, 1.2, 1.0), *USUAL) == {0}
    wide = group(0, 1.0, 3.0, 6.0, 1.5), group(7, 4.0, 1.2, 5.0, 2.0)
    assert out(group(3, -1.0, 1.1, 1.2, 1.0), *wide) == set()


def test_peers_have_to_be_good():
    assert out(group(3, -1.2, 1.1, 1.1, 1.1), *USUAL) == {0}
    assert out(group(3, -1.2, 0.6, 0.6, 0.6), *USUAL) == set()


def test_most_clients_have_to_be_good():
    low = group(0, 0.9, 0.8, 0.7, 0.9), group(7, 0.5, 0.6, 0.7, 0.4)
    assert out(group(3, -1.2, 1.5, 1.6, 1.7), *USUAL) == {0}
    assert out(group(3, -1.2, 1.5, 1.6, 1.7), *low) == set()


def test_it_takes_two_others_that_teach_the_same():
    assert out(group(3, 0.2, 3.0, 3.0, 3.0), *USUAL) == {0}
    assert out(group(3, 0.2, 3.0), *USUAL) == set()
    # Who is out for another reason is no peer, and not told again.
    clients = group(3, 0.2, 3.0, 3.0, 3.0)
    assert out(clients, *USUAL, out=[1, 2]) == set()
    assert out(clients, *USUAL, out=[0]) == set()


@pytest.mark.parametrize(("others", "expected"), [(1, set()), (3, {0})])
def test_it_takes_two_even_where_one_weighs_more(others, expected):
    clients = [*group(3, -1.2, *[3.0] * others), *group(7, 2.0, 2.1, 1.9)]
    seen = evidence(clients)
    seen.shares[0] = torch.tensor([0.2, 0.6, 0.2])
    facts = known([each * ERROR for _, each in clients], clients=len(clients))
    assert set(behind(facts, taught(None, torch.arange(len(clients)), seen, 0.9))) == expected


def test_a_majority_is_its_own_peers():
    assert out(group(3, 0.2, 0.1, 0.3, 3.0, 3.0), *USUAL) == set()


def test_who_is_found_is_no_peer_of_those_left():
    # Beside the median of all six the second is not far behind: that is the third.
    assert out(group(3, -3.0, 0.2, 1.3, 3.0, 3.0, 3.0), *USUAL) == {0, 1}
    assert out(group(3, 1.3, 0.2, 1.3, 3.0, 3.0, 3.0), *USUAL) == set()


@pytest.mark.parametrize("facts", [known([0.0], clients=3), None])
def test_nothing_is_told_where_the_root_says_nothing(facts):
    assert behind(facts or known(clients=3), taught(None, torch.arange(3), None, 0.9)) == {}


def test_what_is_raised_in_passing_hardly_counts():
    """Two clients that raise a class which they have not, by a quarter and by half of all."""
    clients = [*group(3, 1.0, 3.0, 3.1, 2.9), *USUAL[0], *USUAL[1]]
    facts = known([each * ERROR for _, each in clients], clients=len(clients))
    for share, expected in ((0.25, set()), (0.5, {0})):
        seen = evidence(clients)
        seen.shares[0] = torch.tensor([share, 1 - share, 0.0])
        seen.contrasts[0] = torch.tensor([-9.0, 3.0, 0.0]) * ERROR / 0.9
        averages = taught(None, torch.arange(len(clients)), seen, 0.9)
        assert set(behind(facts, averages)) == expected


def test_what_is_taught_is_averaged_over_rounds():
    ids, past = torch.arange(2), None
    for alignment in (4.0, -4.0, -4.0):
        averages = taught(past, ids, evidence(group(3, alignment, 1.0)), 0.9)
        past = averages.stored()
    weights = torch.tensor([0.81, 0.9, 1.0], dtype=torch.float64)
    mean = (weights * torch.tensor([4.0, -4.0, -4.0])).sum() / weights.sum()
    torch.testing.assert_close(averages.values["taught 3"][0], mean * ERROR)
    torch.testing.assert_close(averages.values["share 3"][:2], weights.new_full((2,), 0.9))


@pytest.mark.parametrize("seed", range(20))
def test_a_weighted_median_is_that_of_copies(seed):
    draw = generator("medians", seed)
    values = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    times = torch.randint(0, 4, (9, 4), generator=draw)
    times[0] += 1
    found = _medians(values, times.double())
    for k in range(4):
        copies = values[:, k].repeat_interleave(times[:, k])
        assert found[k] == copies.median()  # the lower one of two


@pytest.mark.parametrize("seed", [2, 3])
def test_flipped_labels_are_found_where_each_client_has_one_class(seed):
    """Digits, nine tenths of a client's samples of one class: the root has ten of each."""
    experiment = sm.Experiment(
        data="digits",
        model="logistic",
        clients=60,
        partition=sm.Groups(0.9),
        attack=sm.LabelFlip(),
        malicious=0.2,
        rounds=30,
        eval_every=30,
        defence=sm.SkyMask(),
        seed=seed,
    )
    found = sm.simulate(experiment, device="cpu").summary
    assert found["fnr"] < 0.25  # without peers 43 and 54 %
    assert found["fpr"] == 0
