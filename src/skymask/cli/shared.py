"""What the commands share: where they print, and options that several of them have."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

out, err = Console(), Console(stderr=True)

Out = Annotated[
    Path | None, typer.Option("--out", help="New folder for the run's records.", metavar="FOLDER")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the data sets are (else SKYMASK_DATA, else the user's cache).",
        metavar="FOLDER",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")
]


def starting_with(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers after a few letters: those of `names` that begin with them."""

    def offered(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return offered


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """Say a warning in one line on stderr; takes what `warnings.showwarning` is given."""
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
