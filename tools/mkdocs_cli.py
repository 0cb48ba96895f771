"""A hook of the documentation site: docs/cli.md from the commands themselves."""

from typing import Any

import click
from typer.main import get_command

from skymask.cli import app

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands where a page marks their place."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


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
