"""The data sets without files."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from skymask.data.embedded import digits, synthetic


def test_digits():
    data = digits()
    assert data.train.inputs.shape == (1438, 1, 8, 8)
    assert data.test.inputs.shape == (359, 1, 8, 8)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1
    assert data.train.labels.unique().tolist() == list(range(10))


def test_the_test_set_of_digits_holds_the_other_images():
    data = digits(seed=3)
    together = torch.cat([data.train.inputs, data.test.inputs]).flatten(1)
    everything = torch.cat([digits(seed=4).train.inputs, digits(seed=4).test.inputs]).flatten(1)
    assert sorted(together.tolist()) == sorted(everything.tolist())


@pytest.mark.parametrize("make", [digits, synthetic])
def test_the_seed_decides(make):
    assert make(1).train.inputs.equal(make(1).train.inputs)
    assert not make(1).train.inputs.equal(make(2).train.inputs)


@pytest.mark.parametrize("seed", range(1, 9))
def test_synthetic_can_be_learned_but_not_perfectly(seed):
    data = synthetic(seed)
    assert data.train.inputs.shape == (2000, 20)
    assert data.test.labels.bincount().tolist() == [50] * 10
    model = LogisticRegression(max_iter=1000).fit(*data.train)
    accuracy = model.score(*data.test)
    assert 0.9 < accuracy < 1
