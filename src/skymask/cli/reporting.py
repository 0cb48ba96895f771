"""`skymask report`: what happened."""

from pathlib import Path
from typing import Annotated

import typer

from skymask.cli.shared import out


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="FOLDER...")],
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML file to write (default: report.html in the first folder)."
        ),
    ] = None,
) -> None:
    """Write what happened in a run, or in several, as one HTML page, and print the summary."""
    from skymask.report import render_table, write_report

    out.print(render_table(folders))
    out.print(f"report: {write_report(folders, out_file)}", soft_wrap=True, highlight=False)
