"""Updates taken apart, against numpy."""

import numpy as np
import pytest
import torch

from skymask.defences.parts import Parts, shares
from skymask.randomness import generator
from skymask.shards import Shard

LAYERS = {"body.weight": slice(0, 6), "body.bias": slice(6, 8), "head": slice(8, 15)}
SERVER = torch.randn(15, generator=generator("server"))


@pytest.fixture
def updates() -> torch.Tensor:
    return torch.randn(5, 15, generator=generator("parts"))


def test_all_parameters_come_first_and_then_each_layer(updates):
    parts = Parts.of(updates, SERVER, LAYERS, Shard())
    assert parts.names == ("", *LAYERS)
    step = torch.randn(15, generator=generator("step"))
    rows = torch.cat([updates, SERVER[None]]).double().numpy()  # the server's own comes last
    along = step.double().numpy()
    for k, at in enumerate([slice(0, 15), *LAYERS.values()]):
        np.testing.assert_allclose(parts.squares[:, k], (rows[:, at] ** 2).sum(1), rtol=1e-6)
        np.testing.assert_allclose(parts.along(step)[:, k], rows[:, at] @ along[at], atol=1e-5)
        np.testing.assert_allclose(parts.squares_of(step)[0, k], along[at] @ along[at], rtol=1e-6)


def test_a_model_of_one_layer_has_one_part(updates):
    layers = {"all": slice(0, 15)}
    parts = Parts.of(updates, SERVER, layers, Shard())
    assert parts.names == ("",)
    assert parts.squares.shape == (6, 1)
    assert shares(updates, layers, Shard()) == {}


def test_shares_are_beside_the_median_client_and_whatever_the_length(updates):
    usual = shares(updates, LAYERS, Shard())
    assert list(usual) == list(LAYERS)
    norms = updates.double().norm(dim=1)
    for name, at in LAYERS.items():
        share = updates[:, at].double().norm(dim=1) / norms
        torch.testing.assert_close(usual[name], (share / share.median()).log(), atol=1e-5, rtol=0)
    longer = updates * torch.tensor([1.0, 2.0, 0.1, 7.0, 1.0])[:, None]
    for name, share in shares(longer, LAYERS, Shard()).items():
        torch.testing.assert_close(share, usual[name], rtol=1e-5, atol=1e-5)


def test_of_a_layer_that_most_leave_alone_nothing_is_usual(updates):
    updates[:3, 6:8] = 0
    found = shares(updates, LAYERS, Shard())
    assert not found["body.bias"].any()
    updates[0] = 0  # and who sends nothing has no layer that is large
    assert shares(updates, LAYERS, Shard())["head"][0] < -100


def test_numbers_beyond_their_precision_are_no_share(updates):
    updates[0] = 1e30
    for share in shares(updates, LAYERS, Shard()).values():
        assert share.isfinite().all()
        assert share[0] < -100
