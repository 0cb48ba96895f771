"""What the README shows is run as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
INLINE = [
    command
    for command in re.findall(r"`(skymask [^`]+)`", README.replace("\n", " "))
    if command.startswith(("skymask run", "skymask doctor"))
]


def test_there_are_blocks_to_run():
    assert len(COMMANDS) >= 3
    assert len([1 for language, _ in BLOCKS if language == "python"]) >= 2
    assert INLINE


def test_every_python_block_runs(tmp_path):
    for language, text in BLOCKS:
        if language == "python":
            subprocess.run([sys.executable, "-W", "error", "-c", text], check=True, cwd=tmp_path)


def test_every_shell_command_runs_in_order(tmp_path):
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        assert name == "skymask", command
        subprocess.run([sys.executable, "-m", "skymask.cli", *arguments], check=True, cwd=tmp_path)


@pytest.mark.parametrize("command", INLINE)
def test_every_command_in_the_text_runs(command, tmp_path):
    """With fewer rounds, and a small run in FOLDER's place."""
    arguments = shlex.split(command)[1:]
    run = [sys.executable, "-m", "skymask.cli"]
    if "FOLDER" in arguments:
        folder = tmp_path / "folder"
        subprocess.run([*run, "run", "digits", "--rounds", "5", "--out", folder], check=True)
        arguments[arguments.index("FOLDER")] = str(folder)
    elif arguments[:2] == ["run", "fashion-mnist"]:
        if not os.environ.get("SKYMASK_DATA"):
            pytest.skip("set SKYMASK_DATA to a folder with the real data sets")
        arguments += ["--rounds", "1"]
    subprocess.run([*run, *arguments], check=True, cwd=tmp_path)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_measured_row_stands_in_a_result_that_a_command_wrote():
    measured = README.split("## Measured")[1].split("\n## ")[0]
    written = "".join(path.read_text() for path in (ROOT / "results").rglob("*.md"))
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in written] == []
