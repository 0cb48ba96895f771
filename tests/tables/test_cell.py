import dataclasses
import json

import pytest

import skymask as sm
from skymask.experiment import to_json
from skymask.tables.cell import Cell, Entry, Table, View, identity, seedless
from tests.tables.small import experiment


def table() -> Table:
    cells = [
        Cell(f"{data} {attack}", column, sm.Experiment(data=data))
        for data in ("har", "digits")
        for attack in ("none", "min-sum")
        for column in ("FedAvg", "SkyMask")
    ]
    return Table("x", "X", tuple(cells), (View("all", (Entry("a", "FedAvg", "accuracy"),)),))


def test_the_same_experiment_has_one_identity_however_it_is_written():
    made = experiment(attack=sm.MinSum())
    written = json.loads(json.dumps(to_json(made.resolved())))
    assert identity(made) == identity(made.resolved()) == identity(written)
    assert len(identity(made)) == 16


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2},
        {"rounds": 5},
        {"attack": sm.MinMax()},
        {"defence": sm.SkyMask(tau=0.4)},
        {"partition": sm.Groups(0.4)},
        {"root_noise": 0.1},
        {"honest_only": True},
    ],
)
def test_another_experiment_has_another_identity(changed):
    base = experiment(defence=sm.SkyMask())
    other = dataclasses.replace(base, **changed)
    assert identity(base) != identity(other)
    assert (seedless(base) == seedless(other)) == ("seed" in changed)


def test_a_field_that_did_not_exist_had_its_default():
    written = to_json(experiment().resolved())
    del written["root_noise"]
    written["attack"]["settings"] = {}
    assert identity(written) == identity(experiment())


def test_an_experiment_with_something_of_ones_own_has_none():
    with pytest.raises(sm.InputError, match="your own"):
        identity(experiment(model=lambda: sm.models.mlp(64, 10)))


def test_select_takes_patterns_whatever_the_case():
    assert len(table().select()) == 8
    assert {c.row for c in table().select(["HAR*"])} == {"har none", "har min-sum"}
    both = table().select(["har none", "*min-sum"], ["sky*"])
    assert [(c.row, c.column) for c in both] == [
        ("har none", "SkyMask"),
        ("har min-sum", "SkyMask"),
        ("digits min-sum", "SkyMask"),
    ]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(sm.InputError, match=r"--rows 'cifar\*' matches none of 4: 'har none'"):
        table().select(["har*", "cifar*"])
    with pytest.raises(sm.InputError, match="--columns 'Krum' matches none of 2"):
        table().select(columns=["Krum"])


def test_a_table_that_is_cut_has_other_cells_and_other_files():
    cut = table().cut(150)
    rounds = {c.experiment.data: c.experiment.rounds for c in cut.cells}
    assert rounds == {"har": 150, "digits": 100}  # digits had 100 before
    assert (table().stem, cut.stem) == ("table-x", "table-x-150-rounds")
    har = [identity(t.cells[0].experiment) for t in (table(), cut)]
    assert har[0] != har[1]
    assert table().cut(None) == table()
