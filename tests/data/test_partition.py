"""Partitions: nothing lost, nothing twice, nobody without samples, and the stated shares."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from skymask.data.partition import PARTITIONS, BySubject, Dirichlet, Groups, SizeSkew
from skymask.errors import InputError
from skymask.randomness import generator

PLAIN = [Groups(), Groups(q=0.1), Dirichlet(), Dirichlet(alpha=0.01), SizeSkew(), SizeSkew(3.0)]


def labels_of(rows: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, (rows,), generator=generator(seed, "labels"))


def sizes(parts: list[torch.Tensor]) -> list[int]:
    return [len(part) for part in parts]


@given(
    st.sampled_from(PLAIN),
    st.integers(1, 6),
    st.integers(1, 30),
    st.integers(0, 300),
    st.integers(0, 2**32),
)
def test_a_partition_covers_every_row_once_or_says_why_not(partition, classes, clients, rows, seed):
    labels = labels_of(rows, classes, seed)
    try:
        parts = partition(labels, classes, clients, generator(seed))
    except InputError:
        # Only groups may refuse what is possible by number: a group may be too small.
        assert rows < clients or isinstance(partition, Groups)
        return
    assert len(parts) == clients
    assert min(sizes(parts)) >= 1
    assert torch.cat(parts).sort().values.equal(torch.arange(rows))


@pytest.mark.parametrize("partition", PLAIN, ids=str)
def test_the_generator_decides(partition):
    labels = labels_of(600, 10)

    def draw(seed: int) -> list[list[int]]:
        return [part.tolist() for part in partition(labels, 10, 20, generator(seed))]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def own_group(parts: list[torch.Tensor], labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Share of each client's most frequent label."""
    counts = torch.stack([labels[part].bincount(minlength=classes) for part in parts])
    return counts.max(1).values / counts.sum(1)


@pytest.mark.parametrize("q", [0.2, 0.5, 0.9])
def test_a_sample_stays_in_its_own_group_with_probability_q(q):
    """One client a group: client c holds group g(c), recognised by its most frequent label."""
    classes, rows = 5, 50_000
    labels = labels_of(rows, classes)
    parts = Groups(q)(labels, classes, classes, generator(1))
    counts = torch.stack([labels[part].bincount(minlength=classes) for part in parts])
    totals = labels.bincount()
    own = counts.argmax(1)
    if q > 1 / classes:  # at q = 1 / C every label is equally frequent in every group
        assert own.sort().values.tolist() == list(range(classes))
        for client, label in enumerate(own.tolist()):
            for k in range(classes):
                p = q if k == label else (1 - q) / (classes - 1)
                spread = (p * (1 - p) * totals[k]).sqrt()
                assert abs(counts[client, k] - p * totals[k]) < 5 * spread
    else:
        assert (counts / totals - 1 / classes).abs().max() < 0.02


def test_q_of_one_gives_every_client_a_single_label():
    labels = labels_of(500, 5)
    parts = Groups(1.0)(labels, 5, 10, generator(1))
    assert own_group(parts, labels, 5).tolist() == [1.0] * 10


def test_clients_spread_evenly_over_groups_and_samples_evenly_over_clients():
    labels = labels_of(1000, 4).sort().values
    parts = Groups(1.0)(labels, 4, 10, generator(3))
    groups = torch.tensor([int(labels[part[0]]) for part in parts])
    assert sorted(groups.bincount().tolist()) == [2, 2, 3, 3]
    assert set(groups[:4].tolist()) != {0, 1, 2, 3}  # in a random order, not one after another
    for k in range(4):
        held = [len(parts[client]) for client in (groups == k).nonzero().squeeze(1)]
        assert max(held) - min(held) <= 1


def test_which_groups_get_one_more_client_is_drawn():
    labels = labels_of(1000, 4)
    larger = set()
    for seed in range(20):
        parts = Groups(1.0)(labels, 4, 5, generator(seed))
        groups = torch.tensor([int(labels[part[0]]) for part in parts])
        larger.add(int(groups.bincount().argmax()))
    assert larger == {0, 1, 2, 3}


def test_groups_need_a_client_for_each_class():
    with pytest.raises(InputError, match="clients is 9 but must be at least 10"):
        Groups()(labels_of(1000, 10), 10, 9, generator(1))


def test_a_client_without_samples_is_named():
    with pytest.raises(InputError, match=r"client \d+ would have no samples; use fewer clients"):
        Groups()(labels_of(20, 10), 10, 20, generator(1))


def test_a_single_class_is_one_group():
    parts = Groups()(torch.zeros(9, dtype=torch.int64), 1, 3, generator(1))
    assert sizes(parts) == [3, 3, 3]


def test_dirichlet_skews_labels_the_more_the_smaller_alpha():
    labels = labels_of(20_000, 10)
    means = [
        own_group(Dirichlet(alpha)(labels, 10, 20, generator(1)), labels, 10).mean()
        for alpha in (0.05, 0.5, 1000.0)
    ]
    assert means[0] > 0.6
    assert means[0] > means[1] > means[2]
    assert means[2] < 0.15


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    """Var(p) = (1 / n) (1 - 1 / n) / (n alpha + 1), here over many classes."""
    clients, alpha, classes = 5, 0.7, 400
    labels = torch.arange(classes * 200) % classes
    parts = Dirichlet(alpha)(labels, classes, clients, generator(1))
    shares = torch.stack([labels[part].bincount(minlength=classes) for part in parts]) / 200
    expected = 0.2 * 0.8 / (clients * alpha + 1)
    assert shares.var().item() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e9])
def test_extreme_dirichlet_still_serves_everybody(alpha):
    parts = Dirichlet(alpha)(labels_of(50, 3), 3, 50, generator(1))
    assert sizes(parts) == [1] * 50


def test_size_skew_leaves_labels_alone_and_spreads_sizes():
    labels = labels_of(100_000, 4)
    parts = SizeSkew(1.0)(labels, 4, 200, generator(1))
    logs = torch.tensor(sizes(parts)).double().log()
    assert logs.std().item() == pytest.approx(1.0, abs=0.15)
    large = max(parts, key=len)
    shares = labels[large].bincount(minlength=4) / len(large)
    assert (shares - 0.25).abs().max() < 0.05


def test_size_skew_of_zero_is_even():
    counts = sizes(SizeSkew(0.0)(labels_of(1003, 4), 4, 20, generator(1)))
    assert max(counts) - min(counts) <= 2


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_natural_clients_are_the_subjects(names):
    subjects = torch.tensor(names)
    labels = torch.zeros(len(names), dtype=torch.int64)
    known = sorted(set(names))
    parts = BySubject()(labels, 1, len(known), generator(1), subjects)
    for name, part in zip(known, parts, strict=True):
        assert part.tolist() == [row for row, other in enumerate(names) if other == name]


def test_natural_clients_must_be_as_many_as_subjects():
    labels, subjects = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 2])
    with pytest.raises(InputError, match="clients is 4 but must be 3"):
        BySubject()(labels, 1, 4, generator(1), subjects)
    with pytest.raises(InputError, match="names each row's subject"):
        BySubject()(labels, 1, 3, generator(1))


@pytest.mark.parametrize(
    ("make", "value"),
    [(Groups, 0.0), (Groups, 1.1), (Groups, float("nan"))]
    + [(Dirichlet, value) for value in (0.0, -1.0, float("inf"), float("nan"))]
    + [(SizeSkew, value) for value in (-0.1, float("inf"), float("nan"))],
)
def test_settings_out_of_bounds_are_refused_at_once(make, value):
    with pytest.raises(InputError, match=r"(q|alpha|sigma) is .* but must be"):
        make(value)


@given(st.sampled_from([Dirichlet(), SizeSkew()]), st.integers(0, 9), st.integers(1, 12))
def test_more_clients_than_samples_is_refused(partition, rows, clients):
    assume(clients > rows)
    with pytest.raises(InputError, match=f"clients is {clients} but must be at most {rows}"):
        partition(labels_of(rows, 2), 2, clients, generator(1))


@pytest.mark.parametrize("partition", [Groups(), Dirichlet()], ids=str)
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(partition, label):
    with pytest.raises(InputError, match=f"label is {label} but must be from 0 to 2"):
        partition(torch.tensor([0, 1, 2, label]), 3, 3, generator(1))


def test_every_partition_has_a_name_and_defaults():
    assert {type(make()) for make in PARTITIONS.values()} == {
        Groups,
        Dirichlet,
        SizeSkew,
        BySubject,
    }
