"""Pictures and CSV, for the report's figures and for the paper's."""

import asyncio
import csv
import io
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Any

from skymask.errors import InputError
from skymask.report.page import PLOTLY

INK = "#1b1f24"
"""Text and axes on white."""

Row = Sequence[Any]


def csv_text(header: Row, rows: Iterable[Row]) -> bytes:
    """A CSV file, in UTF-8; what a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(header)
    table.writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a quote before it."""
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + cell
    return cell


@contextmanager
def renderer() -> Iterator[Callable[[dict[str, Any], str], bytes]]:
    """What draws a figure in a format, in one browser for all; it fetches nothing."""
    try:
        import kaleido
        from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise InputError(
            "svg and png need kaleido: pip install 'skymask[export]'; csv needs nothing"
        ) from None

    with as_file(files("skymask.report") / PLOTLY) as script, _thread() as wait:
        # Not kaleido's own server: where the browser does not start, that one waits for ever.
        browser: Any = None

        async def opened() -> Any:
            made = kaleido.Kaleido(plotlyjs=script, mathjax=False)
            await made.open()
            return made

        def draw(figure: dict[str, Any], format: str) -> bytes:
            scale = 3 if format == "png" else 1
            return bytes(wait(browser.calc_fig(figure, {"format": format, "scale": scale})))

        try:
            browser = wait(opened())
        except (ChromeNotFoundError, BrowserFailedError) as error:
            raise InputError(
                "svg and png need a Chrome or Chromium that starts: install one, or "
                f"name it in BROWSER_PATH; csv needs none ({type(error).__name__})"
            ) from error
        try:
            yield draw
        finally:
            wait(browser.close())


@contextmanager
def _thread() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop of its own, beside one that a notebook may run; yields what awaits in it."""
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        try:
            yield lambda work: thread.submit(loop.run_until_complete, work).result()
        finally:
            thread.submit(loop.run_until_complete, _cancelled()).result()
            loop.close()


async def _cancelled() -> None:
    """Cancel what is left to be done in the event loop: a browser that failed leaves something."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
