"""Processes that share out the columns decide as one that holds them all."""

import dataclasses
import socket
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

import skymask as sm
from skymask import root_loss
from skymask.evidence import root_evidence
from skymask.randomness import generator
from skymask.shards import Shard

RULES = {
    "skymask": sm.SkyMask(tolerance=0.0),
    "skymask by layers": sm.SkyMask(tolerance=0.0),
    "paper": sm.PaperSkyMask(100.0, relative=True),
    "nr": sm.SkyMaskNR(),
}


def federation(index, memory=None, norm=True, moved=0.0):
    """Fifteen updates of a model, with batch norm or not, five turned round, and their round.

    The model has `moved` (d,) away from where it started.
    """
    draw = generator("shards", index)
    inputs = torch.randn(60, 8, generator=draw, dtype=torch.float64)
    labels = (inputs[:, :4].argmax(1) + torch.arange(60) // 30) % 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16),
            torch.nn.BatchNorm1d(16) if norm else torch.nn.Identity(),
            torch.nn.Tanh(),
            torch.nn.Linear(16, 4),
        ).double()
    sm.assign(model, sm.flatten(model) + moved)
    local = sm.LocalSGD(3, 20, 0.3)
    round = sm.server_round(
        model,
        F.cross_entropy,
        (inputs, labels),
        local,
        index=index,
        clients=range(15),
        counts=range(1, 16),
        client_buffers=torch.rand(15, 32 * norm, generator=draw, dtype=torch.float64),
        memory=memory,
    )
    noise = torch.randn(15, len(round.params), generator=draw, dtype=torch.float64)
    updates = round.server_update + 0.3 * round.server_update.std() * noise
    updates[:5] *= -1
    updates[0] = 200 * updates[0]  # so long that it is shortened
    return updates, round


def decisions(name, make, rule=None):
    """Three rounds' decisions of a rule by name; `make` gives the shard of d columns."""
    norm = name != "skymask by layers"
    with patch.object(root_loss, "_MANY", 0), ExitStack() as refusing:
        if not norm:  # by layers nobody's update is exchanged
            refusing.enter_context(patch.object(Shard, "each_row", None))
        return decided(rule or RULES[name], make, norm)


def decided(rule, make, norm):
    memory, found, moved = None, [], 0.0
    for index in range(3):
        updates, round = federation(index, memory, norm, moved)
        shard = make(updates.shape[1])
        if index == 2:
            updates[7, 0], updates[8, -1] = float("nan"), float("inf")
        decision = rule(shard.part(updates), dataclasses.replace(round, shard=shard))
        decision = dataclasses.replace(decision, update=shard.whole(decision.update))
        found.append(decision)
        memory, moved = decision.memory, moved + decision.update
    return found


def as_one_of(rank, ranks, port, folder):
    """What a process does: decide with every rule and keep the decisions."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    try:
        found = {name: decisions(name, sm.shard) for name in RULES}
        with pytest.raises(sm.InputError, match="Krum needs all columns"):
            decisions("krum", sm.shard, sm.Krum(3))
        for shard in (sm.shard(50), sm.shard(50, dist.new_group())):
            for source in (0, ranks - 1):
                mine = torch.zeros(shard.at.stop - shard.at.start)
                vector = torch.arange(50.0) + source if rank == source else None
                shard.scatter(vector, mine, source)
                assert shard.whole(mine).equal(torch.arange(50.0) + source)
        with pytest.raises(sm.InputError, match="1 parameters leave nothing"):
            sm.shard(1)
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def shared(request, tmp_path_factory) -> list[dict[str, list[sm.Decision]]]:
    """The decisions of each of 2 or 3 processes."""
    folder: Path = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(as_one_of, (request.param, port, folder), request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("name", RULES)
def test_shared_out_columns_change_no_decision(shared, name):
    alone = decisions(name, lambda size: Shard())
    for here in shared:
        for expected, found in zip(alone, here[name], strict=True):
            assert found.accepted.equal(expected.accepted)
            assert 0 < found.accepted.sum() < 15
            torch.testing.assert_close(found.update, expected.update, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(
                found.scores, expected.scores, rtol=1e-6, atol=1e-9, equal_nan=True
            )
            if expected.buffers is not None:
                torch.testing.assert_close(found.buffers, expected.buffers)
            assert [reason is None for reason in found.reasons] == [
                reason is None for reason in expected.reasons
            ]
            for layer, ones in expected.evidence["ones"].items():
                torch.testing.assert_close(found.evidence["ones"][layer], ones, rtol=0, atol=0)
            if (resistance := expected.evidence.get("resistance")) is not None:
                torch.testing.assert_close(found.evidence["resistance"], resistance)
                assert resistance.any() == (found is not here[name][0])
                turning = expected.memory["turning"]
                found_turning = found.memory["turning"]
                assert found_turning["ids"].equal(turning["ids"])
                torch.testing.assert_close(found_turning["averages"], turning["averages"])
                assert turning["averages"].any()
        assert "not finite" in here[name][2].reasons[7]
        assert "not finite" in here[name][2].reasons[8]


@pytest.mark.parametrize("name", RULES)
def test_all_processes_decide_alike_to_the_bit(shared, name):
    first, *others = (here[name] for here in shared)
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert same.update.equal(one.update)
            assert same.scores.equal(one.scores) or same.scores.isnan().any()
            assert same.reasons == one.reasons


class Alone(Shard):
    """A part whose process hears nothing of the others."""

    def sum(self, value):
        return value * (2 if value.numel() == 1 else 1)  # all agree


def test_another_part_of_the_columns_is_another_computation():
    updates, round = federation(0, norm=False)
    length, found = round.server_update.norm(), {}
    with patch.object(root_loss, "_MANY", 0):
        for rank in (0, 1, 0):
            part = Alone(updates.shape[1], rank, 2)
            given = (round.params, part.part(updates), round.root, length, round.server_update)
            seen = root_evidence(round.loss, *given, part).descent
            assert seen.equal(found.setdefault(rank, seen))
    assert not found[0].equal(found[1])


def test_a_shard_is_made_where_processes_talk():
    with pytest.raises(sm.InputError, match=r"torch.distributed was not started.*torchrun"):
        sm.shard(100)


@pytest.mark.parametrize(("size", "ranks"), [(10, 3), (9, 3), (7, 2), (5, 5), (6, 1)])
def test_every_column_has_one_owner(size, ranks):
    vector = torch.arange(size)
    layers = {"a": slice(0, 4), "b": slice(4, size)}
    shards = [Shard(size, rank, ranks) for rank in range(ranks)]
    assert torch.cat([shard.part(vector) for shard in shards]).equal(vector)
    assert sum(shard.at.stop - shard.at.start for shard in shards) == size
    for name, at in layers.items():
        parts = [shard.part(vector)[shard.layers(layers)[name]] for shard in shards]
        assert torch.cat(parts).equal(vector[at])


def test_columns_of_another_width_are_refused():
    updates, round = federation(0)
    apart = dataclasses.replace(round, shard=Shard(updates.shape[1], 0, 2))
    with pytest.raises(sm.InputError, match="updates' columns"):
        sm.SkyMask()(updates, apart)
