"""A federation of real processes: one SuperLink, five SuperNodes, two of them malicious.

TLS and SuperNode authentication throughout, on 127.0.0.1. All tests share the federation, each run
has a folder of its own.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skymask.data import Dirichlet, divide, load
from skymask.flower.checkpoint import load_federation
from tests.flower.deployment import BIN, ROOT, SCRIPTS, Deployment, free_port, wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (shutil.which("openssl") and shutil.which("ssh-keygen")),
        reason="openssl and ssh-keygen make the certificates and keys",
    ),
]

APP = ROOT / "tests" / "flower" / "app"
NAMES = [f"node-{i}" for i in range(5)]
MALICIOUS, HONEST = set(NAMES[:2]), set(NAMES[2:])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The federation, with its data: each node's and the server's are files."""
    folder = tmp_path_factory.mktemp("federation")
    held = divide(load("digits"), len(NAMES), Dirichlet(10.0), root_size=100)
    parts = {"root": held.root, "test": held.test}
    np.savez(
        folder / "root.npz",
        **{f"{name}_inputs": part.inputs.numpy() for name, part in parts.items()},
        **{f"{name}_labels": part.labels.numpy() for name, part in parts.items()},
    )
    ends = held.clients.offsets.tolist()
    for name, begin, end in zip(NAMES, ends[:-1], ends[1:], strict=True):
        own = held.clients.inputs[begin:end].numpy(), held.clients.labels[begin:end].numpy()
        np.savez(folder / f"{name}.npz", inputs=own[0], labels=own[1])
    with Deployment(folder) as deployment:
        deployment.start_superlink()
        for name in NAMES:
            deployment.register(name)
        yield deployment


@pytest.fixture
def federation(shared: Deployment) -> Deployment:
    """The federation with all of its nodes connected, whatever the test before did to them.

    A killed node counts as online until it has missed two heartbeats, a minute, and as long Flower
    refuses it: it ends, and has to be started until it is let in.
    """

    def all_connected() -> bool:
        for name in NAMES:
            if not shared.runs(name):
                data = shared.folder / f"{name}.npz"
                shared.start_node(name, data=data, drill=name in MALICIOUS)
        return all(map(shared.connected, NAMES))

    wait_for("the SuperNodes", all_connected, 150)
    return shared


def start(federation: Deployment, folder: Path, **config: object) -> int:
    """`flwr run` of the app, which keeps its ledger and checkpoint in `folder`."""
    return federation.run(APP, root=federation.folder / "root.npz", folder=folder, **config)


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds in the ledger; for each, what it says of every node, by the node's name."""
    path = folder / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert [number for number, line in enumerate(lines) if "ledger" in line] in ([], [0])
    told = [line for line in lines if "nodes" in line]
    assert [line["round"] for line in told] == list(range(1, len(told) + 1))
    return [{entry["name"]: entry for entry in line["nodes"].values()} for line in told]


def strikes(nodes: dict[str, Any]) -> dict[str, int]:
    """The strikes after a round, by name, of those nodes that have any."""
    return {name: entry["strikes"] for name, entry in nodes.items() if entry["strikes"]}


def rounds_kept(folder: Path) -> int:
    """After how many rounds the checkpoint was written; 0 where there is none."""
    state = load_federation(folder, torch.device("cpu"))
    return 0 if state is None else state.rounds


def rounds_remembered(folder: Path) -> set[int]:
    """From how many rounds the detector in the checkpoint knows the nodes that it knows."""
    state = load_federation(folder, torch.device("cpu"))
    assert state is not None
    weights = state.memory["slow"]["all"]["weight"]  # 1 - 0.9 ** rounds
    return {round(float(count)) for count in (1 - weights).log() / torch.tensor(0.9).log()}


def test_malicious_nodes_are_excluded_and_honest_ones_are_not(federation, tmp_path):
    run = start(federation, tmp_path, rounds=5)
    assert federation.wait(run, 200) == "finished:completed", federation.run_log(run)
    told = rounds(tmp_path)
    assert len(told) == 5
    for nodes in told:
        assert set(nodes) == set(NAMES)
        assert {nodes[name]["verdict"] for name in HONEST} == {"accepted"}
        assert {nodes[name]["verdict"] for name in MALICIOUS} <= {"rejected", "excluded"}
    assert {told[-1][name]["verdict"] for name in MALICIOUS} == {"excluded"}
    keys = {entry["key"] for entry in told[0].values()}
    assert len(keys) == len(NAMES)
    assert all(key.startswith("sha256:") for key in keys)
    *_, log = federation.run_log(run).split("accuracy: [")
    accuracy = [float(value) for value in log.split("]")[0].split(",")]
    assert accuracy[-1] > accuracy[0] + 0.2


@pytest.mark.parametrize("killed", ["ServerApp", "SuperLink"])
def test_after_a_kill_the_next_run_goes_on(federation, tmp_path, killed):
    """Killed at the worst moment: a round is kept, the messages of the next are on their way."""
    stale = start(federation, tmp_path, rounds=2)
    wait_for("the first checkpoint", lambda: rounds_kept(tmp_path), 100)
    if killed == "ServerApp":
        (server,) = federation.children("flwr-serverapp")
        os.kill(server, signal.SIGKILL)
    else:
        federation.kill("superlink")
        wait_for("the ServerApp's end", lambda: not federation.children("flwr-serverapp"), 30)
        federation.start_superlink()
    (first,) = rounds(tmp_path)
    federation.flwr("stop", str(stale), "test")  # Flower holds its nodes for a minute else
    run = start(federation, tmp_path, rounds=2)
    assert federation.wait(run, 200) == "finished:completed", federation.run_log(run)
    assert "going on after round 1 of 2" in federation.run_log(run)
    before, after = rounds(tmp_path)
    assert before == first
    assert strikes(before) == dict.fromkeys(MALICIOUS, 1)
    assert strikes(after) == dict.fromkeys(MALICIOUS, 2)
    assert rounds_remembered(tmp_path) == {2}


def test_a_node_killed_in_a_round_is_missed_and_gets_no_strike(federation, tmp_path):
    victim = NAMES[-1]
    run = start(federation, tmp_path, rounds=2, nodes=4, reply_timeout=25)
    wait_for("its client app", lambda: federation.children("flwr-clientapp", victim), 100)
    federation.kill(victim)
    assert federation.wait(run, 200) == "finished:completed", federation.run_log(run)
    told = rounds(tmp_path)
    assert len(told) == 2
    assert told[0][victim]["verdict"] in ("silent", "error")
    assert set(strikes(told[0])) <= MALICIOUS
    assert set(strikes(told[1])) <= MALICIOUS
    assert "accepted" in {told[0][name]["verdict"] for name in HONEST}


def test_with_too_few_nodes_the_run_ends_with_a_clear_error(federation, tmp_path):
    run = start(federation, tmp_path, nodes=len(NAMES) + 1, node_deadline=3)
    assert federation.wait(run, 60) == "finished:failed"
    log = federation.run_log(run)
    assert "TooFewNodes: " in log
    assert "nodes are connected after" in log
    assert "node_deadline is 3 s" in log


def test_a_node_without_a_registered_key_is_refused(federation):
    federation.script("make-node-key.sh", str(federation.keys), "stranger")
    federation.start_node("stranger")
    where = [f"--superlink=127.0.0.1:{federation.port}", f"--port={free_port()}"]
    authority = f"--root-certificates={federation.certificates / 'ca.crt'}"
    federation.launch("keyless", [str(BIN / "flower-supernode"), *where, authority])
    for name, reason in (("stranger", "[code: 2004]"), ("keyless", "[code: 2001]")):
        wait_for(f"the end of {name}", lambda name=name: not federation.runs(name), 60)
        assert not federation.connected(name)
        assert "Exit Code: 305" in federation.text(name)
        assert reason in federation.text(name)


def test_a_server_of_another_authority_is_refused_by_the_node(federation):
    federation.script("make-certificates.sh", str(federation.folder / "other"))
    federation.launch(
        "misled",
        [str(SCRIPTS / "supernode.sh"), NAMES[0]],
        CERTIFICATES=federation.folder / "other",
        NODE_PORT=free_port(),
    )
    wait_for("a failed attempt", lambda: "attempt failed" in federation.text("misled"), 60)
    assert not federation.connected("misled")
    federation.kill("misled")
