"""The command line: what is done and looked at with `skymask COMMAND`.

    running.py     run, demo
    tabling.py     table, figure
    sweeping.py    what those two share
    looking.py     list, data, doctor
    reporting.py   report, watch
    shared.py      what they share

A command is a function; its signature is its options.
"""

import sys
import warnings
from collections.abc import Callable

import typer
from rich.markup import escape

from skymask.cli.looking import data_command, doctor, list_components
from skymask.cli.reporting import report, watch
from skymask.cli.running import demo, run
from skymask.cli.shared import err, warn
from skymask.cli.tabling import figure, table
from skymask.environment import reuse_memory
from skymask.errors import InputError

app = typer.Typer(
    name="skymask",
    help="Protect federated learning from malicious clients, and measure how well it works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "run": run,
    "table": table,
    "figure": figure,
    "report": report,
    "watch": watch,
    "list": list_components,
    "data": data_command,
    "doctor": doctor,
}
for _name in COMMANDS:
    app.command(_name)(COMMANDS[_name])


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit status 2."""
    warnings.showwarning = warn
    reuse_memory()
    try:
        app()
    except InputError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
