"""The presets keep to section IV and to the tables' cells."""

import pytest

from skymask.tables import FIGURES, TABLES
from skymask.tables.cell import identity
from skymask.tables.figures import BIASES, DIMENSIONS, NAMES, SHARES
from skymask.tables.measures import MEASURES
from skymask.tables.paper import ATTACKS, OURS, PRINTED


def identities(sheet):
    return {(c.row, c.column): identity(c.experiment) for c in sheet.cells}


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_draws_cells_that_are_there_and_every_cell_is_drawn(name):
    figure = FIGURES[name]()
    places = [(cell.row, cell.column) for cell in figure.cells]
    assert len(set(places)) == len(places)
    assert {place for page in figure.pages for place in page.places} == set(places)
    assert len({page.name for page in figure.pages}) == len(figure.pages)
    for page in figure.pages:
        for panel in page.panels:
            assert panel.shows != "trend" or panel.of in MEASURES
            for line in panel.lines:
                assert len(line.at) in (0, len(line.places))
                assert not line.at or panel.shows == "trend"
    assert all("[" not in row for row in figure.rows)  # a pattern's own character


def test_attacks_are_those_of_the_tables():
    assert set(NAMES) == set(ATTACKS)


def test_figure_4_tells_rules_the_true_share_and_has_some_below_one_half_only():
    figure = FIGURES["4"]()
    for cell in figure.cells:
        share = cell.experiment.malicious
        assert share in SHARES
        assert f" {share:.0%} " in cell.row
        assert getattr(cell.experiment.defence, "f", share) == share
        assert share < 0.5 or cell.column not in ("Trim", "Multi-Krum")
    page = next(page for page in figure.pages if page.name == "fashion-mnist-q0.5")
    assert (len(page.panels), page.columns) == (18, 3)
    assert [line.label for line in page.panels[0].lines] == [
        *("FedAvg", "Krum", "Trim", "Multi-Krum", "FLTrust", OURS, PRINTED)
    ]


@pytest.mark.parametrize("name", ["5", "6", "8"])
def test_cells_that_a_table_has_are_run_once(name):
    """All of Figure 5's; of the others those with the tables' own bias and dimensions."""
    usual = {"6": " p=0.1", "8": " dims=2"}.get(name)
    table, figure = identities(TABLES["2"]()), identities(FIGURES[name]())
    shared = {place: key for place, key in figure.items() if not usual or usual in place[1]}
    same = [p for p in shared if p[1].removesuffix(usual or "") in (OURS, PRINTED)]
    for row, column in shared if usual is None else same:
        if usual is None or column.endswith(usual):
            assert shared[row, column] == table[row, column.removesuffix(usual or "")]


def test_figures_6_and_7_share_their_cells_and_vary_the_bias_alone():
    wide, narrow = identities(FIGURES["6"]()), identities(FIGURES["7"]())
    assert narrow.items() <= wide.items()
    found = {cell.experiment.root_bias for cell in FIGURES["6"]().cells}
    assert found == set(BIASES)


def test_figure_8_varies_the_dimensions_alone():
    for cell in FIGURES["8"]().cells:
        assert cell.column.endswith(f" dims={cell.experiment.defence.dims}")
    assert {cell.experiment.defence.dims for cell in FIGURES["8"]().cells} == set(DIMENSIONS)


def test_a_figure_that_is_cut_has_other_cells_and_other_files():
    figure = FIGURES["1"]()
    cut = figure.cut(5)
    assert (figure.stem, cut.stem) == ("figure-1", "figure-1-5-rounds")
    assert {cell.experiment.rounds for cell in cut.cells} == {5}
    assert cut.pages == figure.pages
