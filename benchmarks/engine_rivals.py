"""The work of `benchmarks.engines` in other libraries' engines: FOLDER with the task is its input.

Started by the interpreter of an environment that has Flower (with Ray) or pfl-research. FOLDER
holds `data.npz`, with every client's samples and the first weights of a linear model, and
`task.json`: how many rounds each library goes, how many workers it has and the learning rate. A
round is one step of every client on all its samples, and the mean of what they send. Writes
`result.npz`: the library and its version, the weights at the end, and when each round ended, in
seconds since the engine was called. Needs nothing of SkyMask.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Marks = list[float]
"""The time at the start, and at the end of each round."""


@cache
def data(folder: Path) -> dict[str, Tensor]:
    """What `data.npz` holds; a worker reads it once."""
    return {name: torch.from_numpy(part) for name, part in np.load(folder / "data.npz").items()}


@cache
def task(folder: Path) -> dict[str, Any]:
    """What `task.json` holds."""
    told: dict[str, Any] = json.loads((folder / "task.json").read_text())
    return told


@cache
def model(folder: Path) -> nn.Linear:
    """The linear model with its first weights, one in each worker."""
    weight, bias = data(folder)["weight"], data(folder)["bias"]
    module = nn.Linear(weight.shape[1], weight.shape[0])
    module.load_state_dict({"weight": weight, "bias": bias})
    return module


def flwr_train(message: Any, context: Any) -> Any:
    """What a Flower client does with a message: its data and its model stay in the worker."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    folder, client = Path(message.content["config"]["folder"]), context.node_config["partition-id"]
    inputs, labels = data(folder)["inputs"][client], data(folder)["labels"][client]
    module = model(folder)
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(module.parameters(), lr=task(folder)["lr"])
    optimiser.zero_grad()
    F.cross_entropy(module(inputs), labels).backward()
    optimiser.step()
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def flwr(folder: Path) -> tuple[dict[str, Tensor], Marks]:
    """Flower's simulation engine with Ray's workers, one for each core."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    clients, workers = len(data(folder)["labels"]), task(folder)["workers"]
    marks, found = [], {}
    server, client = ServerApp(), ClientApp()
    # Under its own name the function travels as that name, and workers keep what is cached.
    client.train()(import_module("engine_rivals").flwr_train)

    def watch(index: int, arrays: Any) -> None:
        if index:
            marks.append(time.perf_counter())

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        result = strategy.start(
            grid,
            ArrayRecord(model(folder).state_dict()),
            num_rounds=task(folder)["rounds"]["flwr"],
            train_config=ConfigRecord({"folder": str(folder)}),
            evaluate_fn=watch,
        )
        found.update(result.arrays.to_torch_state_dict())

    marks.append(time.perf_counter())
    resources = {"init_args": {"num_cpus": workers}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, client, clients, backend_config=resources)
    return found, marks


def pfl(folder: Path) -> tuple[dict[str, Tensor], Marks]:
    """pfl-research's simulated backend, one process for each core."""
    others = _pfl_workers(task(folder)["workers"])
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Model(nn.Module):
        """The linear model as pfl wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = model(folder)

        def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.linear(inputs), labels)

        def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
            return {"samples": Weighted.from_unweighted(len(labels))}  # asked for in round 0 alone

    class Watch(TrainingProcessCallback):
        """Notes when a round ends."""

        def after_central_iteration(self, *told: Any, **more: Any) -> tuple[bool, Metrics]:
            marks.append(time.perf_counter())
            return False, Metrics()

    marks = [time.perf_counter()]
    pairs = zip(data(folder)["inputs"], data(folder)["labels"], strict=True)
    users = {user: Dataset(pair, user_id=str(user)) for user, pair in enumerate(pairs)}
    sampler = get_user_sampler("minimize_reuse", list(users))
    federation = FederatedDataset(users.__getitem__, sampler)
    rounds, module = task(folder)["rounds"]["pfl"], Model()
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, 2 * rounds, len(users), None),
        SimulatedBackend(federation, federation),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=None, local_num_epochs=1, local_learning_rate=task(folder)["lr"]
        ),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    for other in others:
        other.wait()
    return module.linear.state_dict(), marks


def _pfl_workers(count: int) -> list[subprocess.Popen[bytes]]:
    """Start the other workers; pfl learns of them from its environment."""
    torch.set_num_threads(1)  # the tensors are small: with more it is slower
    if count == 1 or "PFL_WORKER_RANK" in os.environ:
        return []
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{probe.getsockname()[1]}"] * count
    os.environ |= {"PFL_WORKER_ADDRESSES": ",".join(addresses), "PFL_WORKER_RANK": "0"}
    return [
        subprocess.Popen(
            [sys.executable, *sys.argv], env=os.environ | {"PFL_WORKER_RANK": str(rank)}
        )
        for rank in range(1, count)
    ]


Engine = Callable[[Path], tuple[dict[str, Tensor], Marks]]
ENGINES: dict[str, Engine] = {"flwr": flwr, "pfl": pfl}


def main() -> None:
    """Run the task in the engine that this environment has."""
    folder = Path(sys.argv[1])
    name = next((name for name in ENGINES if find_spec(name)), None)
    if name is None:
        raise SystemExit(f"{sys.executable} has neither flwr nor pfl")
    weights, marks = ENGINES[name](folder)
    if os.environ.get("PFL_WORKER_RANK", "0") == "0":
        parts = {part: tensor.detach().numpy() for part, tensor in weights.items()}
        ends = np.array(marks[1:]) - marks[0]
        np.savez(folder / "result.npz", library=name, version=version(name), ends=ends, **parts)


if __name__ == "__main__":
    main()
