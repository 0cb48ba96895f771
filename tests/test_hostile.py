"""Whatever clients send, every defence decides on something finite or says what is wrong."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability import hostile
from skymask import InputError, Round
from skymask.defences import DEFENCES
from skymask.randomness import generator
from tests.test_laws import DEFENCE_ROWS, defence

each_defence = pytest.mark.parametrize("name", DEFENCES)
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
D = 33
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-38, 1.0, 1e18, -1e19, 3e38]
COUNTS = [math.nan, math.inf, -1.0, 0.0, 1e-300, 1.0, 40.0, 1e15, 1e300]
VARIANCES = [math.nan, -1.0, 0.0, 1.0, 3e38, math.inf]


def honest() -> tuple[torch.Tensor, Round]:
    return hostile.federation(1)


@st.composite
def updates(draw: Any, n: int | None = None) -> torch.Tensor:
    """n rows: each as an honest client sends it, scaled, constant, or strewn with odd values."""
    size = n or draw(st.integers(1, 12))
    rows = honest()[0][:size].clone()
    for row in rows:
        kind = draw(st.sampled_from(["honest", "scaled", "constant", "strewn", "copy"]))
        if kind == "scaled":
            row *= draw(st.sampled_from([-1e38, -1e19, -1.0, 1e-45, 1e3, 1e15]))
        elif kind == "constant":
            row.fill_(draw(st.sampled_from(SPECIAL)))
        elif kind == "strewn":
            for place in draw(st.lists(st.integers(0, D - 1), min_size=1, max_size=4)):
                row[place] = draw(st.sampled_from(SPECIAL) | st.floats(width=32))
        elif kind == "copy":
            row[:] = rows[0]
    return rows


def asked(name: str, rows: Any, round: Round) -> Any:
    """The decision, held to what every decision must be; None if the input was refused."""
    n = len(rows)
    round = dataclasses.replace(round, generator=generator("hostile"))
    try:
        decision = defence(name)(rows, round)
    except InputError as refused:
        told = str(refused)
    else:
        told = None
    if told is not None:
        assert 10 < len(told) < 500
        assert "\n" not in told
        return None
    assert decision.update.shape == (D,)
    assert decision.update.isfinite().all()
    assert decision.accepted.shape == (n,)
    assert decision.buffers is None or decision.buffers.isfinite().all()
    return decision


@each_defence
@few
@given(rows=updates())
def test_any_updates_end_in_a_finite_decision_or_a_clear_error(name, rows):
    decision = asked(name, rows, hostile.of(honest()[1], len(rows)))
    if decision is None:
        # Refused is only what a rule cannot take from honest clients either.
        with pytest.raises(InputError):
            defence(name)(honest()[0][: len(rows)], hostile.of(honest()[1], len(rows)))
    else:
        unusable = ~rows.isfinite().all(1)
        assert not decision.accepted[unusable].any()


@each_defence
@settings(few, max_examples=2)
@given(rounds=st.lists(updates(12), min_size=3, max_size=3))
def test_the_model_stays_finite_over_rounds_that_feed_their_memory_back(name, rounds):
    round = honest()[1]
    assert round.params is not None
    for index, rows in enumerate(rounds):
        decision = asked(name, rows, dataclasses.replace(round, index=index))
        assert decision is not None
        params = round.params + 0.5 * decision.update
        assert params.isfinite().all()
        if DEFENCE_ROWS[name].robust and hostile_share(rows) <= 1 / 6:
            assert params.norm() < 100
        round = dataclasses.replace(round, params=params, memory=decision.memory)


def hostile_share(rows: torch.Tensor) -> float:
    return float((rows != honest()[0]).any(1).double().mean())


@each_defence
@few
@given(
    counts=st.lists(st.sampled_from(COUNTS), min_size=12, max_size=12),
    variances=st.lists(st.sampled_from(VARIANCES), min_size=12, max_size=12),
)
def test_hostile_counts_and_buffers_cost_their_sender_alone(name, counts, variances):
    rows, round = honest()
    buffers = torch.ones(12, 4)
    buffers[:, 2] = torch.tensor(variances)
    places = {"norm.running_mean": slice(0, 2), "norm.running_var": slice(2, 4)}
    told = torch.tensor(counts, dtype=torch.float64)
    decision = asked(
        name,
        rows,
        dataclasses.replace(round, counts=told, buffers=buffers, buffer_layers=places),
    )
    assert decision is not None
    bad = ~((told > 0) & (told <= 2**53)) | ~((buffers[:, 2] >= 0) & buffers[:, 2].isfinite())
    assert not decision.accepted[bad].any()
    assert all(decision.reasons[i] for i in bad.nonzero().flatten().tolist())


@pytest.mark.parametrize("name", [n for n in hostile.CASES if n != "1,000 identical"])
def test_every_input_of_the_table_is_decided_or_refused(name):
    ends = {rule: hostile.ended(make(), hostile.case(name, 1)) for rule, make in DEFENCES.items()}
    assert set(ends.values()) <= {"decisions", "clear errors"}, ends


@each_defence
def test_very_many_identical_updates_are_decided_on(name, monkeypatch):
    monkeypatch.setattr(hostile, "MANY", 200)  # 1,000 in the table
    assert hostile.ended(DEFENCES[name](), hostile.case("1,000 identical", 1)) == "decisions"


def test_the_table_tells_a_crash_from_a_decision_and_from_an_error():
    """The control: rules that break are counted as broken."""

    def raises(rows: Any, round: Round) -> Any:
        raise KeyError("x")

    def spoiled(rows: Any, round: Round) -> Any:
        decision = DEFENCES["fedavg"]()(rows, round)
        return dataclasses.replace(decision, update=decision.update * math.nan)

    def refuses(rows: Any, round: Round) -> Any:
        raise InputError("no")

    case = hostile.case("order permuted", 1)
    assert hostile.ended(raises, case).startswith("crashes: KeyError")
    assert hostile.ended(spoiled, case) == "non-finite"
    assert hostile.ended(refuses, case).startswith("crashes")
