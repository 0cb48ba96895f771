"""The server: FedAvg, and SkyMask around it."""

from logging import getLogger
from pathlib import Path

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from guarded.task import ATTACKS, accuracy, build_model, divided
from skymask import LocalSGD
from skymask.errors import require
from skymask.flower import SkyMask

app = ServerApp()
log = getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the configured number of rounds."""
    config = context.run_config
    require(config["attack"] in ATTACKS, "attack", config["attack"], " or ".join(ATTACKS))
    held = divided(config, 1)
    torch.manual_seed(config["seed"])  # noqa: TID251 -- the first global model is the seed's, too
    model = build_model(config)

    def evaluate(index: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy(model, held.test)})

    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if config["skymask"]:
        folder = Path(config["folder"]) if config["folder"] else None
        local = LocalSGD(config["local-steps"], config["batch-size"], config["learning-rate"])
        strategy = SkyMask(
            strategy,
            model=lambda: build_model(config),
            loss=F.cross_entropy,
            root_data=held.root,
            local=local,
            ledger=folder and folder / "ledger.jsonl",
            checkpoint=folder and folder / "checkpoint",
            node_deadline=config["node-deadline"],
        )
    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(config["rounds"]),
        timeout=config["reply-timeout"],
        evaluate_fn=evaluate,
    )
    last = max(result.evaluate_metrics_serverapp)
    log.info("accuracy after round %s: %s", last, result.evaluate_metrics_serverapp[last])
