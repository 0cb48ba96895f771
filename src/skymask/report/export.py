"""The report's figures as files: SVG and PNG for a paper, CSV for a program of one's own."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skymask.errors import require
from skymask.records import replace_file, writing
from skymask.report import clients
from skymask.report.page import content
from skymask.report.pictures import INK, Row, csv_text, renderer
from skymask.report.read import read_runs
from skymask.report.run import ABSENT, ACCEPTED, EXCLUDED, REJECTED, CloseUp, Run
from skymask.report.tables import Table, drawing, is_table, read_table, shown

FORMATS = ("svg", "png", "csv")
_SIZE = {"width": 720, "height": 440}
_VERDICTS = {
    ACCEPTED: "accepted",
    REJECTED: "left out",
    EXCLUDED: "not asked",
    ABSENT: "not there",
}


def export(
    paths: Sequence[Path],
    folder: Path,
    formats: Sequence[str] = FORMATS,
    round: int | None = None,
    watch: Callable[[Path, int, int], None] | None = None,
) -> list[Path]:
    """Write every figure of the report on the runs at `paths` into `folder`; returns the files.

    Args:
        paths: run folders and ledgers, or one table.
        folder: made if it is not there; files of the same names are replaced.
        formats: of `FORMATS`; pictures are drawn by kaleido in a Chrome or Chromium.
        round: of the close-ups the one kept nearest to this round, counted from 1; the last
            without it.
        watch: called with each file as it is written, how many there are now, and will be.

    Raises:
        InputError: for damaged records, a format that there is not, a round below 1, no kaleido or
            browser, and where a file cannot be written.
    """
    for each in formats:
        require(each in FORMATS, "format", each, f"one of {', '.join(FORMATS)}")
    require(round is None or round >= 1, "round", round, "at least 1")
    table = read_table(Path(paths[0])) if any(is_table(Path(path)) for path in paths) else None
    runs = read_runs(paths) if table is None else []
    numbers: dict[str, tuple[Row, Iterator[Row]]] = {}
    figures: dict[str, dict[str, Any]] = {}
    pictures = [each for each in formats if each != "csv"]
    if "csv" in formats:
        numbers = tables(runs) if table is None else {"cells": table_cells(table)}
    if pictures and table is None:
        figures = drawings(runs, round)
    elif pictures and table is not None:
        figures = {measure: drawing(table, measure) for measure in shown(table)}
    whole = len(numbers) + len(figures) * len(pictures)
    written: list[Path] = []

    def write(name: str, made: bytes) -> None:
        with writing(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, made)
        written.append(folder / name)
        if watch is not None:
            watch(folder / name, len(written), whole)

    for name, (header, rows) in numbers.items():
        write(f"{name}.csv", csv_text(header, rows))
    if figures:
        with renderer() as draw:
            for name, figure in figures.items():
                for each in pictures:
                    write(f"{name}.{each}", draw(_printed(figure), each))
    return written


def drawings(runs: Sequence[Run], round: int | None = None) -> dict[str, dict[str, Any]]:
    """File name -> figure, as plotly takes it; those of single runs carry the run's number."""
    found = dict(content(runs).figures)
    for number, run in enumerate(runs, 1):
        of = f"-{number}" if len(runs) > 1 else ""
        if run.verdicts.codes.size:
            heat = clients.heat_map(run)
            found[f"verdicts{of}"] = {"data": heat["data"], "layout": heat["layout"]}
        closeup = _nearest(run.closeups, round)
        if closeup is not None and closeup.points is not None:
            found[f"masks{of}"] = clients.scatter(run, closeup)
        if closeup is not None and closeup.ones:
            found[f"ones{of}"] = clients.ones(run, closeup)
    return found


def tables(runs: Sequence[Run]) -> dict[str, tuple[Row, Iterator[Row]]]:
    """File name -> header and rows: one row an observation, all runs and kept rounds together."""
    return {
        "rounds": (
            ("run", "round", "accuracy", "attack_success", "fpr", "fnr", "left_out"),
            _rounds(runs),
        ),
        "verdicts": (("run", "client", "malicious", "round", "verdict"), _verdicts(runs)),
        "masks": (("run", "round", "client", "quantity", "value"), _closeups(runs)),
        "stages": (
            ("run", "stage", "seconds"),
            ((run.name, part, took) for run in runs for part, took in run.stages.items()),
        ),
    }


def table_cells(table: Table) -> tuple[Row, Iterator[Row]]:
    """Header and rows of a table: one row a measure of a cell."""
    header = ("row", "column", "measure", "value", "spread", "published")
    rows = (
        (row, column, measure, each.value, each.spread, each.published)
        for measure, values in table.values.items()
        for (row, column), each in values.items()
    )
    return header, rows


def _rounds(runs: Sequence[Run]) -> Iterator[Row]:
    for run in runs:
        names = ("accuracy", "attack_success", "fpr", "fnr", "left_out")
        for index in range(run.rounds):
            yield (run.name, index + 1, *(run.series[name][index] for name in names))


def _verdicts(runs: Sequence[Run]) -> Iterator[Row]:
    for run in runs:
        for client, codes in zip(run.verdicts.clients, run.verdicts.codes, strict=True):
            bad = None if run.malicious is None else client in run.malicious
            for index, code in enumerate(codes.tolist(), 1):
                yield run.name, run.label(client), bad, index, _VERDICTS[code]


def _closeups(runs: Sequence[Run]) -> Iterator[Row]:
    for run in runs:
        for closeup in run.closeups:
            names = [*map(run.label, closeup.clients), "root"]
            parts = dict(closeup.values)
            if closeup.points is not None:
                parts |= {"first component": closeup.points[:, 0]}
                parts |= {"second component": closeup.points[:, 1]}
                parts["other cluster"] = np.array(closeup.apart, dtype=np.float64)
            parts |= {f"ones in {layer}": share for layer, share in closeup.ones.items()}
            for quantity, values in parts.items():
                for name, value in zip(names, values.tolist(), strict=False):
                    yield run.name, closeup.round + 1, name, quantity, value


def _nearest(closeups: Sequence[CloseUp], round: int | None) -> CloseUp | None:
    if not closeups:
        return None
    if round is None:
        return closeups[-1]
    return min(closeups, key=lambda closeup: abs(closeup.round + 1 - round))


def _printed(figure: dict[str, Any]) -> dict[str, Any]:
    """The figure on white, with dark axes, as print wants it."""
    layout = figure["layout"] | _SIZE | {"paper_bgcolor": "white", "plot_bgcolor": "white"}
    layout["height"] = figure["layout"].get("height", _SIZE["height"])
    layout["font"] = layout["font"] | {"color": INK, "family": "sans-serif", "size": 14}
    for axis in [name for name in layout if name.startswith(("xaxis", "yaxis"))]:
        grid = {"gridcolor": "#dddddd", "zerolinecolor": "#dddddd", "linecolor": INK}
        layout[axis] = grid | {"showline": True, "ticks": "outside"} | layout[axis]
    return {"data": figure["data"], "layout": layout}
