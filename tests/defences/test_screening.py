"""One client's unusable message stops no round: it is rejected, the rule decides on the rest."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skymask import FedAvg, InputError, Median, Round
from skymask.defences.screening import screened
from skymask.types import Decision

N, D = 5, 3
UPDATES = torch.arange(15.0).view(N, D)
ROUND = Round(
    clients=torch.tensor([10, 11, 12, 13, 14]),
    params=torch.zeros(D),
    counts=torch.tensor([1.0, 2, 3, 4, 5]),
    buffers=torch.arange(1.0, 21).view(N, 4),
    buffer_layers={"norm.running_mean": slice(0, 2), "norm.running_var": slice(2, 4)},
)
BAD = 2


def spoiled(field: str, value: float, at: int = 0) -> tuple[torch.Tensor, Round]:
    """Updates and round with one bad entry of client `BAD`."""
    tensor = (UPDATES if field == "updates" else getattr(ROUND, field)).clone()
    tensor[BAD].view(-1)[at] = value
    if field == "updates":
        return tensor, ROUND
    return UPDATES, dataclasses.replace(ROUND, **{field: tensor})


def others(round: Round = ROUND) -> tuple[torch.Tensor, Round]:
    """Everybody but client `BAD`."""
    keep = torch.arange(N) != BAD
    fields = {name: getattr(round, name)[keep] for name in ("clients", "counts", "buffers")}
    return UPDATES[keep], dataclasses.replace(round, **fields)


@pytest.mark.parametrize("rule", [FedAvg(), Median()], ids=str)
@pytest.mark.parametrize(
    ("field", "value", "at", "reason"),
    [
        ("updates", math.nan, 1, "its update is not finite"),
        ("updates", math.inf, 1, "its update is not finite"),
        ("updates", -math.inf, 0, "its update is not finite"),
        ("updates", 1e38, 2, "its update is too long for its dtype"),
        ("counts", 0, 0, "its example count 0 is not between 0 and 2^53"),
        ("counts", -7, 0, "its example count -7 is not between 0 and 2^53"),
        ("counts", math.nan, 0, "its example count nan is not between 0 and 2^53"),
        ("counts", math.inf, 0, "its example count inf is not between 0 and 2^53"),
        ("buffers", math.nan, 0, "its buffers are not finite"),
        ("buffers", math.inf, 3, "its buffers are not finite"),
        ("buffers", -0.1, 3, "its norm.running_var is negative"),
    ],
)
def test_what_is_unusable_is_rejected_with_its_reason(rule, field, value, at, reason):
    decision = rule(*spoiled(field, value, at))
    expected = rule(*others())
    assert decision.accepted.tolist() == [True, True, False, True, True]
    assert decision.reasons == (None, None, reason, None, None)
    assert decision.update.equal(expected.update)
    assert decision.buffers.equal(expected.buffers)
    assert "fallback" not in decision.evidence


def test_a_negative_mean_is_no_negative_variance():
    assert FedAvg()(*spoiled("buffers", -0.1, 0)).accepted.all()


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (torch.zeros(4), r"its update has shape \(4,\), not \(3,\)"),
        (torch.zeros(0), r"its update has shape \(0,\), not \(3,\)"),
        (torch.zeros(1, 3), r"its update has shape \(1, 3\), not \(3,\)"),
        (torch.zeros(3, dtype=torch.float64), "float64"),
        (torch.zeros(3, dtype=torch.int64), "int64"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("round", [Round(params=torch.zeros(D)), Round()], ids=["params", "none"])
def test_a_vector_that_does_not_fit_is_rejected(vector, reason, bad, round):
    vectors = list(UPDATES)
    kept = torch.stack([v for i, v in enumerate(vectors) if i != bad])
    vectors[bad] = vector
    decision = FedAvg()(vectors, round)
    assert decision.accepted.tolist() == [i != bad for i in range(N)]
    assert [r is None for r in decision.reasons] == [i != bad for i in range(N)]
    assert re.search(reason, decision.reasons[bad])
    torch.testing.assert_close(decision.update, kept.mean(0))


def test_a_sequence_of_vectors_is_as_good_as_a_tensor():
    assert FedAvg()(list(UPDATES), ROUND).update.equal(FedAvg()(UPDATES, ROUND).update)


def test_with_nothing_usable_the_model_stays():
    updates = torch.full((N, D), math.nan)
    decision = FedAvg()(updates, dataclasses.replace(ROUND, memory={"kept": 1}))
    assert decision.update.tolist() == [0.0] * D
    assert not decision.accepted.any()
    assert decision.buffers is None
    assert decision.memory == {"kept": 1}
    assert decision.reasons == ("its update is not finite",) * N
    assert "model stays" in decision.evidence["fallback"]
    assert FedAvg()([torch.zeros(7)] * N, ROUND).update.tolist() == [0.0] * D


@pytest.mark.parametrize(
    ("updates", "says"),
    [
        (torch.zeros(0, 3), r"shape \(0, 3\)"),
        (torch.zeros(5, 0), r"shape \(5, 0\)"),
        (torch.zeros(5), r"shape \(5,\)"),
        (torch.zeros(5, 3, 1), r"shape \(5, 3, 1\)"),
        (torch.zeros(5, 3, dtype=torch.int64), "int64"),
        (torch.zeros(5, 3, dtype=torch.complex64), "complex64"),
        ([], "0 clients"),
        (torch.zeros(5, 4), r"round.params has length 3.*4"),
        (torch.zeros(4, 3), r"round.clients has length 5.*4"),
    ],
)
def test_updates_that_cannot_be_used_as_a_whole_are_bad_input(updates, says):
    with pytest.raises(InputError, match=says):
        FedAvg()(updates, ROUND)


@pytest.mark.parametrize("field", ["params", "server_update", "clients", "counts", "buffers"])
def test_a_field_of_another_length_is_bad_input(field):
    with pytest.raises(InputError, match=f"round.{field} has length 9"):
        FedAvg()(UPDATES, dataclasses.replace(ROUND, **{field: torch.ones(9)}))


def test_scores_and_reasons_of_the_rule_find_their_clients():
    @dataclasses.dataclass(frozen=True)
    class First:
        """Accepts the first client it sees, and says why not the others."""

        @screened
        def __call__(self, updates: torch.Tensor, round: Round) -> Decision:
            accepted = torch.arange(len(updates)) == 0
            named = zip(accepted, round.clients, strict=True)
            reasons = tuple(None if ok else f"not {int(client)}" for ok, client in named)
            return Decision(updates[0], accepted, updates[:, 0], reasons=reasons)

    updates = UPDATES.clone()
    updates[0] = math.nan
    decision = First()(updates, ROUND)
    assert decision.accepted.tolist() == [False, True, False, False, False]
    assert decision.scores[1:].equal(UPDATES[1:, 0])
    assert decision.scores[0].isnan()
    assert decision.reasons[1:] == (None, "not 12", "not 13", "not 14")
    assert decision.buffers.equal(ROUND.buffers[1])


def test_buffers_are_the_accepted_clients_and_stay_variances():
    decision = FedAvg()(*spoiled("updates", math.nan))
    _, round = others()
    weights = round.counts / round.counts.sum()
    torch.testing.assert_close(decision.buffers, weights @ round.buffers)
    assert FedAvg()(UPDATES, dataclasses.replace(ROUND, buffers=None)).buffers is None


@given(st.lists(st.floats(width=32), min_size=3, max_size=3), st.floats(), st.floats(width=32))
def test_no_single_client_turns_the_model_into_no_number(update, count, buffer):
    updates, counts, buffers = UPDATES.clone(), ROUND.counts.double(), ROUND.buffers.clone()
    updates[BAD], counts[BAD], buffers[BAD, 2] = torch.tensor(update), count, buffer
    round = dataclasses.replace(ROUND, counts=counts, buffers=buffers)
    decision = FedAvg()(updates, round)
    assert decision.accepted.sum() >= N - 1
    assert decision.update.isfinite().all()
    assert decision.buffers.isfinite().all()
    assert (decision.buffers[2:] >= 0).all()


@pytest.mark.parametrize("ids", [None, ROUND.clients])
def test_nobody_is_taken_for_another_where_one_is_left_out(ids):
    seen = []

    @screened
    def rule(self, updates, round):
        seen.append(round.clients)
        return Decision(updates.mean(0), torch.ones(len(updates), dtype=torch.bool))

    updates, round = spoiled("updates", torch.nan)
    rule(None, updates, dataclasses.replace(round, clients=ids))
    expected = torch.tensor([0, 1, 3, 4])
    assert seen[0].equal(expected if ids is None else expected + 10)
