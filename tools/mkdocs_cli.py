"""A hook of the documentation site: commands from themselves, results from their files."""

import re
from pathlib import Path
from typing import Any

import click
from typer.main import get_command

from skymask.cli import app

ROOT = Path(__file__).parent.parent
MARK = "<!-- commands -->"
RESULT = re.compile(r"<!-- (results/[\w/-]+\.md) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands and the results where a page marks their place."""
    shown = RESULT.sub(lambda found: result(found[1]), markdown)
    return shown.replace(MARK, commands()) if MARK in shown else shown


def result(name: str) -> str:
    """The file `name` of results, its headings one level lower."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^#", "##", text, flags=re.MULTILINE)


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    group = get_command(app)
    assert isinstance(group, click.Group)
    parent = click.Context(group, info_name="skymask")
    return "\n\n".join(_command(name, group.commands[name], parent) for name in group.commands)


def _command(name: str, command: click.Command, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [
        f"| {_cell(record[0], code=True)} | {_cell(record[1])} |"
        for parameter in command.get_params(context)
        if parameter.name != "help" and (record := parameter.get_help_record(context))
    ]
    table = "\n".join(["| option | |", "| --- | --- |", *rows]) if rows else ""
    return f"## skymask {name}\n\n{command.help}\n\n    skymask {name} {usage}\n\n{table}"


def _cell(text: str, code: bool = False) -> str:
    plain = " ".join(text.split()).replace("|", "\\|")
    return f"`{plain}`" if code else plain.replace("<", "&lt;")
