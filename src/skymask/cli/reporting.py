"""`skymask report` and `skymask watch`: what happened, and what is happening."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from skymask.cli.shared import err, out, warn
from skymask.errors import InputError, require

Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Run folders, ledgers of federations, or a table's JSON file.", metavar="RUN..."
    ),
]


def report(
    runs: Runs,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML file to write (default: report.html in the first folder)."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write every figure into this folder too.", metavar="FOLDER"),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Of the files: svg, png or csv; may be given repeatedly."),
    ] = None,
    round_: Annotated[
        int | None,
        typer.Option("--round", help="The round of the close-ups (default: the last)."),
    ] = None,
) -> None:
    """Write what happened in a run, or in several, as one HTML page, and print the summary.

    --export writes the figures as files as well, for a paper or for a program of your own.
    """
    from skymask.report import FORMATS, is_table, render_table, write_report
    from skymask.report import export as export_figures

    if export is None and (formats or round_ is not None):
        raise InputError("--format and --round are about the files of --export FOLDER; give that")
    if not any(map(is_table, runs)):  # a table has been printed as Markdown already
        out.print(render_table(runs))
    with err.status("writing the report"):
        written = write_report(runs, out_file)
    out.print(f"report: {written}", soft_wrap=True, highlight=False)
    if export is None:
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal)
    with bar:
        task = bar.add_task("drawing the figures", total=None)
        found = export_figures(
            runs,
            export,
            formats or FORMATS,
            round_,
            lambda file, done, whole: bar.update(
                task, description=file.name, completed=done, total=whole
            ),
        )
    out.print(f"figures: {len(found)} files in {export}", soft_wrap=True, highlight=False)


def watch(
    runs: Runs,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes any free one.")] = 0,
    host: Annotated[
        str,
        typer.Option(
            help="Address of the page; others than this machine can read it only if "
            "you name one of its own addresses."
        ),
    ] = "127.0.0.1",
) -> None:
    """Watch a run that goes on, in the terminal and in a browser, until Ctrl-C.

    The run may be started later, and may be killed and resumed meanwhile.
    """
    from skymask.report import Watched, is_loopback, served, terminal

    require(0 <= port <= 65535, "port", port, "from 0 to 65535")
    if not is_loopback(host):
        warn(f"host is {host}: everybody who reaches this machine can read the page")
    watched = Watched(runs)
    with served(watched, host, port) as address:
        if not out.is_terminal:
            print(address, flush=True)
        try:
            if out.is_terminal:
                with Live(console=out, refresh_per_second=4, screen=False) as live:
                    while True:
                        live.update(terminal(watched, address))
                        time.sleep(0.5)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
