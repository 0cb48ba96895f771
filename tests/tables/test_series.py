"""What is drawn is what the records say; `drawn.py` has them."""

import pytest

from skymask.tables.series import find, pages, series
from tests.tables.drawn import CURVES, FIGURE, LOOK, RECORDS

FOUND = find(FIGURE, RECORDS)


def test_curves_are_means_over_seeds_of_the_accuracy_after_each_evaluation():
    fedavg, skymask = series(CURVES.panels[0], FOUND)  # Krum has no record
    assert (fedavg.label, skymask.label) == ("FedAvg", "SkyMask")
    assert fedavg.x == [2, 4]
    assert fedavg.y == pytest.approx([0.3, 0.6])
    assert (fedavg.low, fedavg.high, fedavg.seeds) == ([0.2, 0.4], [0.4, 0.8], (1, 2))
    assert (skymask.y, skymask.seeds) == ([0.5, 0.9], (1,))


def test_failures_are_the_rounds_with_a_malicious_client_accepted():
    first, second, skymask = series(CURVES.panels[2], FOUND)
    assert (first.x, first.y, first.rounds) == ([1, 2, 4], [1.0, 1.0, 1.0], 4)
    assert (second.x, second.rounds) == ([], 4)
    assert (skymask.x, skymask.y) == ([2], [0.25])


def test_trends_are_a_measure_of_each_cell_at_its_place():
    (trend,) = series(CURVES.panels[3], FOUND)
    assert trend.x == [0.1, 0.9]
    assert trend.y == pytest.approx([0.5, 0.5])  # FPR: 0 and 1 for FedAvg, one half for SkyMask
    assert (trend.low, trend.high) == ([0.0, 0.5], [1.0, 0.5])


def test_points_are_the_closeups():
    points = {
        each.label: list(zip(each.x, each.y, strict=True)) for each in series(LOOK.panels[0], FOUND)
    }
    assert points == {"honest": [(3, 4)], "malicious": [(1, 2)], "the server's own": [(5, 6)]}


def test_ones_are_the_closeups_means_and_extremes():
    honest, malicious = series(LOOK.panels[1], FOUND)
    assert (honest.x, honest.y, honest.low, honest.high) == ([0, 1], [1, 0.5], [1, 0.4], [1, 0.6])
    assert (malicious.label, malicious.y) == ("malicious", [1, 0.2])


def test_a_plain_record_is_no_closeup_and_pages_without_records_are_not_drawn():
    plain = {key: record for key, record in RECORDS.items() if not record.closeup}
    assert [page.name for page, _ in pages(FIGURE, find(FIGURE, RECORDS))] == ["curves", "look"]
    assert [page.name for page, _ in pages(FIGURE, find(FIGURE, plain))] == ["curves"]
    assert [*pages(FIGURE, find(FIGURE, {}))] == []
