"""The presets keep to section IV-A."""

import dataclasses

import pytest

import skymask as sm
from skymask.experiment import DEFAULTS
from skymask.preparation import malicious_clients
from skymask.tables import TABLES
from skymask.tables.cell import identity
from skymask.tables.measures import MEASURES
from skymask.tables.paper import ATTACKS, MALICIOUS, OURS, PRINTED, table_1, table_2, table_3
from skymask.tables.published import RULES

PAPERS = ("1", "2", "3", "4")


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_an_experiment_and_stands_alone_in_its_place(name):
    table = TABLES[name]()
    places = [(cell.row, cell.column) for cell in table.cells]
    assert len(set(places)) == len(places)
    known = {identity(cell.experiment) for cell in table.cells}
    for cell in table.cells:
        assert cell.experiment.resolved().rounds
        assert "[" not in cell.row  # a pattern's own character
        assert cell.yardstick is None or identity(cell.yardstick) in known


@pytest.mark.parametrize("name", TABLES)
def test_every_view_shows_measures_of_columns_that_are_there(name):
    table = TABLES[name]()
    for view in table.views:
        assert table.select([view.rows])
        for entry in view.entries:
            assert entry.column in table.columns
            assert entry.measure in {*MEASURES, "difference", "target"}


@pytest.mark.parametrize("name", PAPERS)
def test_settings_are_those_of_section_iv_a(name):
    for cell in TABLES[name]().cells:
        e = cell.experiment.resolved()
        usual = DEFAULTS[e.data]
        local = usual.local
        if e.data == "cifar-10":  # the table says so
            local = dataclasses.replace(local, precision="bfloat16")
        assert (e.rounds, e.local, e.model) == (usual.rounds, local, usual.model)
        assert (e.malicious, e.server_lr, e.root_size, e.root_bias) == (0.2, 0.5, 100, 0.1)
        assert e.participation == 1
        assert not e.honest_only  # attackers replace clients, they are not added
        if name != "4":
            assert e.clients == usual.clients


def test_malicious_clients_replace_honest_ones():
    """20 of 100 clients, so that 80 honest ones are left."""
    (cell,) = table_1().select(["fashion-mnist q=0.5 min-max"], ["FedAvg"])
    e = cell.experiment.resolved()
    marks = malicious_clients(e.clients, e.malicious, 1)
    assert (len(marks), int(marks.sum())) == (100, 20)


def test_table_1_has_five_settings_seven_attacks_and_nine_rules():
    table = table_1()
    assert len(table.rows) == 5 * 7
    assert table.columns == [*RULES, PRINTED]
    assert len(table.cells) == 35 * 9
    assert all(cell.published for cell in table.cells)
    shares = {cell.experiment.defence.f for cell in table.cells if cell.column in RULES[2:6]}
    assert shares == {MALICIOUS}
    gammas = {c.experiment.data: c.experiment.defence.gamma for c in table.select((), [PRINTED])}
    assert gammas == {"fashion-mnist": 1e7, "cifar-10": 1e8, "har": 1e7}
    assert {c.row.rpartition(" ")[2] for c in table.cells} == set(ATTACKS)


def test_differences_of_table_1_are_to_fedavg_without_attack():
    for cell in table_1().cells:
        held_to = cell.yardstick
        assert type(held_to.attack) is sm.NoAttack
        assert type(held_to.defence) is sm.FedAvg
        assert (held_to.data, held_to.partition) == (
            cell.experiment.data,
            cell.experiment.partition,
        )


def test_a_cell_of_two_tables_is_one():
    first, second, third = (
        {(c.row, c.column): identity(c.experiment) for c in made().cells}
        for made in (table_1, table_2, table_3)
    )
    for row in table_2().rows:
        for column in (OURS, PRINTED):
            assert first[row, column] == second[row, column] == third[row, f"{column} tau=0.5"]


def test_table_3_varies_tau_alone():
    base = {(cell.row, cell.column): cell.experiment for cell in table_1().cells}
    for cell in table_3().cells:
        column, _, tau = cell.column.partition(" tau=")
        assert cell.experiment.defence.tau == float(tau)
        at_half = dataclasses.replace(cell.experiment.defence, tau=0.5)
        same = dataclasses.replace(cell.experiment, defence=at_half)
        assert same == base[cell.row, column]


def test_table_4_has_the_papers_numbers_of_clients():
    cells = TABLES["4"]().cells
    assert {(cell.experiment.data, cell.experiment.clients) for cell in cells} == {
        ("fashion-mnist", 500),
        ("fashion-mnist", 1000),
        ("cifar-10", 200),
        ("cifar-10", 500),
    }
    assert all(f" n={cell.experiment.clients} " in cell.row for cell in cells)
    assert {c.row.rpartition(" ")[2] for c in cells if c.column == "FedAvg"} == {"none"}
    assert all(cell.published for cell in cells)
