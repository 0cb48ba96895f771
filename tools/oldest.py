"""Print the oldest versions that `pyproject.toml` allows, one requirement a line."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def oldest() -> list[str]:
    """`name==version` of every direct dependency, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [each.replace(">=", "==") for each in project["dependencies"]]


if __name__ == "__main__":
    print("\n".join(oldest()))
