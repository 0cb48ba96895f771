"""The examples run as they stand and show what they say (for Flower: tests/flower)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.long


def printed(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shares(text: str) -> list[float]:
    return [float(number) / 100 for number in re.findall(r"([\d.]+)%", text)]


def test_every_example_is_listed_and_has_a_test():
    listed = set(re.findall(r"^\| `([^`]+)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in EXAMPLES.iterdir()} - {"README.md"}
    assert listed == there - {"__pycache__/"}
    tested = Path(__file__).read_text()
    assert all(name in tested for name in listed if not name.endswith("/"))


def test_own_model_and_data():
    without, guarded = shares(printed("own_model_and_data.py"))
    assert guarded > 0.9 > without + 0.2


def test_compare_defences():
    lines = [line for line in printed("compare_defences.py").splitlines() if "±" in line]
    means = {line.split("  ")[0]: shares(line)[::2] for line in lines}
    assert list(means) == ["FedAvg", "trimmed mean", "SkyMask"]
    for attack in (0, 1):
        best_other = max(means["FedAvg"][attack], means["trimmed mean"][attack])
        assert means["SkyMask"][attack] > best_other + 0.05


def test_write_an_attack():
    own, known = printed("write_an_attack.py").splitlines()
    for line in (own, known):
        without, guarded, let_in, thrown_out = shares(line)
        assert guarded > without + 0.03
        assert let_in < 0.05
        assert thrown_out < 0.05


def test_own_training_loop():
    text = printed("own_training_loop.py")
    plain, guarded = shares(text)
    assert guarded > 0.85 > plain + 0.3
    told = re.search(r"left out in the last round: \[(.*?)\]", text)
    assert told is not None
    out = re.findall(r"\d+", told[1])
    assert {int(client) for client in out} <= {0, 3, 6, 9}


def test_shared_columns():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", EXAMPLES / "shared_columns.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "2 processes; left out in the last round: [1, 4]"
    assert shares(second)[0] > 0.75


def test_read_a_run():
    text = printed("read_a_run.py")
    clients = re.findall(r"client +(\d+) \((\w+)\): out in (\d+) rounds", text)
    assert [kind for _, kind, _ in clients].count("malicious") == 6
    page = Path(text.rpartition("figure: ")[2].strip())
    assert "clients left out" in page.read_text()


def test_the_notebook_runs_from_top_to_bottom():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    done = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [out for cell in done.cells for out in cell.get("outputs", ())]
    assert not [out for out in outputs if out.output_type == "error"]
    text = "".join(out.get("text", "") for out in outputs if out.output_type == "stream")
    assert "FPR 0.0 FNR 0.0" in text
    results = [out.data["text/plain"] for out in outputs if out.output_type == "execute_result"]
    assert any(result.startswith("(tensor([False,  True") for result in results)
