"""A run in Flower's simulation engine: `python -m tests.flower.engine FOLDER`, in a process of its
own, because the engine starts Ray and keeps its state in the process.

FOLDER gets the ledger, a file for each node that says which partition it holds, and result.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from skymask.flower import drills
from tests.flower.federation import NODES, accuracy, client_app, model, skymask

BAD = (2, 5)
ROUNDS = 6


def noting(folder: Path) -> Mod:
    """A mod that notes which partition a node holds: the engine draws node ids at random."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        (folder / f"node-{context.node_id}").write_text(str(context.node_config["partition-id"]))
        return call_next(message, context)

    return mod


def run(folder: Path) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = skymask(FedAvg(), ledger=folder / "ledger.jsonl")
        initial = ArrayRecord(model().state_dict())
        result = strategy.start(grid, initial, num_rounds=ROUNDS, timeout=60)
        finite = all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
        told = {
            "excluded": sorted(strategy.excluded),
            "accuracy": accuracy(result.arrays),
            "finite": finite,
            "rounds": sorted(result.train_metrics_clientapp),
        }
        (folder / "result.json").write_text(json.dumps(told))

    mods = [noting(folder), drills.sign_flip(drills.partitions(*BAD), scale=2.0)]
    resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, client_app(mods), NODES, backend_config=resources)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
