"""SkyMask in Flower's simulation engine: `python -m benchmarks.flower_federation`.

Runs the app in `examples/flower-fashion-mnist` by `flwr run`, as its README says.

- Fashion-MNIST among 20 nodes, 6 of them malicious: bare FedAvg and SkyMask around it.
- Overhead at 100 nodes: what SkyMask adds to a round beside what FedAvg takes, from the ledger.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.writing import conditions, markdown_table, write
from skymask.progress import percent
from tests.flower.deployment import BIN, ROOT, end_all, free_port, surroundings

APP = ROOT / "examples" / "flower-fashion-mnist"


def main() -> None:
    """Run all cases and write two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--malicious", type=int, default=6)
    parser.add_argument("--many", type=int, default=100, help="nodes of the overhead's runs")
    parser.add_argument("--only", choices=("attacks", "overhead"), help="one of the two tables")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if o.only != "overhead":
                _attacks(o, folder)
            if o.only != "attacks":
                _overhead(o, folder)
        finally:
            end_all(folder)  # Flower leaves a process running


def run(folder: Path, name: str, nodes: int, **config: Any) -> dict[str, Any]:
    """One run of the app: its final accuracy, and the rounds of its ledger."""
    out = folder / name
    settings = {"nodes": nodes, "folder": str(out), "data-dir": os.environ.get("SKYMASK_DATA", "")}
    given = " ".join(f"{key}={_toml(value)}" for key, value in (settings | config).items())
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
    app = folder / "app"
    if not app.exists():
        shutil.copytree(APP, app)
        (folder / "ports").write_text(f"{free_port()} {free_port()}")
    ports = (folder / "ports").read_text().split()
    home = {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": ports[0],
        "FLWR_LOCAL_CONTROL_API_PORT": ports[1],
    }
    command = [str(BIN / "flwr"), "run", str(app), "--stream", "--federation-config", federation]
    done = subprocess.run(
        [*command, "--run-config", given],
        env=surroundings(folder) | home | {"RAY_DEDUP_LOGS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    found = re.search(r"accuracy after round \d+: .*?([0-9.]+)}", told)
    if found is None:
        raise SystemExit(f"the run {name} did not end:\n{told[-3000:]}")
    ledger = out / "ledger.jsonl"
    lines = (
        [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    )
    rounds = [line for line in lines if "nodes" in line]
    print(name, found[1], flush=True)
    # The server does not know who is malicious; the drill says so in the clients' own log.
    malicious = set(re.findall(r"skymask drill on node (\d+)", told))
    return {"name": name, "accuracy": float(found[1]), "rounds": rounds, "malicious": malicious}


def _toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | str) else str(value)


def _attacks(o: argparse.Namespace, folder: Path) -> None:
    rows, records = [], []
    for attack in ("none", "label-flip", "sign-flip"):
        malicious = 0 if attack == "none" else o.malicious
        found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for seed in range(1, o.seeds + 1):
            for guarded in (False, True):
                result = run(
                    folder,
                    f"{attack}-{'skymask' if guarded else 'fedavg'}-{seed}",
                    o.nodes,
                    rounds=o.rounds,
                    seed=seed,
                    malicious=malicious,
                    attack="sign-flip" if attack == "none" else attack,
                    skymask=guarded,
                )
                found[guarded].append(result)
        out = [_excluded(result) for result in found[True]]
        rows.append(
            [
                attack,
                *(percent(_mean(r["accuracy"] for r in found[g])) for g in (False, True)),
                f"{sum(bad for bad, _ in out)} of {malicious * o.seeds}",
                f"{sum(honest for _, honest in out)} of {(o.nodes - malicious) * o.seeds}",
            ]
        )
        records += [{k: r[k] for k in ("name", "accuracy")} for g in found for r in found[g]]
    header = ["attack", "FedAvg", "SkyMask(FedAvg)", "malicious excluded", "honest excluded"]
    write(
        "flower-fashion-mnist",
        f"Flower's simulation engine, Fashion-MNIST, {o.nodes} nodes, {o.malicious} of them "
        f"malicious, {o.rounds} rounds, {o.seeds} seed(s): final accuracy",
        markdown_table(header, rows),
        {"conditions": conditions(torch.device("cpu")), "runs": records},
    )


def _mean(values: Any) -> float:
    return statistics.mean(values)


def _excluded(result: dict[str, Any]) -> tuple[int, int]:
    """How many malicious and how many honest nodes were not asked in the last round."""
    last = result["rounds"][-1]["nodes"]
    out = {node for node, entry in last.items() if entry["verdict"] == "excluded"}
    return len(out & result["malicious"]), len(out - result["malicious"])


def _overhead(o: argparse.Namespace, folder: Path) -> None:
    rows, records = [], []
    for data in ("digits", "fashion-mnist"):
        rounds = run(folder, f"overhead-{data}", o.many, rounds=6, data=data)["rounds"][1:]
        parts = {
            name: statistics.median(line["seconds"][name] for line in rounds)
            for name in ("clients", "inner", "screening", "root", "defence")
        }
        whole = statistics.median(line["seconds"]["round"] for line in rounds)
        added = parts["screening"] + parts["root"] + parts["defence"]
        records.append({"data": data, "nodes": o.many, **parts, "round": whole})
        told = [f"{value:.2f} s" for value in (*parts.values(), whole, added)]
        rows.append([data, *told, percent(added / (whole - added))])
    header = ["data", "clients", "FedAvg", "screening", "root model", "defence", "round"]
    write(
        "bench/flower-overhead",
        f"What SkyMask adds to a round of {o.many} simulated nodes: medians of five rounds",
        markdown_table([*header, "added", "share of the rest"], rows),
        {"conditions": conditions(torch.device("cpu")), "runs": records},
    )


if __name__ == "__main__":
    main()
