"""Settings of local training, and which samples each step takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skymask.errors import InputError
from skymask.local_sgd import LocalSGD, batch_rows
from skymask.randomness import generator
from skymask.types import ClientData

SEED = 12345
SIZES = [9, 1, 30, 4]  # one client has fewer samples than a batch, one has a single sample


def clients(*shape: int, sizes=SIZES, dtype=torch.float64, classes=4) -> ClientData:
    rows, draw = sum(sizes), generator("clients", *shape)
    inputs = torch.randn(rows, *shape, dtype=dtype, generator=draw)
    labels = torch.randint(classes, (rows,), generator=draw)
    return ClientData(inputs, labels, torch.tensor([0, *sizes]).cumsum(0), classes)


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    steps=st.integers(1, 5),
    batch=st.integers(1, 8),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_batches_are_epochs_of_the_clients_own_rows(counts, steps, batch, seed, data):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    parts = ClientData(torch.zeros(sum(counts), 1), torch.zeros(sum(counts)), offsets, 1)
    chosen = data.draw(st.permutations(range(len(counts))))[
        : data.draw(st.integers(1, len(counts)))
    ]
    rows = batch_rows(parts, chosen, LocalSGD(steps, batch), seed)
    assert rows.shape == (len(chosen), steps, batch)
    for client, own in zip(chosen, rows.flatten(1).tolist(), strict=True):
        mine = range(int(offsets[client]), int(offsets[client + 1]))
        for start in range(0, len(own), len(mine)):
            epoch = own[start : start + len(mine)]
            assert set(epoch) <= set(mine)
            assert len(set(epoch)) == len(epoch)
    alone = batch_rows(parts, chosen[-1:], LocalSGD(steps, batch), seed)
    assert alone.equal(rows[-1:])


def test_batches_do_not_depend_on_how_many_rows_others_hold():
    def first_client(*counts: int) -> torch.Tensor:
        data = clients(1, sizes=counts)
        return batch_rows(data, range(len(counts)), LocalSGD(3, 4), SEED)[0]

    assert first_client(7, 2, 40).equal(first_client(7))


def test_batches_differ_between_seeds_clients_and_epochs():
    data = clients(1, sizes=[30, 30])
    rows = batch_rows(data, [0, 1], LocalSGD(2, 30), SEED)
    own = rows - torch.tensor([0, 30])[:, None, None]
    assert not own[0].equal(own[1])
    assert not rows[0, 0].equal(rows[0, 1])
    assert not rows.equal(batch_rows(data, [0, 1], LocalSGD(2, 30), SEED + 1))


def test_every_row_is_as_likely_to_come_first():
    data = clients(1, sizes=[5])
    first = torch.stack(
        [batch_rows(data, [0], LocalSGD(1, 1), seed).view(()) for seed in range(600)]
    )
    assert first.bincount(minlength=5).min() >= 80  # 120 expected; 80 is four deviations away


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1, 1.5, float("nan")]),
        ("batch", [0, -3, 2.5]),
        ("lr", [0, -0.1, float("inf"), float("nan")]),
    ],
)
def test_settings_are_checked(field, values):
    for value in values:
        with pytest.raises(InputError, match=rf"{field}.*is {value}"):
            LocalSGD(**{field: value})
