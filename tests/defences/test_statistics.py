"""Poisoned running statistics of batch norm: how far they are, and that SkyMask throws them out."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import skymask as sm
from skymask.clients import plan
from skymask.defences.known import Known
from skymask.defences.statistics import shifted, shifts
from skymask.flat import flat_model
from skymask.local_sgd import LocalSGD
from skymask.randomness import generator
from skymask.server import as_client, server
from skymask.types import Batch

LAYERS = {
    "a.running_mean": slice(0, 2),
    "a.running_var": slice(2, 4),
    "b.running_mean": slice(4, 5),
    "b.running_var": slice(5, 6),
}
SERVER = torch.tensor([1.0, -1.0, 4.0, 1.0, 0.0, 9.0])


def moved(**changes: float) -> float:
    """The shift of a client that has the server's statistics but for some entries."""
    row = SERVER.clone()
    for place, value in changes.items():
        row[int(place[1:])] = value
    return float(shifts(row[None], SERVER, LAYERS)[0])


def test_a_shift_is_in_standard_deviations_of_the_features():
    assert moved() == 0
    # Two of the server's standard deviations in one of the two features of a layer.
    assert moved(_0=5.0) == pytest.approx(2 / math.sqrt(2), rel=1e-4)
    # Nine times the variance is three times the standard deviation.
    assert moved(_5=81.0) == pytest.approx(math.log(3), rel=1e-4)
    assert moved(_5=1.0) == pytest.approx(math.log(3), rel=1e-4)


def test_the_worst_layer_counts():
    assert moved(_0=5.0, _4=3.0) == pytest.approx(2 / math.sqrt(2), rel=1e-4)


def test_a_variance_of_zero_is_no_division_by_zero():
    assert math.isfinite(moved(_5=0.0))


def test_other_buffers_say_nothing():
    assert shifts(torch.ones(3, 2), torch.ones(2), {"scale": slice(0, 2)}) is None


# The verdict.


def judged(average: list[float], now: list[float]) -> set[int]:
    seen = {"length": torch.zeros(len(average) + 1, dtype=torch.float64)}
    seen["shift"] = torch.tensor([*average, 0.0], dtype=torch.float64)
    known = Known.of({}, torch.arange(len(average)), seen, {}, 0.9, 100)
    return set(shifted(known, torch.tensor(now), list(range(len(average))), 2.5))


def test_out_is_who_is_far_off_on_average_and_much_farther_than_the_others():
    assert judged([1.1, 0.2, 0.2, 0.3], [0.0] * 4) == {0}
    assert judged([0.9, 0.2, 0.2, 0.3], [0.0] * 4) == set()
    # Where all are far off, as in the first round, more is needed.
    assert judged([1.6, 0.8, 0.8, 0.7], [0.0] * 4) == set()
    assert judged([2.1, 0.8, 0.8, 0.7], [0.0] * 4) == {0}


def test_out_is_who_is_far_off_in_this_round():
    assert judged([0.2, 0.2, 0.2], [3.1, 2.9, 0.0]) == {0}


# In the rule.


def batch_norm_round(clients: int = 10):
    """Honest updates and statistics of clients that train a small model with batch norm."""
    draw = generator("statistics")
    # Classes far apart, so that features, and a layer's statistics, mean something.
    labels = torch.arange(60 * (clients + 1)) % 3
    inputs = torch.randn(len(labels), 6, generator=draw) + 2 * nn.functional.one_hot(labels, 6)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model, loss, local = flat_model(module), nn.functional.cross_entropy, LocalSGD(3, 20, 0.1)
    params, buffers = model.initial()
    parts = [Batch(inputs[i::11], labels[i::11]) for i in range(clients + 1)]
    trained = [
        plan(model, loss, local, as_client(part))(params, buffers, as_client(part), [0], i)
        for i, part in enumerate(parts[1:])
    ]
    updates, own = (torch.cat([each[k] for each in trained]) for k in (0, 1))
    return updates, server(model, loss, parts[0], local, 1).round(
        0, params, buffers, clients=torch.arange(clients), client_buffers=own
    )


def test_honest_statistics_are_accepted():
    updates, round = batch_norm_round()
    assert round.server_buffers.shape == round.buffers.shape[1:]
    assert sm.SkyMask()(updates, round).accepted.all()


@pytest.mark.parametrize("change", ["mean", "variance"])
def test_poisoned_statistics_are_thrown_out_and_do_not_reach_the_model(change):
    updates, round = batch_norm_round()
    buffers = round.buffers.clone()
    at = round.buffer_layers[f"1.running_{'mean' if change == 'mean' else 'var'}"]
    buffers[:2, at] = buffers[:2, at] + 10 if change == "mean" else 1000 * buffers[:2, at]
    decision = sm.SkyMask()(updates, dataclasses.replace(round, buffers=buffers))
    assert decision.accepted.tolist() == [False] * 2 + [True] * 8
    assert "batch norm statistics" in decision.reasons[0]
    assert torch.allclose(decision.buffers, round.buffers[2:].mean(0))


def test_without_the_servers_statistics_nothing_is_said_of_the_clients():
    updates, round = batch_norm_round()
    buffers = round.buffers.clone()
    buffers[0] += 100
    blind = dataclasses.replace(round, buffers=buffers, server_buffers=None)
    assert sm.SkyMask()(updates, blind).accepted.all()
