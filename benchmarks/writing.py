"""How benchmarks write what they measured."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skymask.environment import device_name, versions

RESULTS = Path(__file__).parent.parent / "results"


def conditions(device: torch.device) -> dict[str, Any]:
    """What a figure must not be read without."""
    module = Path(sys.argv[0]).stem
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def told_of(conditions: dict[str, Any]) -> str:
    """The command, the device and the versions, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return f"`{conditions['command']}` on {conditions['device']}; {versions}."


def write(name: str, title: str, table: str, result: dict[str, Any]) -> None:
    """Write `results/NAME.json` and `results/NAME.md`, and print the table."""
    text = f"# {title}\n\n{table}\n{told_of(result['conditions'])}\n"
    path = RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    print(text)
