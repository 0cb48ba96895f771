"""The package as people get it, the tools that build it, and rules that hold for every file."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "skymask"
MAX_BYTES = 5_000_000

# The order of src/skymask: a module may import from modules before it, never from one after it.
# A folder (data, defences, attacks) is one entry; its files may import one another, without cycles.
ORDER = (
    "errors",
    "shards",
    "types",
    "randomness",
    "environment",
    "threads",
    "components",
    "recording",
    "many_models",
    "layer_kernels",
    "half_kernels",
    "models",
    "vectorised",
    "flat",
    "layerwise",
    "root_loss",
    "geometry",
    "data",
    "half",
    "local_sgd",
    "clients",
    "server",
    "kernels",
    "compiled",
    "masks",
    "clustering",
    "evidence",
    "defences",
    "attacks",
    "experiment",
    "metrics",
    "records",
    "flower",
    "preparation",
    "simulation",
    "progress",
    "tracking",
    "report",
    "tables",
    "cli",
    "__main__",
)


@cache
def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command: str) -> str:
    """What `command` prints when it is run at the root of the tree."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def source_files() -> list[Path]:
    """Every file of the package, as paths relative to src."""
    return sorted(
        path.relative_to(PACKAGE.parent)
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel built from this tree, offline: the build backend must be installed."""
    pytest.importorskip("hatchling", reason="install the dev extra to build a wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {path.as_posix() for path in source_files()}
    assert "skymask/py.typed" in packed


def test_wheel_metadata_states_version_licence_and_python(metadata: Message) -> None:
    assert metadata["Version"] == pyproject()["project"]["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"


def test_console_script_names_a_function_that_exists() -> None:
    module, function = pyproject()["project"]["scripts"]["skymask"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_public_names_exist() -> None:
    skymask = importlib.import_module("skymask")
    missing = [name for name in skymask.__all__ if not hasattr(skymask, name)]
    assert skymask.__all__
    assert missing == []
    assert len(set(skymask.__all__)) == len(skymask.__all__)


# Dependencies


def requirement_name(requirement: str) -> str:
    """The normalised name in a requirement such as `torch>=2.6`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize("requirement", pyproject()["project"]["dependencies"])
def test_readme_says_in_a_line_why_a_dependency_is_there(requirement: str) -> None:
    name = requirement_name(requirement)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    entries = [line for line in readme.splitlines() if re.match(r"\s*[-*|]\s", line)]
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    reasons = [line for line in entries if word.search(line) and len(line.split()) >= 5]
    assert reasons, f"no list item or table row of README.md says why {name} is needed"


def locked(name: str) -> dict[str, str]:
    """What the file `name` of locks pins: each requirement's first line, and its digests' lines."""
    text = (ROOT / "locks" / name).read_text(encoding="utf-8")
    entries = re.findall(r"^([^\s#].*)\n((?:[ \t]+.*\n)*)", text, re.MULTILINE)
    return dict(entries)


@pytest.mark.parametrize("name", ["dev.txt", "torch.txt", "torch-cpu.txt"])
def test_every_locked_file_has_an_exact_version_and_digests(name: str) -> None:
    pins = locked(name)
    assert pins
    for first, digests in pins.items():
        assert re.match(r"[\w.-]+==\d[\w.+]* (; .* )?\\$", first), first
        assert digests, first
        for line in digests.splitlines():
            assert re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_every_declared_dependency_is_locked() -> None:
    pins = {requirement_name(line) for part in ("dev.txt", "torch.txt") for line in locked(part)}
    project = pyproject()["project"]
    declared = [*project["dependencies"], *pyproject()["build-system"]["requires"]]
    declared += [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {requirement_name(line) for line in declared} - {project["name"]}  # an extra of extras
    assert names - pins == set()


def test_both_builds_of_torch_are_of_one_release() -> None:
    (cpu,) = locked("torch-cpu.txt")
    (other,) = (line for line in locked("torch.txt") if requirement_name(line) == "torch")
    assert cpu.replace("+cpu", "") == other
    assert "torch" not in {requirement_name(line) for line in locked("dev.txt")}


# The Makefile


def test_make_help_lists_every_target_with_a_line() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+)(?:\s[\w\s-]*)?:(?![:=])", makefile, re.MULTILINE))
    targets |= set(" ".join(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)).split())
    listed = dict(line.split(maxsplit=1) for line in run("make", "-s", "help").splitlines())
    assert listed.keys() == targets
    assert {"setup", "demo", "test", "test-all", "lint", "types"} <= targets


# Every tracked file


@cache
def tracked() -> tuple[Path, ...]:
    """The files that are in git, or would be after `git add .`."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this tree is not a git checkout")
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return tuple(path for name in listing.split("\0") if name and (path := ROOT / name).is_file())


# Written in two pieces each, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(
        [
            "/wo" + "rk/",
            "/fa" + "rm/",
            r"(?<![\w.})*])/ro" + "ot/",
            r"(?<![\w.})*])/ho" + r"me/[a-z]",
            "/opt/" + "(?:wheels|pypi)",
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
            "deb" + r"\.debian\.org",
            "registry" + r"\.npmjs",
            "download" + r"\.pytorch\.org",
        ]
    ).encode()
)


def test_no_tracked_file_names_a_machine_path_or_a_registry_host() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()[:80]}"
        for path in tracked()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("cd /ro" + "ot/x", True),
        ("data = '/wo" + "rk/shared'", True),
        ("https://files.python" + "hosted.org/packages", True),
        ("folder/root/file", False),
        ("/usr/share/datasets", False),
    ],
)
def test_the_forbidden_pattern_finds_what_it_should(text: str, forbidden: bool) -> None:
    assert bool(FORBIDDEN.search(text.encode())) is forbidden


def test_no_tracked_file_is_too_large() -> None:
    large = [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > MAX_BYTES]
    assert large == []


def test_no_source_file_is_ignored_by_git() -> None:
    """What .gitignore matches is left out of the wheel as well."""
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert {f"src/{path.as_posix()}" for path in source_files()} <= names


# Imports go one way


def module_name(path: Path) -> str:
    """`skymask.data.partition` for skymask/data/partition.py (relative to src)."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, name: str, is_package: bool, modules: set[str]) -> set[str]:
    """The modules of the package that the module `name` imports, anywhere in `source`."""
    targets = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{prefix}.{alias.name}"
                targets.add(full if full in modules else prefix)
    return {target for target in targets if target.split(".")[0] == "skymask"}


def import_faults(sources: dict[Path, str]) -> list[str]:
    """What is wrong with the imports of `sources` (paths relative to src -> text)."""
    modules = {module_name(path) for path in sources}
    graph = {}
    faults = []
    for path, source in sources.items():
        name = module_name(path)
        if name == "skymask":
            continue  # gathers the public names from everywhere
        graph[name] = imported(source, name, path.stem == "__init__", modules) - {name}
        level = name.split(".")[1]
        if level not in ORDER:
            faults.append(f"{name} has no place in ORDER")
            continue
        for target in sorted(graph[name]):
            if target == "skymask":
                faults.append(f"{name} imports the public names, which are made from it")
                continue
            other = target.split(".")[1]
            if other in ORDER and ORDER.index(other) > ORDER.index(level):
                faults.append(f"{name} imports {target}, which comes after it")
    return faults + [f"{' -> '.join(cycle)} is a cycle" for cycle in cycles(graph)]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle through each module that lies on a cycle and was not seen in another."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_imports_go_one_way() -> None:
    texts = {
        path: (PACKAGE.parent / path).read_text(encoding="utf-8")
        for path in source_files()
        if path.suffix == ".py"
    }
    assert import_faults(texts) == []


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        ({"flat": "from skymask.errors import require", "errors": ""}, None),
        ({"errors": "from skymask import flat", "flat": ""}, "errors imports skymask.flat, which"),
        ({"errors": "def f():\n    import skymask.cli"}, "errors imports skymask.cli, which"),
        ({"errors": "from .types import Round", "types": ""}, "errors imports skymask.types"),
        ({"data/__init__": "from . import digits", "data/digits": ""}, None),
        ({"data/files": "from ..half import x", "half": ""}, "imports skymask.half"),
        ({"data/a": "from .b import x", "data/b": "from . import a"}, "is a cycle"),
        ({"flat": "from skymask import SkyMask"}, "imports the public names"),
        ({"odd": ""}, "skymask.odd has no place in ORDER"),
    ],
)
def test_import_faults_are_found(sources: dict[str, str], fault: str | None) -> None:
    faults = import_faults({Path(f"skymask/{name}.py"): text for name, text in sources.items()})
    if fault is None:
        assert faults == []
    else:
        assert fault in "\n".join(faults)
