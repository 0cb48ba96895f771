"""SkyMask around strategies in Flower's engine: `python -m benchmarks.flower_strategies`.

Embedded digits among 8 nodes, 8 rounds: without an attack, and with 2 nodes that send twice the
opposite of what they learn. The same strategies, attack and client as in the tests
(`tests/flower/test_strategies.py`, on a transport in one process), here with Ray's workers.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.writing import conditions, markdown_table, write
from skymask.flower import drills
from skymask.progress import percent
from tests.flower.engine import noting
from tests.flower.federation import NODES, accuracy, client_app, model, skymask
from tests.flower.test_strategies import BAD, INNER, ROUNDS

RESOURCES = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}


def run(name: str, attacked: bool) -> dict[str, Any]:
    """One run of the engine: the final accuracy, and which partitions are excluded at the end."""
    told: dict[str, Any] = {"inner": name, "attacked": attacked}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = skymask(INNER[name]())
        initial = ArrayRecord(model().state_dict())
        result = strategy.start(grid, initial, num_rounds=ROUNDS, timeout=120)
        told["accuracy"] = accuracy(result.arrays)
        told["excluded"] = sorted(strategy.excluded)
        told["rounds"] = len(result.train_metrics_clientapp)
        rejected = (m["skymask-rejected"] for m in result.train_metrics_clientapp.values())
        told["rejections"] = int(sum(map(_number, rejected)))

    with tempfile.TemporaryDirectory() as folder:
        mods = [noting(Path(folder))]
        if attacked:
            mods.append(drills.sign_flip(drills.partitions(*BAD), scale=2.0))
        run_simulation(server, client_app(mods), NODES, backend_config=RESOURCES)
        holds = {
            int(file.name.removeprefix("node-")): int(file.read_text())
            for file in Path(folder).glob("node-*")
        }
    told["excluded"] = sorted(holds[node] for node in told["excluded"])
    return told


def _number(value: MetricRecord | float | list[float]) -> float:
    assert isinstance(value, int | float)
    return value


def main() -> None:
    """Run every strategy twice and write the table."""
    runs, rows = [], []
    for name in INNER:
        pair = [run(name, attacked) for attacked in (False, True)]
        runs += pair
        cells = [
            cell for each in pair for cell in (percent(each["accuracy"]), _nodes(each["excluded"]))
        ]
        rows.append([name, *cells])
        print(*rows[-1], flush=True)
    header = ["inner strategy", "no attack", "excluded", "2 of 8 malicious", "excluded"]
    write(
        "flower-strategies",
        f"SkyMask in Flower's simulation engine, digits, {NODES} nodes, {ROUNDS} rounds; malicious "
        f"are nodes {_nodes(list(BAD))}",
        markdown_table(header, rows),
        {"conditions": conditions(torch.device("cpu")), "runs": runs},
    )


def _nodes(nodes: list[int]) -> str:
    return ", ".join(map(str, nodes)) or "nobody"


if __name__ == "__main__":
    main()
