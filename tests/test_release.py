"""What a release says about itself."""

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SILENT = {"cuda-toolkit"}
"""What newer releases of torch bring along and does not name its licence."""


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bill():
    return tool("sbom").bill()


def test_the_bill_names_what_a_plain_installation_brings(bill):
    named = {part["name"]: part["version"] for part in bill["components"]}
    for needed in ("torch", "numpy", "scikit-learn", "safetensors", "typer", "rich", "sympy"):
        assert named[needed] == version(needed)
    # Not what is for development, or for an extra.
    assert not named.keys() & {"pytest", "flwr", "kaleido", "plotly", "ray"}
    assert bill["metadata"]["component"]["name"] == "skymask"
    assert "skymask" not in named
    for part in bill["components"]:
        assert part.get("licenses") or part["name"] in SILENT, part["name"]
        assert re.fullmatch(r"pkg:(pypi|npm)/[\w.-]+@[\w.%]+", part["purl"])


def test_every_reference_of_the_bill_is_there(bill):
    refs = {part["bom-ref"] for part in (*bill["components"], bill["metadata"]["component"])}
    assert {each["ref"] for each in bill["dependencies"]} == refs
    assert {need for each in bill["dependencies"] for need in each["dependsOn"]} < refs


def test_the_bill_names_the_script_that_the_package_carries(bill):
    (script,) = (part for part in bill["components"] if part["purl"].startswith("pkg:npm/"))
    assert script["version"] == "4.1.1"
    assert len(script["hashes"][0]["content"]) == 64


def test_the_bill_is_the_same_each_time(bill):
    assert tool("sbom").bill() == bill


UV = """\
numpy==2.4.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via
    #   skymask (pyproject.toml)
    #   torch
nvidia-nvtx==13.0.85 ; sys_platform == 'linux' \\
    --hash=sha256:cc
    # via torch
torch==2.13.0 \\
    --hash=sha256:dd
    # via skymask (pyproject.toml)
torchy==1.0 \\
    --hash=sha256:ee
"""


def test_what_only_the_cuda_build_of_torch_needs_has_a_lock_of_its_own():
    parts = tool("lock").split(UV)
    pinned = {name: re.findall(r"^([\w-]+)==", text, re.MULTILINE) for name, text in parts.items()}
    assert pinned == {"dev.txt": ["numpy", "torchy"], "torch.txt": ["nvidia-nvtx", "torch"]}
    assert "via" not in "".join(parts.values())
    assert parts["dev.txt"].count("--hash") == 3


def test_locks_are_written_as_they_are_split():
    found = tool("lock")
    text = "".join((found.LOCKS / name).read_text() for name in found.HEADS)
    assert found.split(text) == {name: (found.LOCKS / name).read_text() for name in found.HEADS}


def test_the_oldest_versions_are_those_that_are_allowed():
    shown = subprocess.run(
        [sys.executable, ROOT / "tools" / "oldest.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch==2.6" in shown
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in shown)
