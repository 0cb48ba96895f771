"""The digits in Flower's own simulation engine, with Ray's workers as nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="install flwr[simulation]")

from tests.flower.engine import BAD, ROUNDS
from tests.flower.federation import NODES

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.long
def test_both_malicious_nodes_end_excluded_in_the_simulation_engine(tmp_path):
    environment = os.environ | QUIET | {"FLWR_HOME": str(tmp_path / "flwr")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.flower.engine", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "result.json").read_text())
    holds = {
        int(file.name.removeprefix("node-")): int(file.read_text())
        for file in folder.glob("node-*")
    }
    assert sorted(holds.values()) == list(range(NODES))
    assert sorted(holds[node] for node in result["excluded"]) == sorted(BAD)
    assert result["rounds"] == list(range(1, ROUNDS + 1))
    assert result["finite"]
    assert result["accuracy"] > 0.7

    last = json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])["nodes"]
    assert {holds[int(node)] for node in last if last[node]["verdict"] == "excluded"} == set(BAD)
    assert {last[str(node)]["verdict"] for node in holds if holds[node] not in BAD} == {"accepted"}
