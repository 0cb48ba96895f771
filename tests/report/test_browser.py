"""The page as a reader has it in a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skymask.records import KEPT, is_kept
from skymask.report import write_report
from tests.report.browser import Opened, browser, opened
from tests.report.folders import RECORDS, evil_run, make_closeup, make_ledger, make_run
from tests.report.test_tables import make_table

pytestmark = pytest.mark.long
NARROW, WIDE = {"width": 400, "height": 800}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Opened:
    """A run of four rounds with a close-up of each; clients 3 and 7 are malicious."""
    closeups = [make_closeup(index) for index in range(4)]
    run = make_run(tmp_path / "run", closeups=closeups, malicious_clients=[3, 7])
    return opened(chromium, write_report([run]))


def drawn(page: Opened) -> set[str]:
    found = page.tab.eval_on_selector_all(
        ".plot .main-svg:first-child", "all => all.map((one) => one.closest('.plot').id)"
    )
    return set(found)


def middle(element: Any) -> tuple[float, float]:
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def click(page: Opened, place: tuple[float, float]) -> None:
    page.tab.mouse.move(*place)
    page.tab.mouse.click(*place)


def buttons(page: Opened) -> set[str]:
    return {
        title.lower()
        for title in page.tab.eval_on_selector_all(
            "[data-title]", "all => all.map((one) => one.dataset.title)"
        )
    }


@pytest.mark.parametrize("kind", ["plain", "evil", "several", "ledger", "table", "empty"])
def test_every_page_is_drawn_without_an_error_or_a_request(
    chromium: Any, tmp_path: Path, kind: str
) -> None:
    many = [{"accuracy": i / 60, "fpr": 0.0, "fnr": i / 60} for i in range(60)]
    paths, figures = {
        "plain": lambda: ([make_run(tmp_path / "run")], {"accuracy", "rates", "heat"}),
        "evil": lambda: ([evil_run(tmp_path)], {"accuracy", "rates", "heat", "scatter", "ones"}),
        "several": lambda: (
            [make_run(tmp_path / "run"), make_run(tmp_path / "b", records=many)],
            {"accuracy", "rates", "heat"},
        ),
        "ledger": lambda: ([make_ledger(tmp_path / "l.jsonl")], {"left-out", "heat", "stages"}),
        "table": lambda: (
            [make_table(tmp_path / "table.json")],
            {"measure-accuracy", "measure-fpr"},
        ),
        "empty": lambda: ([make_run(tmp_path / "run", records=[], summary=None)], set()),
    }[kind]()
    page = opened(chromium, write_report(paths))
    assert (page.logged, page.asked) == ([], [])
    assert drawn(page) == figures
    # plotly.js has a button that uploads a figure's data; only these may be there.
    allowed = {"download plot as a png", "zoom", "pan", "zoom in", "zoom out", "reset axes"}
    assert buttons(page) <= allowed


def test_a_script_that_gets_in_does_not_run(chromium: Any, tmp_path: Path) -> None:
    written = write_report([make_run(tmp_path / "run")])
    inside = '<script>document.title = "taken"</script><img src="https://example.invalid/x.png">'
    written.write_text(written.read_text().replace("</main>", f"{inside}</main>"))
    page = opened(chromium, written)
    assert page.tab.title() != "taken"
    assert sum("Content Security Policy" in line for line in page.logged) == 2


def test_the_slider_goes_through_the_kept_rounds_by_keyboard(page: Opened) -> None:
    assert page.text("kept") == "round 4 of 4"
    page.tab.focus("#slider")
    page.tab.keyboard.press("Home")
    assert page.text("kept") == "round 1 of 4"
    page.tab.keyboard.press("ArrowRight")
    assert page.text("kept") == "round 2 of 4"
    assert page.tab.get_attribute("#slider", "aria-valuetext") == "round 2"
    assert page.symbols("scatter") == {
        "honest, accepted": "circle",
        "malicious, left out, other cluster": "x-open",
        "the server's own": "star",
    }


def test_a_click_on_a_point_tells_why(page: Opened) -> None:
    page.tab.focus("#slider")
    for key in ("Home", "ArrowRight"):  # both malicious clients were thrown out in round 2
        page.tab.keyboard.press(key)
    points = page.tab.locator("#scatter .scatterlayer .trace").nth(1).locator("path.point")
    click(page, middle(points.first))
    told = page.text("evidence")
    assert told.startswith("Client 3 in round 2")
    assert "verdict left out because no reason given mask in the other cluster" in told
    assert "score (above 0 is trusted) -1" in told
    assert page.text("story").startswith("Client 3: malicious; left out in 1 of 4 rounds")
    assert page.tab.input_value("#find") == "3"


def test_a_client_is_found_by_name_and_without_a_mouse(page: Opened) -> None:
    page.tab.focus("#find")
    page.tab.keyboard.type("7")
    page.tab.keyboard.press("Enter")
    assert page.text("story").startswith("Client 7: malicious; left out in 3 of 4 rounds")
    assert page.text("evidence").startswith("Client 7 in round 4 verdict accepted")
    assert "chosen" in page.symbols("scatter")
    page.tab.fill("#find", "99")
    page.tab.keyboard.press("Enter")
    assert page.text("story") == "No client is called 99."
    page.tab.click("#clear")
    assert page.text("story") == ""
    assert page.text("evidence").startswith("Choose a client")


def test_a_cell_of_the_heat_map_tells_what_it_is(page: Opened) -> None:
    page.tab.locator("#heat").scroll_into_view_if_needed()
    box = page.tab.locator("#heat .heatmaplayer").bounding_box()
    first = box["x"] + box["width"] / 8, box["y"] + 5
    page.tab.mouse.move(*first)
    page.tab.wait_for_selector("#cell:has-text('client')")
    assert page.text("cell") == "client 7, round 1: left out"
    click(page, first)
    assert page.text("story").startswith("Client 7: malicious")
    assert page.text("kept") == "round 1 of 4"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_scrolling_sideways(
    chromium: Any, tmp_path: Path, scheme: str
) -> None:
    run = make_run(tmp_path / "run", closeups=[make_closeup(i) for i in range(4)])
    page = opened(chromium, write_report([run]), viewport=NARROW, color_scheme=scheme)
    width = page.tab.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW["width"]
    ink, paper = page.tab.evaluate(
        """() => [document.querySelector('#heat .xtick text'), document.body].map((one, i) =>
            getComputedStyle(one)[i ? 'backgroundColor' : 'fill'])"""
    )
    assert contrast(ink, paper) > 7


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two CSS colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(x * weight for x, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_one_of_several_runs_can_be_chosen(chromium: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", records=RECORDS[:2], summary=None)]
    page = opened(chromium, write_report(runs))
    assert page.tab.eval_on_selector("#heat", "(one) => one.data[0].x.length") == 4
    page.tab.select_option("#which", label="b")
    assert page.tab.eval_on_selector("#heat", "(one) => one.data[0].x.length") == 2


def test_a_run_of_a_thousand_clients_fits_into_a_page(chromium: Any, tmp_path: Path) -> None:
    """2,500 rounds below 15 MB; how fast it opens is measured by benchmarks/report.py."""
    clients, rounds = 1000, 2500
    why = "its updates raise the loss of the root data set (descent {:.1f} standard deviations)"
    records = [
        {"fpr": 0.0, "fnr": 0.0, "accuracy": 0.9, "clients": clients}
        | {"rejected": {str(c): why.format((c + t) % 97 / 10) for c in range(0, clients, 5)}}
        for t in range(rounds)
    ]
    many = {"score": [i / 7 for i in range(clients)]}
    many |= {f"measure {i}": [0.125 * i] * (clients + 1) for i in range(5)}
    closeups = [
        make_closeup(t, clients, values=many, ones={f"layer{i}": [0.5] * 1001 for i in range(8)})
        for t in range(rounds)
        if is_kept(t, rounds)
    ]
    assert len(closeups) == KEPT
    run = make_run(
        tmp_path / "run",
        records=records,
        closeups=closeups,
        experiment={"clients": clients, "rounds": rounds},
        malicious_clients=list(range(0, clients, 5)),
    )
    written = write_report([run])
    assert written.stat().st_size < 15e6
    page = opened(chromium, written)
    assert {"accuracy", "rates", "heat", "scatter", "ones"} <= drawn(page)
    assert page.tab.eval_on_selector("#heat", "(one) => one.data[0].y.length") == 250
