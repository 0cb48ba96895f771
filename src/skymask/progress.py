"""Live progress of a run in a terminal; silent elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def round_progress(
    title: str, rounds: int, console: Console, done: int = 0
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with round, accuracy, FPR, FNR and time left; yields what to call with each record.

    Where `console` is no terminal nothing is drawn.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(title, total=rounds, completed=done, state="")
        shown: dict[str, float] = {}

        def advance(record: Mapping[str, Any]) -> None:
            shown.update(
                {
                    k: v
                    for k, v in record.items()
                    if k in ("accuracy", "fpr", "fnr") and v is not None
                }
            )
            state = "  ".join(
                f"{label} {percent(shown.get(name))}" for name, label in LABELS.items()
            )
            bar.update(task, advance=1, state=state)

        yield advance


LABELS = {"accuracy": "accuracy", "fpr": "FPR", "fnr": "FNR"}


def percent(value: float | None) -> str:
    """A share as a person reads it: 0.8812 is 88.1 %, None is a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


@contextmanager
def sweep_progress(cells: int, rounds: int, console: Console) -> Iterator[Callable[..., None]]:
    """A bar over the rounds of many cells; yields `advance(rounds, finished, failed)`, in totals.

    Where `console` is no terminal nothing is drawn.
    """
    bar = Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("rounds, left"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=300,  # cells differ: the last minutes, not the last rounds
    )
    with bar:
        task = bar.add_task("", total=rounds, state=f"0 of {cells} cells")

        def advance(done: int, finished: int, failed: int) -> None:
            state = f"{finished} of {cells} cells" + (f", {failed} failed" if failed else "")
            bar.update(task, completed=done, state=state)

        yield advance
