"""A small case of every kind of row of the detection table: digits, 30 clients, 60 rounds.

The table itself runs hundreds of rounds on the real data sets (`skymask table detection`).
"""

from dataclasses import replace
from functools import cache

import pytest

import skymask as sm
from skymask.data import Groups
from skymask.tables import detection
from skymask.tables.cell import Cell

SMALL = detection.Setting(
    "digits",
    "digits",
    60,
    layers=("1.weight", "3.weight"),
    parts=4,
    fields={"partition": Groups(0.5), "clients": 30, "eval_every": 5},
)
KINDS = (
    detection._clean,
    detection._paper_attacks,
    detection._many,
    detection._parts,
    detection._several,
    detection._others,
    detection._adaptive,
    detection._roots,
)
CELLS = {cell.row: cell for kind in KINDS for cell in kind(SMALL) if cell.column == detection.OURS}


@cache
def simulated(experiment: sm.Experiment) -> sm.Result:
    return sm.simulate(experiment, device="cpu")


def lost(cell: Cell) -> float:
    """Points of accuracy that the honest clients alone have more."""
    assert cell.yardstick is not None
    alone, guarded = (simulated(each).summary for each in (cell.yardstick, cell.experiment))
    return 100 * (alone["accuracy_last5"] - guarded["accuracy_last5"])


def let_in(cell: Cell, since: int = 20) -> float:
    """FNR from round `since` on."""
    rates = [record["fnr"] for record in simulated(cell.experiment).rounds[since:]]
    return sum(rates) / len(rates)


@pytest.mark.parametrize("row", ["digits none", "digits q=0.1 none", "digits q=0.9 none"])
def test_nobody_is_lost_where_nobody_attacks(row):
    cell = CELLS[row]
    assert simulated(cell.experiment).summary["fpr"] <= 0.01
    assert lost(cell) <= 0.5


@pytest.mark.parametrize(
    "row",
    [
        "digits label-flip",
        "digits min-sum",
        "digits fang-trim",
        "digits 40% label-flip",
        "digits 60% min-max",
        "digits 80% fang-trim",
        "digits single-layer 1.weight",
        "digits single-layer 3.weight",
        "digits mixed two",
        "digits mixed four",
        "digits alie",
        "digits ipm",
        "digits sign-flip",
        "digits diversified min-max",
        "digits root noise 10% label-flip",
        "digits root noise 10% fang-trim",
    ],
)
def test_attackers_are_out_and_the_honest_are_not(row):
    cell = CELLS[row]
    assert let_in(cell) <= 0.01
    assert simulated(cell.experiment).summary["fpr"] <= 0.01
    assert lost(cell) <= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_who_turns_round_in_the_middle_is_out_within_six_rounds(seed):
    late = sm.StartsAt(30, sm.SignFlip())
    experiment = replace(CELLS["digits sign-flip"].experiment, attack=late, seed=seed)
    result = simulated(experiment)
    missed = [record["fnr"] for record in result.rounds]
    assert missed[29] == 1
    assert max(missed[36:]) <= 0.01
    assert result.summary["fpr"] <= 0.01
    first = next(record for record in result.rounds[30:] if record["rejected"])
    assert all("turned round" in reason for reason in first["rejected"].values())


@pytest.mark.parametrize("seed", [1, 2])
def test_copies_are_found_where_but_two_of_them_are_drawn(seed):
    few = replace(CELLS["digits alie"].experiment, participation=0.3, seed=seed)
    result = simulated(few)
    missed = [record["fnr"] or 0.0 for record in result.rounds[10:]]
    assert sum(missed) / len(missed) <= 0.15
    assert result.summary["fpr"] == 0


def test_updates_turned_round_at_their_own_length_are_found_among_clients_of_few_classes():
    experiment = replace(
        CELLS["digits sign-flip"].experiment,
        attack=sm.SignFlip(scale=1.0),
        model="logistic",
        partition=Groups(0.7),
        clients=40,
    )
    result = simulated(experiment)
    assert max(record["fnr"] for record in result.rounds[10:]) <= 1 / 8
    assert result.summary["fpr"] == 0


@pytest.mark.parametrize(("seed", "most"), [(1, 0.02), (2, 0.4)])
def test_flippers_that_nobody_could_tell_by_themselves_are_out_as_a_camp(seed, most):
    """A linear model at q = 0.7: with each judged by itself 5 and 64 % are let in."""
    cell = CELLS["digits label-flip"]
    experiment = replace(
        cell.experiment,
        model="logistic",
        partition=Groups(0.7),
        clients=40,
        rounds=60,
        seed=seed,
    )
    result = simulated(experiment)
    assert let_in(replace(cell, experiment=experiment)) <= most
    assert result.summary["fpr"] == 0
    told = {why for round in result.rounds for why in round["rejected"].values()}
    assert any("as those of a camp do" in why for why in told)


def test_who_is_copied_goes_with_the_copies():
    cell = CELLS["digits mimic"]
    assert let_in(cell) <= 0.01
    # Of 24 honest clients the one that is copied, and another one now and then.
    assert max(record["fpr"] for record in simulated(cell.experiment).rounds) <= 2 / 24
    assert lost(cell) <= 1


@pytest.mark.parametrize(
    ("row", "most"),
    [
        ("digits split min-sum", 1.0),  # it does no harm
        ("digits split min-sum x4", 0.25),
        ("digits split sign-flip", 0.25),
        ("digits diversified min-sum", 0.25),
    ],
)
def test_poison_that_hides_in_a_layer_or_in_own_updates_costs_little(row, most):
    cell = CELLS[row]
    assert let_in(cell) <= most
    assert simulated(cell.experiment).summary["fpr"] <= 0.01
    assert lost(cell) <= 2
