"""`skymask table` and `skymask figure`."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import typer

from skymask.cli.shared import AsJson, DataDir, err
from skymask.cli.sweeping import (
    FOLDER,
    Asked,
    Columns,
    Devices,
    DryRun,
    Jobs,
    Made,
    Minutes,
    OutFolder,
    RenderOnly,
    Rounds,
    Rows,
    Seeds,
    carry_out,
)
from skymask.errors import require, unknown
from skymask.records import replace_file, writing
from skymask.report.pictures import renderer
from skymask.tables import FIGURES, TABLES, Figure, Table
from skymask.tables.output import FORMATS, write_figure
from skymask.tables.record import Record
from skymask.tables.render import render


def table(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(TABLES)}.")],
    seeds: Seeds = 3,
    rows: Rows = None,
    columns: Columns = None,
    rounds: Rounds = None,
    jobs: Jobs = None,
    device: Devices = None,
    minutes: Minutes = None,
    out_folder: OutFolder = FOLDER,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
    as_json: AsJson = False,
) -> None:
    """Run a table of the paper again (1 to 4), or the cases of detection, cell by cell.

    Cells that are done are not run again and one that was stopped goes on: the same command until
    nothing is missing. The table shows all records there are, whatever --rows says.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    asked = Asked(
        seeds,
        rows or (),
        columns or (),
        rounds,
        jobs,
        device or (),
        minutes,
        out_folder,
        data_dir,
        dry_run,
        render_only,
        as_json,
    )
    made = TABLES[name]().cut(rounds)
    carry_out(made, asked, partial(_write_table, made, asked))


def figure(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(FIGURES)}.")],
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Run each cell with seeds 1 to this.", show_default="3; 1 for figures 1 and 3"
        ),
    ] = None,
    rows: Rows = None,
    columns: Columns = None,
    rounds: Rounds = None,
    jobs: Jobs = None,
    device: Devices = None,
    minutes: Minutes = None,
    out_folder: OutFolder = FOLDER,
    data_dir: DataDir = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Of its files: svg, png or csv; again for more. Pictures need the extra export.",
            show_default="svg, csv",
        ),
    ] = None,
    dry_run: DryRun = False,
    render_only: RenderOnly = False,
    as_json: AsJson = False,
) -> None:
    """Run what a figure of the paper needs (1 and 3 to 8), cell by cell, and draw it.

    Cells are those of tables: one that is done is not run again and one that was stopped goes on.
    Drawn are all records there are, whatever --rows says; what is missing is said below.
    """
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    wanted = list(dict.fromkeys(formats or ("svg", "csv")))
    for each in wanted:
        require(each in FORMATS, "format", each, f"one of {', '.join(FORMATS)}")
    made = FIGURES[name]()
    asked = Asked(
        made.seeds if seeds is None else seeds,
        rows or (),
        columns or (),
        rounds,
        jobs,
        device or (),
        minutes,
        out_folder,
        data_dir,
        dry_run,
        render_only,
        as_json,
    )
    made = made.cut(rounds)
    carry_out(
        made, asked, partial(_write_figure, made, asked, wanted), partial(_check_pictures, wanted)
    )


def _write_table(made: Table, asked: Asked, records: Mapping[str, Record]) -> Made:
    """Write the table's Markdown and JSON."""
    rendered = render(made, records, asked.seeds)
    paths = {kind: asked.out / f"{made.stem}.{kind}" for kind in ("md", "json")}
    with writing(asked.out):
        asked.out.mkdir(parents=True, exist_ok=True)
        replace_file(paths["md"], rendered.markdown.encode())
        replace_file(paths["json"], rendered.json.encode())
    files = {kind: str(path) for kind, path in paths.items()}
    return Made(rendered.data["lacks"], files, files["md"])


def _write_figure(
    made: Figure, asked: Asked, formats: list[str], records: Mapping[str, Record]
) -> Made:
    """Draw the figure's pages."""
    with err.status("drawing"):
        written = write_figure(made, records, asked.out, asked.seeds, formats)
    files = {kind: [str(path) for path in paths] for kind, paths in written.files.items()}
    shown = files[formats[0]] or files["json"]
    told = ", ".join(shown)
    if written.lacks["empty_pages"]:
        told += f"; not drawn, for there is no record: {', '.join(written.lacks['empty_pages'])}"
    return Made(written.lacks, files, told)


def _check_pictures(formats: list[str]) -> None:
    """Raise `InputError` now where pictures could not be drawn in the end."""
    if set(formats) - {"csv"}:
        with renderer():
            pass
