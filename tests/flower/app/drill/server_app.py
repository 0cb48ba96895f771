"""The server: FedAvg with SkyMask around it."""

from logging import getLogger
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from drill.client_app import BATCH, RATE, STEPS
from skymask import LocalSGD
from skymask.flower import SkyMask
from skymask.models import mlp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the configured number of rounds, and say how well the model does."""
    config = context.run_config
    with np.load(config["root"]) as held:
        root, test = (
            (torch.from_numpy(held[f"{part}_inputs"]), torch.from_numpy(held[f"{part}_labels"]))
            for part in ("root", "test")
        )
    torch.manual_seed(1)
    model = mlp(64, 10)

    def evaluate(index: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord(
            {"accuracy": float((model(test[0]).argmax(1) == test[1]).float().mean())}
        )

    nodes = int(config["nodes"])
    strategy = SkyMask(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes),
        model=lambda: mlp(64, 10),
        loss=F.cross_entropy,
        root_data=root,
        local=LocalSGD(STEPS, BATCH, RATE),
        ledger=Path(config["folder"]) / "ledger.jsonl",
        checkpoint=Path(config["folder"]),
        node_deadline=config["node-deadline"],
    )
    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(config["rounds"]),
        timeout=config["reply-timeout"],
        evaluate_fn=evaluate,
    )
    accuracy = [float(m["accuracy"]) for m in result.evaluate_metrics_serverapp.values()]
    getLogger("flwr").info("accuracy: %s", accuracy)
