"""Print the oldest versions that `pyproject.toml` allows, one requirement a line."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
THEIRS = ("scipy==1.13.1", "click==8.1.8")
"""What the oldest scikit-learn and typer were made for: newer ones deprecate what they use."""


def oldest() -> list[str]:
    """`name==version` of every direct dependency, without extras, and of some of theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*(each.replace(">=", "==") for each in project["dependencies"]), *THEIRS]


if __name__ == "__main__":
    print("\n".join(oldest()))
