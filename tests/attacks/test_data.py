"""Attacks on the data."""

import pytest
import torch

from skymask import ClientData, LabelFlip, NoAttack, Round

OFFSETS = torch.tensor([0, 3, 5, 9])
MALICIOUS = torch.tensor([True, False, True])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_label_flip_is_exact(dtype):
    labels = torch.tensor([0, 1, 9, 4, 0, 5, 6, 3, 8], dtype=dtype)
    data = ClientData(torch.rand(9, 2), labels, OFFSETS, classes=10)
    poisoned = LabelFlip().poison_data(data, MALICIOUS, torch.Generator())
    assert poisoned.labels.tolist() == [9, 8, 0, 4, 0, 4, 3, 6, 1]
    assert poisoned.labels.dtype == dtype
    assert poisoned.inputs is data.inputs
    assert poisoned.offsets is data.offsets
    assert labels.tolist() == [0, 1, 9, 4, 0, 5, 6, 3, 8]
    back = LabelFlip().poison_data(poisoned, MALICIOUS, torch.Generator())
    assert back.labels.equal(labels)


def test_the_middle_of_an_odd_number_of_classes_stays():
    data = ClientData(torch.zeros(3, 1), torch.tensor([0, 1, 2]), torch.tensor([0, 3]), classes=3)
    assert LabelFlip().poison_data(
        data, torch.tensor([True]), torch.Generator()
    ).labels.tolist() == [2, 1, 0]


def test_no_attack_is_none():
    data = ClientData(torch.rand(9, 2), torch.arange(9), OFFSETS, classes=9)
    updates = torch.rand(3, 4)
    assert NoAttack().poison_data(data, MALICIOUS, torch.Generator()) is data
    assert NoAttack().poison_updates(updates, MALICIOUS, Round()) is updates
    assert LabelFlip().poison_updates(updates, MALICIOUS, Round()) is updates
