"""Pages as plotly.js takes them."""

import plotly.graph_objects
import pytest

from skymask.tables import FIGURES
from skymask.tables.drawing import WIDTH, drawing
from skymask.tables.series import Series, find, series
from tests.tables.drawn import CURVES, FIGURE, LOOK, RECORDS

FOUND = find(FIGURE, RECORDS)


def drawn(page, caption="caption"):
    return drawing(page, [series(panel, FOUND) for panel in page.panels], caption)


def on(figure, axis, mode):
    traces = [t for t in figure["data"] if t.get("xaxis") == "x" + axis and t["mode"] == mode]
    return [(t["x"], t["y"]) for t in traces]


@pytest.mark.parametrize("page", [CURVES, LOOK], ids=lambda page: page.name)
def test_plotly_knows_every_field(page):
    plotly.graph_objects.Figure(drawn(page))


def test_lines_bands_and_bars_are_the_series():
    figure = drawn(CURVES)
    fedavg, skymask = series(CURVES.panels[0], FOUND)
    assert on(figure, "", "lines") == [(s.x, s.y) for s in (fedavg, skymask)]
    assert on(figure, "", "none") == [([2, 4, 4, 2], [0.4, 0.8, 0.4, 0.2])]  # one seed has no band
    bars = on(figure, "3", "lines")[0]
    assert [x for x in bars[0] if x is not None] == [
        *(0.5, 2.5, 2.5, 0.5, 0.5),
        *(3.5, 4.5, 4.5, 3.5, 3.5),
    ]
    assert on(figure, "4", "markers") == [([0.1, 0.9], [0.5, 0.5])]
    shares = [a["text"] for a in figure["layout"]["annotations"] if "of rounds" in a["text"]]
    assert shares == ["37.5 % of rounds", "25.0 % of rounds"]


def test_a_panel_without_a_record_says_so():
    figure = drawn(CURVES)
    (text,) = (a for a in figure["layout"]["annotations"] if a["text"] == "not run yet")
    assert text["xref"] == "x2 domain"


def test_text_is_no_markup():
    texts = [a["text"] for a in drawn(CURVES, "<i>")["layout"]["annotations"]]
    assert "<b>Curves &lt;b&gt;</b>" in texts
    assert "&lt;i&gt;" in texts


@pytest.mark.parametrize("name", ["4", "5", "6", "7", "8"])
def test_lines_differ_in_colour_and_symbol_and_panels_do_not_overlap(name):
    """As if every cell were there."""
    for page in FIGURES[name]().pages:
        full = [
            [
                Series(line.label, [1, 2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2], (1,), 2)
                for line in panel.lines
            ]
            for panel in page.panels
        ]
        figure = drawing(page, full, "caption " * 40)
        legend = [trace for trace in figure["data"] if trace["showlegend"]]
        looks = [(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in legend]
        for part in zip(*looks, strict=True):
            assert len(set(part)) >= min(len(looks), 6)
        assert len(set(looks)) == len(looks)
        layout = figure["layout"]
        boxes = [
            (*layout[f"xaxis{i}"]["domain"], *layout[f"yaxis{i}"]["domain"])
            for i in ["", *range(2, len(page.panels) + 1)]
        ]
        for i, (left, right, low, high) in enumerate(boxes):
            assert 0 <= left < right <= 1 + 1e-9
            assert 0 < low < high < 1
            for other_left, other_right, other_low, other_high in boxes[:i]:
                aside = right <= other_left or other_right <= left
                assert aside or high <= other_low or other_high <= low
        assert layout["width"] == WIDTH
        assert layout["height"] <= 1.45 * WIDTH  # with a caption below it on an A4 page
