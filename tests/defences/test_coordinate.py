"""The median is numpy's, for even and odd n, whatever is sorted at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skymask import Median, Round
from skymask.defences import coordinate


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data(), n=st.integers(1, 9), d=st.integers(1, 6))
def test_equal_to_numpy(dtype, data, n, d):
    numbers = st.floats(-1e6, 1e6, width=32)
    updates = data.draw(arrays(dtype, (n, d), elements=numbers))
    decision = Median()(torch.from_numpy(updates), Round())
    np.testing.assert_allclose(decision.update.numpy(), np.median(updates, axis=0), rtol=1e-6)
    assert decision.accepted.all()


@pytest.mark.parametrize("entries", [1, 7, 20, 1000])
def test_columns_may_be_sorted_in_parts(monkeypatch, entries):
    updates = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(coordinate, "_ENTRIES", entries)
    assert Median()(updates, Round()).update.equal(updates.median(0).values)


def test_counts_do_not_weigh():
    updates = torch.tensor([[1.0], [2.0], [9.0]])
    assert Median()(updates, Round(counts=torch.tensor([1, 1, 1000]))).update.item() == 2
