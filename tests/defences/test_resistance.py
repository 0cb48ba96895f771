"""Resistance: the number, against plain loops, and whom it finds."""

import math

import pytest
import torch

from skymask.defences.parts import Parts
from skymask.defences.resistance import Resistance
from skymask.randomness import generator
from skymask.shards import Shard

D = 12
LAYERS = {"body": slice(0, 8), "head": slice(8, 12)}


class Valley:
    """Clients that lower convex losses of their own, (w - target).A (w - target) / 2 each.

    Their targets wander, all alike, so that there is always something to learn.
    """

    def __init__(self, clients: int, noise: float = 0.5) -> None:
        self.draw = generator("valley")
        roots = torch.randn(clients, D, D, generator=self.draw)
        self.curves = torch.eye(D) + roots @ roots.transpose(1, 2) / D
        self.targets = 3 * torch.randn(clients, D, generator=self.draw)
        self.noise, self.layers = noise, LAYERS
        self.params = torch.zeros(D)
        self.bend = 1.0
        """Below 0 the losses curve downwards."""
        self.memory = None

    def updates(self, ids: torch.Tensor) -> torch.Tensor:
        self.targets += torch.randn(D, generator=self.draw)
        return self.bend * self.trained(self.curves[ids], self.targets[ids])

    def server(self) -> torch.Tensor:
        """The root model's update, on data like everybody's."""
        return self.bend * self.trained(self.curves.mean(0)[None], self.targets.mean(0)[None])[0]

    def trained(self, curves: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        noise = self.noise * torch.randn(len(targets), D, generator=self.draw)
        return -0.2 * ((curves @ (self.params - targets)[:, :, None])[:, :, 0] + noise)

    def judge(self, ids, sent, keep: float = 0.9, accepted=None, sure: float = 3.0):
        """The round's resistance and reasons; the model takes the mean of the `accepted`."""
        parts = Parts.of(sent, self.server(), self.layers, Shard())
        found = Resistance.of(self.memory, ids, parts, self.params, keep)
        reasons, pushing = found.pushing(sure)
        step = sent[slice(None) if accepted is None else accepted].mean(0)
        self.memory = found.stored(self.memory, ids, parts, self.params, pushing, step)
        self.params = self.params + step
        return found, reasons


def play(rounds: int, poison=lambda sent, index: sent, noise: float = 0.5, first: int = 4):
    """20 clients in every round, of which all but the `first` are averaged.

    Gives the last round's resistance and every round's reasons.
    """
    valley, ids, told = Valley(20, noise), torch.arange(20), []
    for index in range(rounds):
        found, reasons = valley.judge(
            ids, poison(valley.updates(ids), index), accepted=ids >= first
        )
        told.append(reasons)
    return found, told


def flipped(sent, index=0):
    return torch.cat([-sent[:4], sent[4:]])


def test_the_number_is_what_its_definition_says():
    valley, ids, keep = Valley(3), torch.arange(3), 0.8
    sent, steps = [], []
    for _ in range(7):
        sent.append(valley.updates(ids))
        before = valley.params
        found, _ = valley.judge(ids, sent[-1], keep)
        steps.append(valley.params - before)
    for k, at in enumerate([slice(0, D), *LAYERS.values()]):
        for i in range(3):
            for numbers, share in ((found.slow, keep ** (1 / 3)), (found.lately, keep)):
                top = bottom = 0.0
                for then, now, step in zip(sent[:-1], sent[1:], steps[:-1], strict=True):
                    u, v, s = then[i, at].double(), now[i, at].double(), step[at].double()
                    x = float(
                        (u - v) @ s / (s.norm() * (u.square().sum() + v.square().sum()).sqrt())
                    )
                    top, bottom = share * top + x, share**2 * bottom + x * x
                assert float(numbers[i, k]) == pytest.approx(top / math.sqrt(bottom), rel=1e-4)


def test_honest_clients_resist_whatever_their_data_and_who_is_turned_round_pushes():
    found, told = play(40, flipped)
    assert (found.slow[:4, 0] < -2).all()
    assert (found.slow[4:, 0] > 1).all()  # the root, which comes last, too
    assert all(set(reasons) <= set(range(4)) for reasons in told)
    assert set(told[-1]) == set(range(4))
    assert "push the model on the way it went" in told[-1][0]


def test_without_poison_nobody_is_out():
    assert all(not reasons for reasons in play(200, first=0)[1])


def test_who_sends_noise_is_let_in_most_of_the_time():
    def noise(sent, index):
        sent[:4] = torch.randn(4, D, generator=generator("noise", index))
        return sent

    told = play(400, noise)[1]
    assert all(set(reasons) <= set(range(4)) for reasons in told)
    assert sum(map(len, told)) < 0.4 * 4 * 400


def test_a_layer_that_is_turned_round_shows_in_that_layer():
    def poison(sent, index):
        poisoned = sent.clone()
        poisoned[:4, LAYERS["body"]] *= -1
        return poisoned

    last = play(80, poison)[1][-1]
    assert set(last) == set(range(4))
    assert all("in layer body" in reason for reason in last.values())


def test_who_resists_as_a_whole_may_push_in_a_layer():
    def poison(sent, index):
        poisoned = sent.clone()
        poisoned[:4, LAYERS["head"]] *= -0.2
        if index < 20:  # out for pushing in all, and so in the layer
            poisoned[:4] *= -1
        return poisoned

    found, told = play(120, poison)
    head = found.names.index("head")
    assert set(told[19]) == set(range(4))
    assert (found.slow[:4, head] < -3).all()
    assert (found.slow[:4, 0] > 1).all()
    assert not told[-1]


def test_where_losses_curve_downwards_nobody_is_judged():
    valley, ids = Valley(20), torch.arange(20)
    valley.bend = -1.0
    for _ in range(12):
        found, reasons = valley.judge(ids, valley.updates(ids))
        assert not reasons
    assert (found.slow[:, 0] < -3).all()


def test_where_losses_begin_to_curve_downwards_nobody_is_judged_either():
    valley, ids = Valley(20), torch.arange(20)
    out = 0
    for index in range(160):
        valley.bend = 1.0 if index < 100 else -1.0
        _, reasons = valley.judge(ids, valley.updates(ids))
        out += len(reasons)
    assert out <= 0.02 * 60 * 20
    assert not reasons


def test_where_the_root_tells_nobody_apart_there_is_nothing_to_be_judged_with_descents():
    valley, ids = Valley(20), torch.arange(20)
    found, _ = valley.judge(ids, valley.updates(ids))
    assert found.of_clients == ()
    for _ in range(12):
        found, _ = valley.judge(ids, valley.updates(ids))
    slow, lately = found.of_clients
    assert torch.equal(slow, found.slow[:20, 0])
    assert torch.equal(lately, found.lately[:20, 0])
    valley.bend = -1.0
    for _ in range(30):
        found, _ = valley.judge(ids, valley.updates(ids))
    assert found.of_clients == ()


def test_after_one_round_nothing_is_known():
    found, (reasons,) = play(1)
    assert not found.slow.any()
    assert not reasons


def test_who_pushed_is_back_when_it_resists():
    def poison(sent, index):
        return flipped(sent) if index < 40 else sent

    _, told = play(120, poison, noise=0.1)
    assert 0 in told[39]
    assert 0 in told[41]  # not at once
    assert not told[-1]


def test_who_was_away_in_the_round_before_is_not_looked_at_and_keeps_what_is_known():
    valley, everybody = Valley(6), torch.arange(6)
    for _ in range(10):
        valley.judge(everybody, valley.updates(everybody))
    known, _ = valley.judge(everybody, valley.updates(everybody))
    there = torch.arange(5)
    valley.judge(there, valley.updates(there))
    back, _ = valley.judge(everybody, valley.updates(everybody))
    torch.testing.assert_close(back.slow[5], known.slow[5])
    assert not torch.equal(back.slow[:5], known.slow[:5])
    new, _ = valley.judge(torch.tensor([3, 5, 4]), valley.updates(torch.tensor([3, 5, 4])))
    assert (new.slow[1] != known.slow[5]).any()


def test_of_an_id_that_comes_twice_nothing_is_known_and_of_the_others_all_is():
    valley, ids = Valley(4), torch.tensor([0, 1, 1, 2])
    for _ in range(4):
        found, reasons = valley.judge(ids, valley.updates(ids))
    assert found.slow[:, 0].ne(0).tolist() == [True, False, False, True, True]
    assert not reasons
    back, _ = valley.judge(torch.arange(3), valley.updates(torch.arange(3)))
    assert back.slow[1, 0] == 0  # nor of what was sent twice


def test_a_model_that_stayed_where_it_was_tells_nothing():
    valley, ids = Valley(4), torch.arange(4)
    for _ in range(4):
        before = valley.params
        found, _ = valley.judge(ids, valley.updates(ids))
    valley.params = before
    torch.testing.assert_close(valley.judge(ids, valley.updates(ids))[0].slow, found.slow)


@pytest.mark.parametrize(("factor", "known"), [(0.1, True), (3.0, True), (-1.0, False)])
def test_a_model_that_took_a_multiple_of_the_step_is_as_good(factor, known):
    valley, ids = Valley(4), torch.arange(4)
    for _ in range(3):
        before = valley.params
        found, _ = valley.judge(ids, valley.updates(ids))
        valley.params = before + factor * (valley.params - before)
    assert bool(found.slow.any()) == known


def test_a_model_that_went_another_way_tells_nothing():
    valley, ids = Valley(4), torch.arange(4)
    for _ in range(3):
        found, reasons = valley.judge(ids, valley.updates(ids))
        valley.params = valley.params + torch.randn(D, generator=valley.draw)
    assert not found.slow.any()
    assert not reasons


def test_nobody_is_out_for_what_it_did_where_nothing_is_seen_of_anybody():
    valley, ids = Valley(20), torch.arange(20)
    for _ in range(40):
        _, reasons = valley.judge(ids, flipped(valley.updates(ids)), accepted=ids >= 4)
    assert set(reasons) == set(range(4))
    valley.params = valley.params + torch.randn(D, generator=valley.draw)
    assert not valley.judge(ids, valley.updates(ids))[1]


def test_what_another_process_remembers_is_of_other_columns():
    valley, ids = Valley(4), torch.arange(4)
    for _ in range(4):
        valley.judge(ids, valley.updates(ids))
    for other in ({"place": [1, 2]}, {"step": torch.zeros(D - 1)}, {"names": ["", "else"]}):
        known = valley.memory
        valley.memory = known | other
        assert not valley.judge(ids, valley.updates(ids))[0].slow.any()
        valley.memory = known


def test_what_is_remembered_of_another_model_is_forgotten():
    valley, ids = Valley(4), torch.arange(4)
    for _ in range(5):
        valley.judge(ids, valley.updates(ids))
    valley.layers = {"body": slice(0, 5), "other": slice(5, 12)}
    assert not valley.judge(ids, valley.updates(ids))[0].slow.any()


def test_huge_updates_do_not_break_the_number():
    def poison(sent, index):
        sent[0] *= 1e30 if index % 2 else 1.0
        return sent

    found, _ = play(6, poison)
    assert found.slow.isfinite().all()
    assert found.lately.isfinite().all()
