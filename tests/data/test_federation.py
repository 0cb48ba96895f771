"""The root set's composition, and that nothing is in two places."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skymask.data.embedded import digits, synthetic
from skymask.data.federation import divide, root_rows, wrong_labels
from skymask.data.partition import BySubject, Dirichlet, Groups, SizeSkew
from skymask.errors import InputError
from skymask.randomness import generator
from skymask.types import Batch, Dataset


def numbered(rows: int = 300, classes: int = 3) -> Dataset:
    """Every input is its own row number, so that it can be followed."""
    labels = torch.arange(rows) % classes
    train = Batch(torch.arange(rows, dtype=torch.float32).reshape(-1, 1), labels)
    test = Batch(-train.inputs[:classes] - 1, labels[:classes])
    return Dataset("numbered", train, test, classes, subjects=torch.arange(rows) // 50)


def root_counts(labels: torch.Tensor, classes: int, size: int, bias: float, seed: int = 1):
    rows = root_rows(labels, classes, size, bias, generator(seed))
    assert len(rows) == len(rows.unique()) == size
    return labels[rows].bincount(minlength=classes).tolist()


@pytest.mark.parametrize(
    ("bias", "counts"),
    [
        (0.1, [10] * 10),
        (0.5, [5, 5, 5, 5, 6, 6, 6, 6, 6, 50]),
        (0.8, [2, 2, 2, 2, 2, 2, 2, 3, 3, 80]),
        (0.95, [0, 0, 0, 0, 1, 1, 1, 1, 1, 95]),
        (0.0, [0, 11, 11, 11, 11, 11, 11, 11, 11, 12]),
    ],
)
def test_a_fraction_p_is_of_one_class_and_the_rest_is_even(bias, counts):
    labels = torch.arange(5000) % 10
    for seed in range(3):
        assert sorted(root_counts(labels, 10, 100, bias, seed)) == counts


def test_the_favoured_class_is_drawn():
    labels = torch.arange(5000) % 5
    favoured = set()
    for seed in range(40):
        counts = root_counts(labels, 5, 100, 0.6, seed)
        favoured.add(counts.index(60))
    assert favoured == set(range(5))


def test_other_classes_fill_in_for_a_short_one():
    labels = torch.tensor([0] * 100 + [1] * 2 + [2] * 100 + [3] * 100)
    counts = root_counts(labels, 4, 40, 0.25)
    assert counts[1] == 2
    assert 10 in counts
    assert sorted(counts) == [2, 10, 14, 14]


def test_the_fraction_is_exact_or_refused():
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert root_counts(labels, 2, 50, 0.9) == [45, 5]  # class 1 could not be the favoured one
    with pytest.raises(InputError, match=r"root_bias is 0\.6 but no class has 48 samples"):
        root_rows(labels, 2, 80, 0.6, generator(1))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(1, 90),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_the_root_set_has_its_exact_size_and_share_or_is_refused(labels, size, bias, seed):
    labels = torch.tensor(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            counts = root_counts(labels, 5, size, bias, seed)
        except InputError:
            # Only what cannot be done is refused: no class has the right share on both sides.
            have, favoured = labels.bincount(minlength=5), round(bias * size)
            assert not ((have >= favoured) & (len(labels) - have >= size - favoured)).any()
            return
    favoured = round(bias * size)
    assert favoured in counts
    others = list(counts)
    others.remove(favoured)
    assert sum(others) == size - favoured


@pytest.mark.parametrize("size", [0, -1, 31])
def test_a_root_set_larger_than_the_data_is_refused(size):
    with pytest.raises(InputError, match=rf"root_size is {size} but must be from 1 to 30"):
        root_rows(torch.arange(30) % 3, 3, size, 0.5, generator(1))


@pytest.mark.parametrize("bias", [-0.1, 1.1, float("nan")])
def test_a_bias_outside_0_to_1_is_refused(bias):
    with pytest.raises(InputError, match=r"root_bias is .* from 0 to 1"):
        root_rows(torch.arange(30) % 3, 3, 9, bias, generator(1))


def test_a_root_set_of_one_class_is_warned_of():
    with pytest.warns(UserWarning, match="holds one class only"):
        divide(numbered(), 3, SizeSkew(), root_size=20, root_bias=1.0)


@pytest.mark.parametrize("partition", [Groups(), Dirichlet(), SizeSkew()], ids=str)
@given(seed=st.integers(0, 1000), size=st.integers(1, 100))
def test_root_and_clients_share_no_sample_and_lose_none(partition, seed, size):
    data = numbered()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small root sets may be of one class
        parts = divide(data, 10, partition, root_size=size, seed=seed)
    seen = torch.cat([parts.root.inputs, parts.clients.inputs]).squeeze(1)
    assert seen.sort().values.equal(data.train.inputs.squeeze(1))
    assert parts.test.inputs.equal(data.test.inputs)
    assert parts.clients.offsets.dtype == torch.int64
    assert parts.clients.offsets[[0, -1]].tolist() == [0, 300 - size]
    assert len(parts.clients.counts) == 10
    # Labels stayed with their inputs.
    assert parts.clients.labels.equal(parts.clients.inputs.squeeze(1).long() % 3)
    assert parts.root.labels.equal(parts.root.inputs.squeeze(1).long() % 3)


@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0), (0.1, 6), (0.99, 59), (1.0, 60)])
def test_a_share_of_the_roots_labels_is_wrong_and_nothing_else(noise, wrong):
    clean = divide(numbered(), 3, SizeSkew(), root_size=60)
    noisy = divide(numbered(), 3, SizeSkew(), root_size=60, root_noise=noise)
    assert (noisy.root.labels != clean.root.labels).sum() == wrong
    assert noisy.root.labels.unique().tolist() == [0, 1, 2]
    assert noisy.root.inputs.equal(clean.root.inputs)
    assert noisy.clients.inputs.equal(clean.clients.inputs)
    assert noisy.clients.labels.equal(clean.clients.labels)


def test_which_labels_are_wrong_and_what_they_become_is_drawn():
    labels = torch.arange(90) % 3
    drawn = [wrong_labels(labels, 3, 0.5, generator(seed)) for seed in range(20)]
    assert drawn[0].equal(wrong_labels(labels, 3, 0.5, generator(0)))
    assert all((some != labels).sum() == 45 for some in drawn)
    shifts = torch.stack([(some - labels) % 3 for some in drawn])
    assert (shifts != 0).any(0).all()
    assert 0.4 < (shifts == 1).sum() / (shifts != 0).sum() < 0.6
    assert labels.equal(torch.arange(90) % 3)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_a_noise_outside_0_to_1_is_refused(noise):
    with pytest.raises(InputError, match=r"root_noise is .* from 0 to 1"):
        divide(numbered(), 3, SizeSkew(), root_size=20, root_noise=noise)


def test_samples_lie_client_after_client():
    data = numbered()
    clients = divide(data, 6, BySubject(), root_size=30).clients
    for client, (start, end) in enumerate(clients.offsets.unfold(0, 2, 1).tolist()):
        rows = clients.inputs[start:end].squeeze(1).long()
        assert (data.subjects[rows] == client).all()


def test_the_seed_decides_and_the_root_set_does_not_depend_on_the_partition():
    first, same = (divide(digits(), 20, Groups(), seed=5) for _ in range(2))
    assert first.clients.inputs.equal(same.clients.inputs)
    assert first.clients.offsets.equal(same.clients.offsets)
    assert first.root.inputs.equal(same.root.inputs)
    other = divide(digits(), 20, Groups(), seed=6)
    assert not first.clients.labels.equal(other.clients.labels)
    assert first.root.inputs.equal(divide(digits(), 30, SizeSkew(), seed=5).root.inputs)


def changed(part: str, **fields: torch.Tensor) -> Dataset:
    data = numbered()
    return replace(data, **{part: getattr(data, part)._replace(**fields)})


def with_label(part: str, label: int) -> Dataset:
    labels = getattr(numbered(), part).labels.clone()
    labels[1] = label
    return changed(part, labels=labels)


def with_input(part: str, value: float) -> Dataset:
    inputs = getattr(numbered(), part).inputs.clone()
    inputs[2] = value
    return changed(part, inputs=inputs)


@pytest.mark.parametrize("part", ["train", "test"])
def test_bad_samples_of_a_users_data_set_are_refused(part):
    where = f"{part} of data set 'numbered'"
    for label in (-1, 3):
        with pytest.raises(InputError, match=f"label in {where} is {label} .* from 0 to 2"):
            divide(with_label(part, label), 3, SizeSkew())
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(InputError, match=f"inputs in {where} must be finite but row 2"):
            divide(with_input(part, value), 3, SizeSkew())
    with pytest.raises(InputError, match=f"{where} has inputs"):
        divide(changed(part, labels=torch.zeros(5, dtype=torch.int64)), 3, SizeSkew())
    fractions = changed(part, labels=getattr(numbered(), part).labels / 2)
    with pytest.raises(InputError, match="must be integers"):
        divide(fractions, 3, SizeSkew())


def test_small_integers_are_fine_as_labels_and_inputs():
    data = numbered()
    train = Batch(data.train.inputs.long(), data.train.labels.to(torch.uint8))
    parts = divide(replace(data, train=train), 3, SizeSkew())
    assert parts.clients.labels.dtype == torch.int64
    assert parts.clients.inputs.dtype == torch.int64


def test_subjects_must_fit_the_training_rows():
    with pytest.raises(InputError, match="subjects of data set 'numbered'"):
        divide(replace(numbered(), subjects=torch.zeros(7)), 3, SizeSkew())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [2, 3]], "number of parts"),
        ([[0, 1], [2, 3], []], "client 2 would have no samples"),
        ([[0, 1], [2, 3], [3]], "exactly one client"),
        ([[0, 1], [2], [4]], "exactly one client"),
        ([[0], [1], [2]], "exactly one client"),
    ],
)
def test_a_users_partition_must_be_one(parts, message):
    def partition(labels, classes, clients, generator, subjects=None):
        return [torch.tensor(part, dtype=torch.int64) for part in parts]

    with pytest.raises(InputError, match=message):
        divide(numbered(9), 3, partition, root_size=5)


@pytest.mark.parametrize("clients", [0, -3])
def test_there_must_be_a_client(clients):
    with pytest.raises(InputError, match="clients is"):
        divide(synthetic(), clients, SizeSkew())


def test_a_root_set_that_leaves_too_little_is_refused():
    with pytest.raises(InputError, match="clients is 3 but must be at most 2"):
        divide(numbered(9), 3, SizeSkew(), root_size=7, root_bias=0.34)
