"""Turning: the averages, against plain loops, and whom they find."""

import dataclasses

import pytest
import torch

from skymask.defences.turning import Sketches, Turning
from skymask.geometry import sketch
from skymask.randomness import generator
from skymask.shards import Shard

D = 3000
KEEP = 0.9


class Clients:
    """Clients that send what their data wants, under noise that is as strong.

    Every other round all of them go back and forth along one direction besides, as across a valley.
    """

    def __init__(self, many: int) -> None:
        self.draw = generator("turning")
        self.wants, self.root = self.normal(many), self.normal(1)
        self.valley, self.index = 2 * self.normal(1), 0
        self.memory = None

    def normal(self, many: int) -> torch.Tensor:
        return torch.randn(many, D, generator=self.draw)

    def sent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The updates (n, d) of a round and the server's own (d,)."""
        self.index += 1
        common = self.valley * (-1) ** self.index
        updates = self.wants + common + self.normal(len(self.wants))
        return updates, (self.root + common + self.normal(1))[0]

    def judge(self, updates, server, ids=None, keep: float = KEEP):
        """The round's turning and its reasons."""
        ids = torch.arange(len(updates)) if ids is None else ids
        sketches = Sketches.of(self.memory, updates, server, Shard(), None)
        found = Turning.of(self.memory, ids, sketches, keep, 3.0)
        self.memory = found.state
        return found, found.reasons()


def play(rounds: int, poison=lambda updates, server, index: (updates, server), many: int = 12):
    """Every round's turning and reasons."""
    clients, told = Clients(many), []
    for index in range(rounds):
        told.append(clients.judge(*poison(*clients.sent(), index)))
    return told


def turned_from(start: int, until: int = 10**6):
    """The first four clients turn their updates round in rounds `start` to `until` - 1."""

    def poison(updates, server, index):
        if start <= index < until:
            updates = torch.cat([-updates[:4], updates[4:]])
        return updates, server

    return poison


def test_the_averages_are_what_their_definition_says():
    clients, keep = Clients(3), 0.8
    rounds = [clients.sent() for _ in range(24)]
    here = [torch.arange(3) if t % 3 else torch.tensor([2, 0]) for t in range(24)]
    for (updates, server), ids in zip(rounds, here, strict=True):
        found, _ = clients.judge(updates[ids], server, ids, keep)
    for client in (*range(3), -1):
        fast, slow = torch.zeros(2, 512)
        times = 0
        for (updates, server), ids in zip(rounds, here, strict=True):
            if client in ids or client == -1:
                row = server if client == -1 else updates[client]
                new = sketch(row[None], 512, 0)[0]
                new = new / new.norm()
                fast = keep**3 * fast + (1 - keep**3) * new
                slow = keep ** (1 / 5) * slow + (1 - keep ** (1 / 5)) * new
                times += 1
        assert times > 14
        cosine = torch.nn.functional.cosine_similarity(fast.double(), slow.double(), dim=0)
        place = [*here[-1].tolist(), -1].index(client)
        torch.testing.assert_close(found.cosines[place], cosine, rtol=1e-4, atol=1e-5)


def test_nobody_turns_who_goes_on_as_before_under_noise_and_to_and_fro():
    told = play(60)
    assert not any(reasons for _, reasons in told)
    assert min(float(found.cosines.min()) for found, _ in told) > 0.2


@pytest.mark.parametrize(("dims", "usual"), [(1, 0.0), (2, 0.3), (4, 0.3), (D, 0.0), (D, 0.3)])
def test_noise_of_few_dimensions_has_hardly_anybody_turn(dims, usual):
    draw = generator("noise", dims)
    axes = torch.randn(dims, D, generator=draw)
    wants = usual * torch.randn(30, dims, generator=draw)
    clients, out = Clients(30), 0
    for _ in range(100):
        noise = torch.randn(30, dims, generator=draw)
        _, reasons = clients.judge((wants + noise) @ axes, clients.sent()[1])
        out += len(reasons)
    assert out <= 0.01 * 30 * 100


def test_who_turns_round_is_out_within_five_rounds_and_stays_out():
    told = play(60, turned_from(30))
    assert not any(reasons for _, reasons in told[:31])
    assert all(set(reasons) == {0, 1, 2, 3} for _, reasons in told[34:])
    first = next(reasons for _, reasons in told if reasons)
    why = "its updates have turned round against what it sent before (cosine -0."
    assert all(reason.startswith(why) for reason in first.values())
    assert "have not turned back (cosine -0." in told[-1][1][0]


def test_who_turns_back_is_back():
    told = play(60, turned_from(20, 30))
    assert set(told[29][1]) == {0, 1, 2, 3}
    assert not any(reasons for _, reasons in told[35:])


def test_who_stays_turned_is_usual_in_the_end():
    told = play(400, turned_from(30), many=9)
    assert set(told[100][1]) == {0, 1, 2, 3}
    assert not told[-1][1]


@pytest.mark.parametrize("noisier", [1.0, 2.0])
def test_where_the_model_turns_nobody_has(noisier):
    draw = generator("noisier root")

    def all_of_them(updates, server, index):
        server = server + noisier * torch.randn(D, generator=draw)
        return (-updates, -server) if index >= 60 else (updates, server)

    told = play(260, all_of_them)
    assert min(float(found.cosines[:-1].min()) for found, _ in told) < -0.5
    assert not any(reasons for _, reasons in told)


def test_who_turned_before_the_root_model_is_in_while_it_has():
    def first_they_then_the_root(updates, server, index):
        updates, server = turned_from(30)(updates, server, index)
        return updates, -server if 45 <= index < 55 else server

    told = play(70, first_they_then_the_root)
    assert set(told[44][1]) == {0, 1, 2, 3}
    assert float(told[54][0].cosines[-1]) < 0
    assert not told[54][1]


def test_where_most_have_turned_nobody_has():
    def most(updates, server, index):
        return (torch.cat([-updates[:10], updates[10:]]) if index >= 30 else updates), server

    told = play(40, most)
    assert float(told[-1][0].cosines[:10].max()) < -0.35
    assert not any(reasons for _, reasons in told)


def test_of_fourteen_rounds_nothing_is_usual():
    told = play(14, turned_from(8))
    assert not any(reasons for _, reasons in told)
    assert (told[-1][0].cosines == 1).all()


@pytest.mark.parametrize("odd", [0.0, torch.nan, torch.inf, 1e38])
def test_an_update_without_direction_changes_nothing(odd):
    clients = Clients(4)
    for _ in range(20):
        before, _ = clients.judge(*clients.sent())
    updates, server = clients.sent()
    updates[1] = odd
    after, reasons = clients.judge(updates, server)
    assert not reasons
    assert after.cosines[1] == before.cosines[1]
    assert not after.cosines.equal(before.cosines)


def test_an_id_that_comes_twice_says_nothing():
    clients = Clients(4)
    for _ in range(20):
        before, _ = clients.judge(*clients.sent())
    after, _ = clients.judge(*clients.sent(), ids=torch.tensor([0, 1, 1, 3]))
    assert after.cosines[1] == after.cosines[2] == before.cosines[1]


def test_who_is_away_is_remembered():
    clients = Clients(12)
    for index in range(40):
        updates, server = turned_from(30)(*clients.sent(), index)
        here = torch.arange(12)
        if 20 <= index <= 35:
            here = here[(here != 2) & (here != 3)]
        found, reasons = clients.judge(updates[here], server, here)
    # Clients 2 and 3 have sent turned updates in four rounds only, with nothing forgotten before.
    assert set(reasons) == {0, 1, 2, 3}
    assert len(found.state["ids"]) == 13


def test_another_model_is_begun_anew():
    clients = Clients(4)
    for _ in range(20):
        clients.judge(*clients.sent())
    updates, server = clients.sent()
    found, _ = clients.judge(updates[:, 1:], server[1:])
    assert (found.cosines == 1).all()
    assert found.state["seen"].max() == 1


def test_the_signs_are_drawn_once():
    clients = Clients(3)
    updates, server = clients.sent()
    first = Sketches.of(None, updates, server, Shard(), generator("signs"))
    plain = Sketches.of(None, updates, server, Shard(), None)
    assert first.made != plain.made
    assert not torch.allclose(first.values, plain.values)
    found = Turning.of(None, torch.arange(3), first, KEEP, 3.0)
    again = Sketches.of(found.state, updates, server, Shard(), generator("others"))
    assert again.made == first.made
    assert again.values.equal(first.values)


def test_what_one_process_alone_remembers_counts_for_nobody():
    class Two(Shard):
        """A process beside another one, which has nothing and adds nothing."""

    clients = Clients(3)
    clients.judge(*clients.sent())
    both = Two(D, 1, 2)
    updates, server = (both.part(each) for each in clients.sent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Two, "sum", lambda shard, value: value)
        found = Sketches.of(clients.memory, updates, server, both, None)
    assert not found.known
    assert found.values.shape == (4, 512)


def test_a_sketch_shared_out_among_processes_is_the_whole_one():
    @dataclasses.dataclass(frozen=True)
    class Part(Shard):
        """A process that is told what the others' sums are."""

        def sum(self, value):
            return value

    updates, server = Clients(3).sent()
    whole = Sketches.of(None, updates, server, Shard(), None)
    parts = [
        Sketches.of(None, shard.part(updates), shard.part(server), shard, None)
        for shard in (Part(D, rank, 7) for rank in range(7))
    ]
    assert all(part.made == whole.made for part in parts)
    torch.testing.assert_close(sum(part.values for part in parts), whole.values)
