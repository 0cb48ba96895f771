"""Pages opened in Debian's Chromium, by Playwright: what they log, ask for and show."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Opened:
    """A page in the browser."""

    tab: Any
    logged: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Addresses that the page asked for, itself left out."""

    def text(self, element: str) -> str:
        return " ".join(self.tab.inner_text(f"#{element}").split())

    def symbols(self, figure: str) -> dict[str, str]:
        """The symbol of each trace that plotly.js has drawn, by the trace's name."""
        found = self.tab.eval_on_selector(
            f"#{figure}", "(one) => one.data.map((trace) => [trace.name, trace.marker.symbol])"
        )
        return dict(found)


@contextmanager
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync.sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=flags)
        try:
            yield started
        finally:
            started.close()


def opened(started: Any, where: Path | str, **settings: Any) -> Opened:
    """Open a page and wait until it has drawn everything."""
    tab = started.new_page(**{"viewport": {"width": 1200, "height": 900}} | settings)
    page = Opened(tab)
    tab.on("console", lambda message: page.logged.append(message.text))
    tab.on("pageerror", lambda error: page.logged.append(str(error)))
    address = where if isinstance(where, str) else where.as_uri()
    tab.on("request", lambda request: request.url == address or page.asked.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("html[data-ready]", state="attached")
    return page
