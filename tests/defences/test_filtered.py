"""A detector and an aggregator as one: who is accepted, what is remembered, when all stays."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from skymask import FedAvg, Filtered, InputError, Krum, Median, Round, SkyMask, TrimmedMean
from skymask.components import describe, parse
from skymask.defences.screening import screened
from skymask.experiment import KINDS
from skymask.types import Decision
from tests.reference import digits

ROWS = torch.tensor([[9.0, 9], [1, 2], [3, 4], [5, 7], [8, 8]])


@dataclass(frozen=True)
class Rejects:
    """Rejects the clients of these ids, and remembers how often it was asked."""

    ids: tuple[int, ...] = ()
    scored: bool = False

    @screened
    def __call__(self, updates: torch.Tensor, round: Round) -> Decision:
        ids = round.clients.tolist()
        accepted = torch.tensor([i not in self.ids for i in ids])
        asked = 1 + (round.memory or {"asked": 0})["asked"]
        reasons = tuple(f"{self.ids} are out" if i in self.ids else None for i in ids)
        scores = -round.clients.double() if self.scored else None
        update = updates[accepted].sum(0)
        evidence = {"asked": asked, "removed": round.removed}
        return Decision(update, accepted, scores, {"asked": asked}, reasons, evidence=evidence)


def round_of(memory: Any = None) -> Round:
    return Round(clients=torch.arange(5), counts=torch.tensor([1, 2, 3, 4, 5]), memory=memory)


def test_the_aggregator_combines_whom_the_detector_leaves():
    decision = Filtered(Rejects((0, 4)), FedAvg())(ROWS, round_of())
    weights = torch.tensor([2.0, 3, 4]) / 9
    torch.testing.assert_close(decision.update, weights @ ROWS[1:4])
    assert decision.accepted.tolist() == [False, True, True, True, False]
    assert decision.reasons == ("(0, 4) are out", None, None, None, "(0, 4) are out")
    assert decision.scores is None
    assert "fallback" not in decision.evidence


def test_accepted_is_whom_both_accept():
    decision = Filtered(Rejects((0,), scored=True), Rejects((3,)))(ROWS, round_of())
    assert decision.accepted.tolist() == [False, True, True, False, True]
    assert decision.reasons == ("(0,) are out", None, None, "(3,) are out", None)
    assert decision.scores.tolist() == [0, -1, -2, -3, -4]
    assert decision.evidence["aggregator"] == {"asked": 1, "removed": 1}


def test_scores_of_the_aggregator_where_the_detector_has_none():
    decision = Filtered(Rejects((1,)), Rejects((3,), scored=True))(ROWS, round_of())
    assert decision.scores[[0, 2, 3, 4]].tolist() == [0, -2, -3, -4]
    assert decision.scores[1].isnan()


def test_the_removed_are_among_the_malicious_that_the_aggregator_assumes():
    rule = Filtered(Rejects((0, 4)), TrimmedMean(2))
    torch.testing.assert_close(rule(ROWS, round_of()).update, ROWS[1:4].mean(0))
    rule = Filtered(Rejects((4,)), TrimmedMean(2))  # one left to be found, at either end
    torch.testing.assert_close(rule(ROWS, round_of()).update, torch.tensor([4.0, 5.5]))
    removed = Round(clients=torch.arange(5), removed=3)
    decision = Filtered(Rejects((1,)), Rejects())(ROWS, removed)
    assert decision.evidence["removed"] == 3
    assert decision.evidence["aggregator"]["removed"] == 4


def test_both_memories_are_kept_apart():
    rule, memory = Filtered(Rejects((1,)), Rejects((2,))), None
    for asked in (1, 2, 3):
        memory = rule(ROWS, round_of(memory)).memory
        assert memory == {"detector": {"asked": asked}, "aggregator": {"asked": asked}}


def test_nobody_left_leaves_the_model_and_the_aggregators_memory():
    memory = {"detector": {"asked": 4}, "aggregator": {"asked": 2}}
    decision = Filtered(Rejects((0, 1, 2, 3, 4)), Rejects())(ROWS, round_of(memory))
    assert not decision.update.any()
    assert not decision.accepted.any()
    assert decision.memory == {"detector": {"asked": 5}, "aggregator": {"asked": 2}}
    assert "the detector left nobody" in decision.evidence["fallback"]
    assert decision.evidence["asked"] == 5
    assert None not in decision.reasons


def test_too_few_left_for_the_aggregator_leave_the_model():
    decision = Filtered(Rejects((0, 1, 2)), Krum(0))(ROWS, round_of())
    assert not decision.update.any()
    assert not decision.accepted.any()
    assert "left too few clients: krum needs" in decision.evidence["fallback"]
    assert decision.reasons[0] == "(0, 1, 2) are out"
    assert "n is 2 and f is 0" in decision.reasons[3]
    assert decision.memory == {"detector": {"asked": 1}, "aggregator": None}


def test_a_fallback_is_one_that_happened():
    @dataclass(frozen=True)
    class Stays:
        @screened
        def __call__(self, updates: torch.Tensor, round: Round) -> Decision:
            accepted = torch.ones(len(updates), dtype=torch.bool)
            return Decision(0 * updates[0], accepted, evidence={"fallback": "not yet", "points": 3})

    assert Filtered(Stays(), Stays())(ROWS, round_of()).evidence["fallback"] == "not yet"
    decision = Filtered(Stays(), Median())(ROWS, round_of())
    assert decision.update.equal(ROWS.median(0).values)
    assert "fallback" not in decision.evidence
    assert decision.evidence["points"] == 3


@pytest.mark.parametrize("aggregator", [FedAvg(), Median(), TrimmedMean(6)], ids=str)
def test_skymask_before_another_rule(aggregator):
    updates, round = digits.flipped(6)
    alone, decision = SkyMask()(updates, round), Filtered(SkyMask(), aggregator)(updates, round)
    assert decision.accepted.equal(alone.accepted)
    assert decision.scores.equal(alone.scores)
    assert decision.evidence["points"].equal(alone.evidence["points"])
    assert not decision.accepted[:6].any()
    if aggregator == FedAvg():
        torch.testing.assert_close(decision.update, alone.update)
    if aggregator == Median():
        middle = Median()(updates[alone.accepted], Round()).update
        assert decision.update.equal(middle)


def test_as_text():
    text = "filtered:detector=skymask,aggregator=(trimmed-mean:f=4)"
    rule = parse(text, KINDS, "defence")
    assert rule == Filtered(SkyMask(), TrimmedMean(4))
    assert parse("filtered:aggregator=krum", KINDS, "defence", f=0.3).aggregator == Krum(0.3)
    told = describe(rule, KINDS, "defence")["settings"]
    assert told["aggregator"] == {"name": "trimmed-mean", "settings": {"f": 4}}


@pytest.mark.parametrize("setting", ["detector", "aggregator"])
def test_bad_settings_are_refused(setting):
    with pytest.raises(InputError, match=f"{setting} is 'krum' but must be a defence object"):
        Filtered(**{setting: "krum"})
