"""SkyMask's own rule on a small real federation: who is thrown out, why, and who never is."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import skymask as sm
from skymask import Decision, InputError, PaperSkyMask, Round, SkyMask
from skymask.randomness import generator
from tests.reference import digits
from tests.test_laws import same_memory, saved

N = digits.CLIENTS
BAD = torch.arange(N) < 6
HARM = "against the labels of the root data set"
COPY = "a copy of"
APART = "in a cluster of"
LONG = "times as long as the median client's"


def some(updates: Tensor, round: Round, rows: Tensor) -> tuple[Tensor, Round]:
    """The clients `rows` alone, in that order."""
    return updates[rows], dataclasses.replace(
        round, clients=round.clients[rows], counts=round.counts[rows]
    )


def play(
    rule: sm.Defence, rounds: int, sent: Callable[[int, Tensor], Tensor], memory: object = None
) -> Iterator[Decision]:
    """The decisions on what clients send in one round after another, if they never move on."""
    updates, round = digits.honest()
    for index in range(rounds):
        now = dataclasses.replace(round, index=index, memory=memory)
        decision = rule(sent(index, updates.clone()), now)
        memory = decision.memory
        yield decision


def turned(updates: Tensor) -> Tensor:
    return torch.where(BAD[:, None], -updates, updates)


def copies(updates: Tensor) -> Tensor:
    updates[:6] = updates[10]
    return updates


def nearly_copies(updates: Tensor) -> Tensor:
    noise = torch.randn(6, updates.shape[1], generator=torch.Generator().manual_seed(1))
    updates[:6] = updates[10] * (1 + 1e-4 * noise)
    return updates


def scaled(updates: Tensor) -> Tensor:
    updates[:6] *= 5
    return updates


def one_long(updates: Tensor) -> Tensor:
    updates[0] *= 6
    return updates


def check_verdict(decision: Decision, bad: Tensor, *told: str) -> None:
    assert decision.accepted.equal(~bad)
    assert [reason is not None for reason in decision.reasons] == bad.tolist()
    for reason in filter(None, decision.reasons):
        assert any(words in reason for words in told), reason


# What honest clients have to fear: nothing.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 20])
def test_an_honest_round_loses_nobody(count):
    updates, round = some(*digits.honest(), torch.arange(count))
    decision = SkyMask()(updates, round)
    check_verdict(decision, torch.zeros(count, dtype=torch.bool))
    weights = round.counts / round.counts.sum()
    torch.testing.assert_close(decision.update, weights @ updates)
    assert "fallback" not in decision.evidence
    assert "unknown" not in decision.evidence


@pytest.mark.parametrize("q", [0.1, 0.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_clean_rounds_hardly_lose_anybody(q, seed):
    experiment = sm.Experiment(
        data="digits",
        partition=sm.Groups(q=q),
        rounds=20,
        eval_every=20,
        defence=SkyMask(),
        seed=seed,
    )
    assert sm.simulate(experiment, device="cpu").summary["fpr"] <= 0.02


# The reasons.


@pytest.mark.parametrize("count", [1, 2, 6, 9, 12, 16, 20])
def test_sign_flipped_clients_are_out_for_harm(count):
    updates, round = digits.flipped(count)
    flipped = torch.arange(N) < count
    first = SkyMask()(updates, round)
    # What one of them raises goes with the labels; that it raises the loss shows one round later.
    assert (first.accepted & flipped).sum() <= 1
    assert first.accepted[~flipped].all()
    second = SkyMask()(updates, dataclasses.replace(round, index=1, memory=first.memory))
    check_verdict(second, flipped, HARM, "raise the loss")
    if count < N:
        assert (second.scores[:count] < second.scores[count:].min()).all()


@pytest.mark.parametrize("count", [2, 5])
def test_harm_is_found_among_few_clients_as_well(count):
    updates, round = some(*digits.flipped(1), torch.arange(count))
    check_verdict(SkyMask()(updates, round), torch.arange(count) < 1, HARM)


@pytest.mark.parametrize(
    ("poison", "bad", "told"),
    [
        (copies, BAD | (torch.arange(N) == 10), [COPY]),
        (nearly_copies, BAD | (torch.arange(N) == 10), [COPY]),
        (scaled, BAD, [APART, LONG]),
        (one_long, torch.arange(N) < 1, [LONG]),
    ],
)
def test_copies_and_long_updates_are_out_although_they_agree_with_the_root(poison, bad, told):
    updates, round = digits.honest()
    decision = SkyMask()(poison(updates.clone()), round)
    check_verdict(decision, bad, *told)
    assert (decision.evidence["alignment"] > 0).all()
    weights = round.counts * ~bad
    torch.testing.assert_close(decision.update, weights / weights.sum() @ updates)


def test_a_group_of_longer_updates_is_a_cluster_apart():
    updates, round = digits.honest()
    sent = updates.clone()
    sent[:4] *= 3
    check_verdict(SkyMask()(sent, round), torch.arange(N) < 4, APART)


def test_two_that_send_the_same_may_be_a_coincidence():
    updates, round = digits.honest()
    sent = updates.clone()
    sent[0] = sent[1]
    assert SkyMask()(sent, round).accepted.all()


def test_somewhat_longer_updates_are_no_reason():
    updates, round = digits.honest()
    sent = updates.clone()
    sent[0] *= 2
    assert SkyMask()(sent, round).accepted.all()


@pytest.mark.parametrize("factor", [-20.0, -1.0, 10.0])
@pytest.mark.parametrize("layer", ["1", "3"])
def test_poison_in_one_layer_alone_is_found(layer, factor):
    result = simulated(sm.SingleLayer(layer, factor), rounds=3)
    assert result.summary["fnr"] == 0
    assert result.summary["fpr"] <= 0.05


@pytest.mark.parametrize(
    "attack",
    [sm.MinSum(), sm.MinMax(), sm.FangTrim(), sm.IPM(), sm.ALIE()],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("malicious", [0.3, 0.6])
def test_other_attacks_are_found_even_of_a_majority(attack, malicious):
    result = simulated(attack, rounds=5, malicious=malicious)
    assert result.summary["fnr"] == 0
    assert result.summary["fpr"] <= 0.05


def simulated(attack: sm.Attack, **settings) -> sm.Result:
    defaults = {"malicious": 0.3, "data": "digits", "eval_every": 20, "defence": SkyMask()}
    return sm.simulate(sm.Experiment(attack=attack, **(defaults | settings)), device="cpu")


def test_sixty_in_a_hundred_turned_round_are_out_in_every_round():
    result = simulated(sm.SignFlip(), rounds=8, malicious=0.6)
    assert {(r["fpr"], r["fnr"]) for r in result.rounds} == {(0.0, 0.0)}


# Over the rounds.


def test_label_flipped_clients_are_out_after_a_few_rounds():
    result = simulated(
        sm.LabelFlip(), rounds=12, model="logistic", local=sm.LocalSGD(5, 32, 0.5), malicious=0.3
    )
    assert result.rounds[0]["fnr"] > 0  # one round is not enough to be sure
    assert all(r["fnr"] == 0 for r in result.rounds[8:])
    assert all(r["fpr"] <= 0.08 for r in result.rounds)


def test_what_is_known_adds_up_over_rounds():
    def faintly(index: int, updates: Tensor) -> Tensor:
        noise = torch.randn(updates.shape[1], generator=torch.Generator().manual_seed(index))
        updates[0] = 0.4 * noise / noise.norm() - 0.07 * updates[0]
        return updates

    alignments = [d.evidence["alignment"][0].item() for d in play(SkyMask(), 12, faintly)]
    forgetful = [d.evidence["alignment"][0].item() for d in play(SkyMask(memory=0.0), 12, faintly)]
    # Without memory the numbers are those of the round; with it, their running averages.
    s = w = 0.0
    for average, observed in zip(alignments, forgetful, strict=True):
        s, w = 0.9 * s + 0.1 * observed, 0.9 * w + 0.1
        assert average == pytest.approx(s / w)
    assert torch.tensor(alignments).diff().std() < torch.tensor(forgetful).diff().std()


def test_masks_are_averaged_over_rounds():
    def sent(index: int, updates: Tensor) -> Tensor:
        return turned(updates) if index else updates

    def products(decision: Decision) -> Tensor:
        points = decision.evidence["points"]
        return points @ points.T

    _, both = play(SkyMask(dims=N), 2, sent)
    first, second = (products(d) for d in play(SkyMask(dims=N, memory=0.0), 2, sent))
    expected = (0.09 * first + 0.1 * second) / 0.19
    torch.testing.assert_close(products(both), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_client_that_behaves_again_comes_back():
    def sent(index: int, updates: Tensor) -> Tensor:
        return turned(updates) if index < 4 else updates

    decisions = list(play(SkyMask(), 14, sent))
    for decision in decisions[:4]:
        assert decision.accepted.equal(~BAD)
    assert decisions[-1].accepted.all()
    first = next(i for i, d in enumerate(decisions) if d.accepted.all())
    assert first > 4  # not at once


def test_an_attacker_that_starts_late_is_caught():
    def sent(index: int, updates: Tensor) -> Tensor:
        return turned(updates) if index >= 6 else updates

    decisions = list(play(SkyMask(), 14, sent))
    assert all(d.accepted.all() for d in decisions[:6])
    assert all((d.accepted & BAD).sum() <= 1 for d in decisions[7:])
    assert all(d.accepted.equal(~BAD) for d in decisions[11:])


@pytest.mark.parametrize("factor", [100.0, -1000.0])
def test_who_behaved_long_enough_may_not_carry_the_model_away_in_one_round(factor):
    def sent(index: int, updates: Tensor) -> Tensor:
        updates[0] *= factor if index == 20 else 1
        return updates

    *_, decision = play(SkyMask(), 21, sent)
    assert not decision.accepted[0]


@pytest.mark.parametrize("factor", [0.0, 1e-20])
def test_a_tiny_update_buys_no_huge_one(factor):
    def sent(index: int, updates: Tensor) -> Tensor:
        updates[0] *= 1e6 if index else factor
        return updates

    _, decision = play(SkyMask(), 2, sent)
    assert not decision.accepted[0]


def test_memory_goes_by_client_id():
    rule, order = SkyMask(), torch.randperm(N, generator=torch.Generator().manual_seed(5))
    memory = other = None
    for index in range(4):
        updates, round = digits.honest()
        updates = turned(updates) if index < 3 else updates
        straight = rule(updates, dataclasses.replace(round, memory=memory))
        mixed_updates, mixed_round = some(updates, round, order)
        mixed = rule(mixed_updates, dataclasses.replace(mixed_round, memory=other))
        assert mixed.accepted.equal(straight.accepted[order])
        assert not straight.accepted[:6].any()  # in the last round for what they did before
        # Shuffled anew, with the memory of the round before in another order.
        memory, other, order = straight.memory, mixed.memory, order.flip(0)


def test_clients_that_stay_away_are_remembered():
    rule, memory = SkyMask(), None
    updates, round = digits.honest()
    for rows in (range(20), range(6, 20), range(8, 20), range(20)):
        first = memory is None
        sent, now = some(turned(updates) if first else updates, round, torch.tensor([*rows]))
        decision = rule(sent, dataclasses.replace(now, memory=memory))
        memory = decision.memory
    # s = 0.9 (-0.1 a) + 0.1 a and w = 0.9 0.1 + 0.1, as if the rounds between had not been.
    usual = SkyMask(memory=0.0)(updates, round).evidence["alignment"]
    ratio = decision.evidence["alignment"][:6] / usual[:6]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.01 / 0.19), rtol=0, atol=0.03)
    assert decision.accepted[6:].all()


def test_partial_participation_finds_who_is_there():
    result = simulated(sm.SignFlip(), rounds=10, participation=0.5)
    assert {r["fnr"] for r in result.rounds} <= {0.0, None}
    assert result.summary["fpr"] <= 0.02


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_memory_that_was_saved_decides_the_same(rounds, tmp_path):
    def sent(index: int, updates: Tensor) -> Tensor:
        return turned(updates)

    *_, last = play(SkyMask(), rounds, sent)
    updates, round = some(*digits.honest(), torch.arange(2, 17).flip(0))
    loaded = saved(last.memory, tmp_path)
    assert same_memory(loaded, last.memory)
    kept, resumed = (
        SkyMask()(updates, dataclasses.replace(round, memory=memory))
        for memory in (last.memory, loaded)
    )
    assert kept.accepted.equal(resumed.accepted)
    assert kept.update.equal(resumed.update)
    assert kept.reasons == resumed.reasons
    assert same_memory(kept.memory, resumed.memory)


def test_a_memory_of_another_kind_is_no_memory():
    updates, round = digits.flipped(6)
    foreign = dataclasses.replace(round, memory=["something else"])
    assert SkyMask()(updates, foreign).accepted.equal(~BAD)


# What a decision says.


def test_permuting_clients_permutes_the_verdicts():
    updates, round = digits.flipped(6)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    decision, other = SkyMask()(updates, round), SkyMask()(*some(updates, round, order))
    assert other.accepted.equal(decision.accepted[order])
    torch.testing.assert_close(other.scores, decision.scores[order])
    torch.testing.assert_close(other.update, decision.update)


def test_the_evidence_speaks_of_every_client():
    updates, round = digits.flipped(6)
    decision = SkyMask()(updates, round)
    evidence = decision.evidence
    assert set(evidence) == {
        "points",
        "gain",
        "length",
        "alignment",
        "error",
        "raised",
        "resistance",
        "turning",
        "raised_error",
        "descent",
        "mask_steps",
        "flipped",
        "ones",
    }
    assert evidence["points"].shape == (N + 1, 2)  # the root's comes last
    assert isinstance(evidence["gain"], float)
    for name in ("length", "alignment", "error", "raised", "raised_error", "descent"):
        assert evidence[name].shape == (N,)
        assert evidence[name].isfinite().all()
    norms = updates.norm(dim=1).double()
    torch.testing.assert_close(evidence["length"], (norms / norms.median()).log())
    assert decision.scores.dtype == updates.dtype
    # After one round nothing is known of the descents, which is no doubt.
    sure = torch.maximum(
        evidence["alignment"] / evidence["error"], evidence["raised"] / evidence["raised_error"]
    ).clamp_max(0)
    torch.testing.assert_close(decision.scores, sure.to(updates))
    assert 1 <= evidence["mask_steps"] <= 20
    assert set(evidence["ones"]) == {"1.weight", "1.bias"}
    for ones in evidence["ones"].values():
        assert ones.shape == (N + 1,)
        assert 0 < ones.mean() < 1
    for i in range(6):
        assert f"(alignment {-sure[i].item():.1f} standard deviations" in decision.reasons[i]


def test_with_nobody_left_the_model_stays():
    updates, round = digits.flipped(20)
    before = SkyMask()(updates, round)
    decision = SkyMask()(updates, dataclasses.replace(round, index=1, memory=before.memory))
    check_verdict(decision, torch.ones(N, dtype=torch.bool), HARM, "raise the loss")
    assert not decision.update.any()
    assert decision.buffers is None
    assert "model stays" in decision.evidence["fallback"]


# A loss of one's own.


def own_loss(round: Round) -> Round:
    return dataclasses.replace(round, loss=lambda params, batch: round.loss(params, batch))


@pytest.mark.parametrize(
    ("poison", "bad"),
    [(lambda updates: updates, BAD & False), (copies, BAD | (torch.arange(N) == 10))],
)
def test_a_loss_of_ones_own_leaves_the_other_reasons(poison, bad):
    updates, round = digits.honest()
    decision = SkyMask()(poison(updates.clone()), own_loss(round))
    check_verdict(decision, bad, COPY)
    assert "no class scores" in decision.evidence["unknown"]
    assert "alignment" not in decision.evidence
    torch.testing.assert_close(decision.scores, -decision.evidence["length"].to(updates))


def test_long_updates_are_found_with_a_loss_of_ones_own():
    updates, round = digits.honest()
    sent = updates.clone()
    sent[0] *= 10
    check_verdict(SkyMask()(sent, own_loss(round)), torch.arange(N) < 1, LONG)


@pytest.mark.parametrize("slope", [0.0, math.nan])
def test_masks_that_learn_nothing_are_no_reason_to_trust_everybody(slope):
    updates, round = digits.flipped(6)
    flat = dataclasses.replace(round, loss=lambda params, batch: slope * params.sum())
    decision = SkyMask()(updates, flat)
    assert decision.evidence["mask_steps"] == 0
    assert "model stays" in decision.evidence["fallback"]
    assert not decision.update.any()
    assert all("no mask moved" in reason for reason in decision.reasons)


def test_masks_that_learn_nothing_leave_the_labels_to_decide():
    check_verdict(SkyMask(gamma=1e-6)(*digits.flipped(6)), BAD, HARM)


# Hostile and bad input.


@pytest.mark.parametrize("size", [1e2, 1e6, 1e15])
def test_long_turned_updates_are_out(size):
    updates, round = digits.honest()
    sent = updates.clone()
    sent[:6] *= -size
    decision = SkyMask()(sent, round)
    check_verdict(decision, BAD, HARM)
    assert decision.evidence["points"].isfinite().all()


def test_no_client_can_make_the_root_loss_overflow():
    updates, round = digits.honest()
    sent = updates.clone()
    sent[:6] *= -1e15
    values = []

    def steep(params, batch):
        values.append(params.pow(4).sum() + round.loss(params, batch))
        return values[-1]

    decision = SkyMask()(sent, dataclasses.replace(round, loss=steep))
    assert decision.evidence["mask_steps"] == len(values) > 0
    assert torch.stack(values).isfinite().all()
    assert not decision.accepted[:6].any()


@pytest.mark.parametrize("field", ["params", "loss", "root", "server_update"])
def test_a_missing_field_is_named(field):
    updates, round = digits.flipped(6)
    with pytest.raises(InputError, match=rf"round\.{field} is None.*server_round"):
        SkyMask()(updates, dataclasses.replace(round, **{field: None}))


def test_an_empty_round_is_bad_input():
    with pytest.raises(InputError, match=r"round\."):
        SkyMask()(torch.zeros(3, 4), Round())


def test_a_model_whose_outputs_are_no_tensor_is_judged_without_harm():
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, inputs):
            return self.layer(inputs), inputs

    draw = torch.Generator().manual_seed(1)
    root = torch.randn(20, 4, generator=draw), torch.arange(20) % 3
    round = sm.server_round(
        Pair(),
        lambda outputs, labels: F.cross_entropy(outputs[0], labels),
        root,
        sm.LocalSGD(1, 10, 0.1),
    )
    decision = SkyMask()(torch.randn(5, 15, generator=draw), round)
    assert "unknown" in decision.evidence


def test_the_rule_as_printed_is_at_hand():
    assert SkyMask.paper(5.0) == PaperSkyMask(5.0)


def test_a_layer_may_have_any_name():
    """Of a bare linear model it is "weight", which averages have for their own."""
    draw = generator("names")
    inputs = torch.randn(60, 5, generator=draw)
    labels = (inputs @ torch.randn(5, 3, generator=draw)).argmax(1)
    model, memory = torch.nn.Linear(5, 3), None
    for index in range(12):
        local = sm.LocalSGD(1, 20, 0.3)
        round = sm.server_round(
            model, F.cross_entropy, (inputs, labels), local, index=index, memory=memory
        )
        noise = torch.randn(10, len(round.params), generator=draw)
        updates = round.server_update + 0.5 * round.server_update.std() * noise
        decision = SkyMask()(updates, round)
        assert decision.accepted.all()
        memory = decision.memory
        sm.assign(model, sm.flatten(model) + decision.update)
    assert 0.5 < float(memory["shares"]["all"]["weight"].max()) < 1


def test_honest_clients_whose_biases_push_are_not_lost():
    """Of a convex loss each resists in all parameters together; in the biases by itself some push.

    Clients with more of one class than of the others, and a step on all of their samples.
    """
    draw = generator("biases")
    inputs = torch.randn(1300, 20, generator=draw)
    labels = (inputs @ torch.randn(20, 4, generator=draw)).argmax(1)
    model, memory = torch.nn.Sequential(torch.nn.Linear(20, 4)), None
    likely = [torch.where(labels[100:] == i % 4, 1.0, 0.05) for i in range(12)]
    own = [100 + torch.multinomial(each, 60, generator=draw) for each in likely]
    lost = 0
    for index in range(40):
        start, updates = sm.flatten(model), []
        for rows in own:
            model.zero_grad()
            F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            updates.append(-0.5 * torch.cat([p.grad.flatten() for p in model.parameters()]))
        root, local = (inputs[:100], labels[:100]), sm.LocalSGD(1, 60, 0.5)
        round = sm.server_round(model, F.cross_entropy, root, local, index=index, memory=memory)
        decision = SkyMask()(torch.stack(updates), round)
        lost += int((~decision.accepted).sum())
        memory = decision.memory
        sm.assign(model, start + decision.update)
    assert lost <= 0.01 * 40 * 12
