"""A hundred nodes in Flower's simulation engine, twenty of them faulty in ten ways at once.

`python -m benchmarks.reliability.federation FOLDER NODES FAULTY ROUNDS` is one run, in a process of
its own because the engine keeps its state in the process; FOLDER gets the ledger, result.json, and
for each node a file that says which partition it holds.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import arrayrecord
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from flwr.supercore.task_identity import TaskIdentity

from skymask.flower import drills
from tests.flower.deployment import end_all, surroundings
from tests.flower.federation import LOCAL, Federation, accuracy, digits, model, skymask

KINDS = 10
EACH = 100
"""Images a node holds, drawn from those that are neither the server's nor for testing."""


def faults(faulty: int) -> list[Mod]:
    """The partitions below `faulty` misbehave, each in one of ten ways."""

    def those(kind: int) -> drills.On:
        return drills.partitions(*range(kind, faulty, KINDS))

    return [
        drills.not_a_number(those(0)),
        drills.wrong_shape(those(1)),
        drills.wrong_keys(those(2)),
        drills.garbage(those(3)),
        drills.examples(those(4), 1e15),
        drills.examples(those(5), -1e6),
        drills.missing_metrics(those(6)),
        drills.fails(those(7)),
        drills.scaling(those(8), 1e6),
        drills.sign_flip(those(9), 3.0),
    ]


def app(mods: Sequence[Mod]) -> ClientApp:
    """Nodes that train on 100 images each, which they draw by the number of their partition."""
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        which = int(context.node_config["partition-id"])
        inputs, labels = (part[500:] for part in digits())
        draw = torch.Generator().manual_seed(which)
        mine = torch.randperm(len(labels), generator=draw)[:EACH]
        net = model()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(net.parameters(), lr=LOCAL.lr)
        for _ in range(LOCAL.steps):
            rows = mine[torch.randperm(EACH, generator=draw)[: LOCAL.batch]]
            optimiser.zero_grad()
            F.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimiser.step()
        content = RecordDict(
            {
                "arrays": ArrayRecord(net.state_dict()),
                "metrics": MetricRecord({"num-examples": EACH}),
            }
        )
        return Message(content, reply_to=message)

    return made


def in_the_engine(folder: Path, nodes: int, faulty: int, rounds: int) -> None:
    """One run; see the module."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = skymask(FedAvg(fraction_evaluate=0.0), ledger=folder / "ledger.jsonl")
        initial = ArrayRecord(model().state_dict())
        result = strategy.start(grid, initial, num_rounds=rounds, timeout=300)
        told = {"accuracy": accuracy(result.arrays), "rounds": len(result.train_metrics_clientapp)}
        (folder / "result.json").write_text(json.dumps(told))

    def noting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        (folder / f"node-{context.node_id}").write_text(str(context.node_config["partition-id"]))
        return call_next(message, context)

    resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, app([noting, *faults(faulty)]), nodes, backend_config=resources)


def engine_row(nodes: int, faulty: int, rounds: int) -> dict[str, object]:
    """The run with faulty nodes beside one with the others alone."""
    with tempfile.TemporaryDirectory() as name:
        found, honest = (
            _run(Path(name) / str(bad), many, bad, rounds)
            for many, bad in ((nodes, faulty), (nodes - faulty, 0))
        )
    return {
        "what": f"Flower's engine, {faulty} nodes faulty in {KINDS} ways",
        "clients": nodes,
        "rounds": found["rounds"],
        "accuracy": f"{100 * found['accuracy']:.1f} %",
        "accuracy of the honest alone": f"{100 * honest['accuracy']:.1f} %",
        "FPR": f"{100 * found['honest']:.1f} %",
        "FNR": f"{100 * found['faulty']:.1f} %",
        "memory growth": "-",
    }


def _run(folder: Path, nodes: int, faulty: int, rounds: int) -> dict[str, Any]:
    """What a run gave, and how many honest entries were not accepted and faulty ones were."""
    folder.mkdir()
    module, numbers = "benchmarks.reliability.federation", (nodes, faulty, rounds)
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder), *map(str, numbers)],
        env=surroundings(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    end_all(folder)
    if done.returncode:
        raise SystemExit(f"the engine's run failed:\n{done.stderr[-3000:]}")
    part = {path.name.removeprefix("node-"): int(path.read_text()) for path in _nodes(folder)}
    wrong: dict[bool, list[bool]] = {True: [], False: []}
    for line in (folder / "ledger.jsonl").read_text().splitlines():
        for node, entry in json.loads(line).get("nodes", {}).items():
            bad = part.get(node, faulty) < faulty
            wrong[bad].append((entry["verdict"] == "accepted") == bad)
    told = json.loads((folder / "result.json").read_text())
    shares = {bad: sum(found) / max(1, len(found)) for bad, found in wrong.items()}
    return {**told, "faulty": shares[True], "honest": shares[False]}


def _nodes(folder: Path) -> Iterator[Path]:
    return folder.glob("node-*")


def in_one_process(nodes: int, faulty: int, rounds: int, watch: Callable[[], object]) -> float:
    """The same federation without an engine; the final accuracy. `watch` is called each round."""

    class Watched(Federation):
        def send_and_receive(self, messages: Any, **settings: Any) -> Any:
            watch()
            return super().send_and_receive(messages, **settings)

    with ExitStack() as outside, tempfile.TemporaryDirectory() as name:
        # What an engine does: messages carry the run and node of the process that makes them.
        for field in ("_task_id", "_run_id", "_node_id"):
            outside.enter_context(patch.object(TaskIdentity, field, 1))
        # Flower collects garbage at every array that it unpacks, a thousand times a round here.
        outside.enter_context(patch.object(arrayrecord.gc, "collect", lambda: 0))
        strategy = skymask(FedAvg(fraction_evaluate=0.0), ledger=Path(name) / "ledger.jsonl")
        initial = ArrayRecord(model().state_dict())
        grid = Watched(app(faults(faulty)), nodes=nodes)
        return accuracy(strategy.start(grid, initial, num_rounds=rounds).arrays)


if __name__ == "__main__":
    in_the_engine(Path(sys.argv[1]), *map(int, sys.argv[2:]))
