"""The documentation: the site builds, what it shows runs, and no public name is left out."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import skymask
import skymask.flower

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
ELSEWHERE = {"flower.md"}  # tests/flower/test_docs.py runs its blocks
NOT_RUN = ("pip install ", "python -m benchmarks.")
"""Beginnings of commands that a test cannot run: they install, or take minutes."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_page_is_known_to_the_site():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}


def with_code(pages: list[Path]) -> list[Path]:
    return [
        page
        for page in pages
        if page.name not in ELSEWHERE and (blocks(page, "python") or commands(page))
    ]


@pytest.mark.long
@pytest.mark.parametrize("page", with_code(PAGES), ids=lambda page: page.stem)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path):
    """Its commands in order, then its Python in order, in one process; warnings are errors."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in commands(page):
        if command.startswith(NOT_RUN):
            continue
        name, *arguments = shlex.split(command)
        assert name == "skymask", command
        if arguments[0] in ("table", "figure"):
            arguments += ["--rounds", "2", "--seeds", "1"]  # else it takes an hour
        if arguments[0] == "figure":
            arguments += ["--format", "csv"]  # a browser is not everywhere
        if ("har" in command or "fashion" in command) and not os.environ.get("SKYMASK_DATA"):
            pytest.skip("set SKYMASK_DATA to a folder with the real data sets")
        run = [sys.executable, "-m", "skymask.cli", *arguments]
        subprocess.run(run, check=True, cwd=tmp_path, env=environment)
    code = "\n".join(blocks(page, "python"))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    told = set(re.findall(r"^::: skymask\.(\w+)$", reference, re.MULTILINE))
    names = skymask.__all__
    types = {name for name in names if getattr(skymask, name).__module__ == "skymask.types"}
    assert "::: skymask.types\n" in reference
    assert told | types >= set(names)
    flower = re.findall(r"^::: skymask\.flower\S*\.(\w+)$", reference, re.MULTILINE)
    assert set(flower) >= set(skymask.flower.__all__)


class Fetched(HTMLParser):
    """Addresses that a browser asks for when it opens a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload")
        address = given.get("href") if loads else given.get("src")
        if tag != "a" and address:
            self.found.append(address)


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path: Path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        build,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        outside = [
            address for address in Fetched(page).found if "://" in address or address[:2] == "//"
        ]
        assert outside == [], page
    cli = (tmp_path / "site" / "cli.html").read_text()
    assert all(f"skymask {name}" in cli for name in ("demo", "run", "table", "report", "watch"))
    assert "--root-size" in cli
