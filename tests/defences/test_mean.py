"""FedAvg is the weighted mean and nothing else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skymask import FedAvg, Round
from skymask.defences.screening import screened
from skymask.randomness import generator


def test_by_hand():
    updates = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    decision = FedAvg()(updates, Round(counts=torch.tensor([1, 1, 2])))
    assert decision.update.tolist() == [3.5, 7.0]
    assert decision.accepted.tolist() == [True, True, True]
    assert FedAvg()(updates, Round()).update.tolist() == [3.0, 6.0]


@given(st.data(), st.integers(1, 8), st.integers(1, 5))
def test_equal_to_numpy(data, n, d):
    updates = data.draw(arrays(np.float64, (n, d), elements=st.floats(-1e6, 1e6)))
    counts = data.draw(arrays(np.int64, n, elements=st.integers(1, 10**6)))
    update = FedAvg()(torch.from_numpy(updates), Round(counts=torch.from_numpy(counts))).update
    expected = np.average(updates, axis=0, weights=counts)
    np.testing.assert_allclose(update.numpy(), expected, rtol=1e-9, atol=1e-6)


def test_buffers_are_averaged_with_the_same_weights():
    buffers = torch.tensor([[0.0, 1.0], [8.0, 5.0]])
    round = Round(counts=torch.tensor([3, 1]), buffers=buffers)
    assert FedAvg()(torch.zeros(2, 3), round).buffers.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf, "too long", "huge"])
def test_one_pass_rejects_what_the_full_check_rejects(entry, dtype):
    value = {"too long": 0.9 * torch.finfo(dtype).max, "huge": torch.finfo(dtype).max ** 0.3}
    updates = torch.randn(6, 50, generator=generator("one pass")).to(dtype)
    updates[2, 7] = value.get(entry, entry)
    fully = screened(lambda rule, rows, round: FedAvg.__call__(rule, rows, round))
    found, expected = FedAvg()(updates, Round()), fully(FedAvg(), updates, Round())
    assert torch.equal(found.accepted, expected.accepted)
    assert bool(found.accepted[2]) == (entry == "huge")
    assert torch.equal(found.update, expected.update)
    assert found.reasons == expected.reasons
