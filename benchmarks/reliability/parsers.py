"""Everything of SkyMask that reads bytes of others: a function for each, and valid files for it.

A target takes bytes and a folder to put them in. It may raise `InputError`, and nothing else.
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import skymask as sm
from skymask.components import parse
from skymask.data import download
from skymask.data.formats import read_cifar_batch, read_column, read_idx, read_table, unpack_gzip
from skymask.data.official import Archive, OfficialFile, OfficialSet
from skymask.errors import InputError
from skymask.experiment import KINDS, Experiment, from_json, to_json
from skymask.records import Checkpoint, RunFolder, json_text
from skymask.report.page import content, explorers
from skymask.report.read import read_runs
from skymask.report.tables import drawing, shown
from skymask.report.tables import read_table as read_report_table
from skymask.tables.cell import identity
from skymask.tables.record import read_records

CPU = torch.device("cpu")
EXPERIMENT = Experiment(
    data="digits", attack=sm.MinSum(), defence=sm.SkyMask(), malicious=0.25, clients=4, rounds=3
).resolved()


@dataclass(frozen=True)
class Target:
    """A parser: what feeds it, and valid files that hostile ones are made of."""

    feed: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    bombs: Callable[[], list[bytes]] = list
    """Hostile files of this format, tried as they are."""


# Data files.


def _idx(shape: tuple[int, ...]) -> bytes:
    head = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", k) for k in shape)
    return head + bytes(i % 256 for i in range(int(np.prod(shape))))


def _batches() -> list[bytes]:
    """As numpy pickles an array today, and as Python 2 did when the data set was made."""
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    old = b"".join(
        [
            b"\x80\x02}(U\x06labels](K\x07K\x02eU\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tbu.",
        ]
    )
    held = {b"data": pixels, b"labels": [3, 9]}
    return [old, *(pickle.dumps(held, protocol=k) for k in (2, 4, 5))]


def _shared(levels: int) -> bytes:
    """Tuples that hold one another twice: a few bytes, and 2^levels steps to hash."""
    return b"\x80\x02})" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(levels))


_BOMBS = (
    b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2^31 entries
    b"\x80\x02Np4000000000\n.",
    b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f.",  # bytes of 2^63, and of 2^33
    b"\x80\x05\x8e" + (2**33).to_bytes(8, "little") + b"x.",
    b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b"x.",
    b"\x80\x02T\xff\xff\xff\x7fx.",
    _shared(60) + b"Ns.",
)

WANTED = OfficialSet("mine", "folder", (OfficialFile("a.txt"), OfficialFile("b/c.txt")), (), "1 kB")


def _tar(names: Iterable[str] = ("folder/a.txt", "folder/b/c.txt")) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"hello"))
    return packed.getvalue()


def _zip(names: Iterable[str] = ("folder/a.txt", "folder/b/c.txt"), size: int = 5) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"h" * size)
    return packed.getvalue()


def _unpacked(ending: str) -> Callable[[bytes, Path], object]:
    archive = Archive(f"https://example.org/x{ending}", "")
    return lambda data, folder: download._contents(archive, data, WANTED)


# A run's folder.


@cache
def _run_files() -> dict[str, bytes]:
    """The files of a run of three rounds, each as a valid one is."""
    closeup = {
        "round": 0,
        "clients": [0, 1, 2, 3],
        "points": [[0.5, 1.0]] * 5,
        "apart": [False] * 4 + [True],
        "gain": 2.5,
        "values": {"score": [1.0, 2.0, 3.0, None], "length": [0.25] * 5},
        "ones": {"a.weight": [0.5] * 5},
    }
    records = [
        {
            "round": index,
            **{"clients": 4, "malicious": 1, "fpr": 0.0, "fnr": 0.5, "seconds": 1.5},
            **{"accuracy": 0.5, "attack_success": 0.1, "took_part": [0, 1, 2, 3]},
            "rejected": {"3": "its mask is outside the benign cluster (0.01)"},
            "stages": {"train": 0.5, "defence": 0.25},
            "fallback": None,
            "evidence": {"gain": 2.5},
        }
        for index in range(3)
    ]
    totals = ("accuracy", "accuracy_last5", "fpr", "fnr", "attack_success", "seconds")
    manifest = {
        "experiment": to_json(EXPERIMENT),
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "device": "cpu",
        "threads": 1,
        "malicious_clients": [3],
        "command": "skymask run digits",
    }
    return {
        "manifest.json": json_text(manifest, 2).encode(),
        "rounds.jsonl": "".join(json_text(record) + "\n" for record in records).encode(),
        "closeups.jsonl": "".join(
            json_text({**closeup, "round": index}) + "\n" for index in range(3)
        ).encode(),
        "summary.json": json_text(dict.fromkeys(totals, 0.5)).encode(),
    }


def _compact(file: str) -> list[bytes]:
    """The valid file, and the same on one line, which can be changed as JSON."""
    text = _run_files()[file]
    return [text, json.dumps(json.loads(text)).encode()] if file.endswith(".json") else [text]


def _in_run(file: str) -> Callable[[bytes, Path], object]:
    def feed(data: bytes, folder: Path) -> None:
        for name, valid in _run_files().items():
            (folder / name).write_bytes(data if name == file else valid)
        shown_of(folder)

    return feed


def shown_of(path: Path) -> None:
    """Read a run and make of it all that a page shows."""
    runs = read_runs([path])
    content(runs)
    json_text(explorers(runs))


def _resumed(data: bytes, folder: Path) -> None:
    """What a resumed run does with the records: drop those after its checkpoint."""
    for name, valid in _run_files().items():
        (folder / name).write_bytes(valid)
    (folder / "rounds.jsonl").write_bytes(data)
    (folder / "closeups.jsonl").write_bytes(data)
    RunFolder(folder).cut(1)


def _saved(save: Callable[[Path], None], name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return (Path(folder) / name).read_bytes()


def _checkpoints() -> list[bytes]:
    memory = {"scores": torch.ones(3), "kept": [1, "a", None, {"x": torch.zeros(2, 2)}]}
    state = Checkpoint(2, torch.ones(6), torch.ones(2), memory, {"seen": [0.5]})
    file = "checkpoint.safetensors"
    return [
        _saved(lambda folder: RunFolder(folder).save(state), file),
        _saved(
            lambda folder: RunFolder(folder).save(
                Checkpoint(0, torch.ones(1), torch.ones(0), None)
            ),
            file,
        ),
    ]


def _checkpoint(data: bytes, folder: Path) -> None:
    (folder / "checkpoint.safetensors").write_bytes(data)
    RunFolder(folder).load(CPU)


# Text and JSON.


def _component(data: bytes, folder: Path) -> None:
    for kind in KINDS:
        try:
            made = parse(data.decode("utf-8", "surrogateescape"), KINDS, kind, f=0.2)
        except InputError as error:
            refused = error
        else:
            hash(made)
            return
    raise refused


_COMPONENTS = (
    "krum:f=3",
    "filtered:detector=skymask,aggregator=(trimmed-mean:f=2)",
    "nnm:f=0.1,aggregator=(bucketing:size=2,aggregator=(median))",
    "mixed:attacks=neurotoxin+(alie:z=0.5)",
    "starts-at:round=9,attack=(scaling:factor=2.5)",
    "groups:q=0.5",
    "skymask:memory=0.5",
    "min-sum:direction=std",
)


def _experiment(data: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(data)
    from_json(RunFolder(folder).manifest["experiment"])


def _experiments() -> list[bytes]:
    many = (
        EXPERIMENT,
        Experiment(data="har", defence=sm.Krum(3)).resolved(),
        Experiment(
            attack=sm.Mixed((sm.ALIE(), sm.Neurotoxin())),
            defence=sm.NearestNeighbourMixing(0.1, sm.TrimmedMean(0.1)),
            partition=sm.Dirichlet(),
        ).resolved(),
    )
    return [json.dumps({"experiment": to_json(each)}).encode() for each in many]


def _table(data: bytes, folder: Path) -> None:
    (folder / "table.json").write_bytes(data)
    table = read_report_table(folder / "table.json")
    for name in shown(table):
        json_text(drawing(table, name))


def _tables() -> list[bytes]:
    value = {"value": 0.5, "spread": 0.01, "seeds": 3}
    told = {
        "table": "small",
        "title": "A small table",
        "measures": {"accuracy": "share", "fpr": "share"},
        "cells": [
            {"row": row, "column": column, "accuracy": value, "fpr": value, "target": "met"}
            | {"published": {"accuracy": 0.6}}
            for row in ("a", "b")
            for column in ("x", "y")
        ],
        "seeds": 3,
        "lacks": {"missing": 0, "cells": 4},
        "conditions": {"rounds": 3, "seconds": 1.5, "devices": {"cpu": 4}, "commands": {"x": 1}},
    }
    return [json.dumps(told).encode()]


def _record(data: bytes, folder: Path) -> None:
    (folder / "cells").mkdir(exist_ok=True)
    (folder / "cells" / "it.json").write_bytes(data)
    for record in read_records(folder).values():
        record.seed, record.fpr, record.fnr, record.summary  # noqa: B018 -- read when looked at


def _records() -> list[bytes]:
    rounds = {"honest": [[3, 3]], "malicious": [1, 1, 1], "false_positives": [0, 1, 0]}
    evaluated = -(-EXPERIMENT.rounds // EXPERIMENT.eval_every)
    told = {
        "cell": identity(to_json(EXPERIMENT)),
        "experiment": to_json(EXPERIMENT),
        "summary": {"accuracy": 0.5, "fpr": 0.1, "fnr": None, "seconds": 2.0},
        "rounds": rounds | {"false_negatives": [[0, 3]]},
        "evaluations": {"accuracy": [0.5] * evaluated},
        "evidence": {},
        "stages": {"train": 1.0},
        "versions": {"python": "3.11.7"},
        "device": "cpu",
        "seconds": 2.0,
        "command": "skymask table",
        "warnings": [],
    }
    return [json.dumps(told).encode()]


def _text(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


_IN_REPORT = {
    file: Target(_in_run(file), lambda file=file: _compact(file))  # type: ignore[misc]
    for file in ("manifest.json", "rounds.jsonl", "closeups.jsonl", "summary.json")
}
TARGETS: dict[str, Target] = {
    "gzip": Target(
        lambda data, folder: unpack_gzip(data, "it"),
        lambda: [gzip.compress(_idx((3,)))],
        lambda: [gzip.compress(bytes(1 << 29), 1), b"\x1f\x8b\x08"],
    ),
    "IDX": Target(
        lambda data, folder: read_idx(data, "it"),
        lambda: [_idx((2, 3, 4)), _idx((5,)), b"\0\0\x08\x04" + b"\xff" * 16 + b"abc"],
        lambda: [b"\0\0\x08\x05" + bytes(4) + b"\xff" * 16, b"\0\0\x08A" + b"\0\0\0\1" * 65 + b"x"],
    ),
    "CIFAR-10 batch": Target(
        lambda data, folder: read_cifar_batch(data, "it"), _batches, lambda: [*_BOMBS]
    ),
    "HAR features": Target(
        lambda data, folder: read_table(data, 3, "it"),
        _text("  1.0e+00  -2.5  3\n 4 5 6\n", "1 2 3\n1e999 2 3\n", "\x1c\n"),
    ),
    "HAR labels": Target(
        lambda data, folder: read_column(data, 1, 6, "it"), _text("1\n6\n3\n", "1\r\n2\r\n")
    ),
    "archive .tar.gz": Target(_unpacked(".tar.gz"), lambda: [_tar(), _tar(["../a", "/b", "C:/c"])]),
    "archive .zip": Target(
        _unpacked(".zip"), lambda: [_zip(), _zip(["../a", "/b"]), _zip(size=1 << 22)]
    ),
    **_IN_REPORT,
    "records, resumed": Target(_resumed, lambda: _compact("rounds.jsonl")),
    "checkpoint.safetensors": Target(_checkpoint, _checkpoints),
    "component in text": Target(_component, _text(*_COMPONENTS)),
    "experiment in JSON": Target(_experiment, _experiments),
    "table in JSON": Target(_table, _tables),
    "record of a table": Target(_record, _records),
}
"""By name; those of Flower are there where Flower is."""


# Flower: ledgers, checkpoints, replies.

if find_spec("flwr") is not None:
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.serverapp.strategy import FedAdam
    from flwr.supercore.task_identity import TaskIdentity

    from skymask.flower.checkpoint import Federation, load_federation, remind, save_federation
    from skymask.flower.layout import Arrays, Layout, Malformed, decode, layout
    from skymask.flower.ledger import Ledger
    from skymask.flower.policy import Standing
    from skymask.flower.replies import screened, screened_evaluation, sorted_out

    def _ledgers() -> list[bytes]:
        about = {"ledger": 1, "inner": "FedAvg", "defence": "SkyMask", "seed": 0}
        held = {"strikes": 1, "resting": 0}
        rounds = [
            {
                "round": index,
                "seconds": {"clients": 2.0, "round": 2.5},
                "nodes": {
                    "11": {"verdict": "accepted", **held, "name": "clinic"},
                    "12": {"verdict": "rejected", **held, "reason": "too long"},
                    "13": {"verdict": "silent", **held},
                },
                "warnings": [],
            }
            for index in (1, 2)
        ]
        lines = [about, rounds[0], about, *rounds, {"round": 2, "evaluation": {"11": {}}}]
        return ["".join(json.dumps(line) + "\n" for line in lines).encode()]

    def _beside() -> list[bytes]:
        closeup = json.loads(_run_files()["closeups.jsonl"].split(b"\n")[0])
        evaluation = {"round": 1, "server_evaluation": {"accuracy": 0.5}}
        lines = [{**closeup, "round": 1}, evaluation]
        return ["".join(json.dumps(line) + "\n" for line in lines).encode()]

    def _ledger_shown(data: bytes, folder: Path) -> None:
        (folder / "ledger.jsonl").write_bytes(data)
        shown_of(folder / "ledger.jsonl")

    def _beside_shown(data: bytes, folder: Path) -> None:
        (folder / "ledger.jsonl").write_bytes(_ledgers()[0])
        (folder / "ledger.closeups.jsonl").write_bytes(data)
        shown_of(folder / "ledger.jsonl")

    def _ledger_resumed(data: bytes, folder: Path) -> None:
        (folder / "ledger.jsonl").write_bytes(data)
        ledger = Ledger(folder / "ledger.jsonl")
        ledger.standings()
        ledger.start({}, 1)

    def _beside_resumed(data: bytes, folder: Path) -> None:
        (folder / "ledger.jsonl").write_bytes(_ledgers()[0])
        (folder / "ledger.closeups.jsonl").write_bytes(data)
        Ledger(folder / "ledger.jsonl").start({}, 1)

    def _federations() -> list[bytes]:
        state = Federation(
            3,
            _arrays(),
            {"scores": torch.ones(3)},
            {11: Standing(1, 0)},
            {"m_t": {"dict": {"a": {"ndarray": torch.ones(3)}}}, "eta": 0.1},
            about={"inner": "FedAdam", "defence": "SkyMask"},
        )
        file = "federation.safetensors"
        return [_saved(lambda folder: save_federation(folder, state), file)]

    def _federation(data: bytes, folder: Path) -> None:
        (folder / "federation.safetensors").write_bytes(data)
        state = load_federation(folder, CPU)
        assert state is not None
        remind(FedAdam(), state.inner)

    def _module() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    @cache
    def _arrays() -> ArrayRecord:
        return ArrayRecord(_module().state_dict())

    @cache
    def _layout() -> tuple[Layout, Arrays]:
        arrays = _arrays()
        return layout(arrays, _module()), {key: array.numpy() for key, array in arrays.items()}

    @cache
    def _exchange() -> tuple[list[Message], list[Message]]:
        """Requests to three nodes, and their honest replies."""
        for name in ("_task_id", "_run_id", "_node_id"):  # what a message tells of its process
            setattr(TaskIdentity, name, 1)
        asked, replies = [], []
        for node in (1, 2, 3):
            request = Message(RecordDict({"arrays": _arrays()}), node, "train")
            request.metadata.__dict__["_message_id"] = f"request {node}"
            metrics = MetricRecord({"num-examples": 10, "loss": 0.5, "many": [1.0, 2.0]})
            reply = Message(RecordDict({"arrays": _arrays(), "metrics": metrics}), reply_to=request)
            asked.append(request)
            replies.append(reply)
        return asked, replies

    def _replies() -> list[bytes]:
        return [message_to_proto(reply).SerializeToString() for reply in _exchange()[1][1:2]]

    def _reply(data: bytes, folder: Path) -> None:
        asked, replies = _exchange()
        try:
            hostile = message_from_proto(ProtoMessage.FromString(data))
        except Exception as error:  # Flower's own part: such bytes never reach a strategy
            raise InputError(f"Flower does not take it: {error}") from error
        came, verdicts = sorted_out(asked, [replies[0], hostile, replies[2]])
        _, malformed = screened(came, *_layout(), "num-examples", 100.0, "loss")
        _, unusable = screened_evaluation(came, "num-examples", 100.0)
        for found in (verdicts, malformed, unusable):
            for verdict in found.values():
                raise InputError(f"node: {verdict.reason}")

    def _array(data: bytes, folder: Path) -> None:
        try:
            decode("weight", Array("float32", (2, 3), "numpy.ndarray", data))
        except Malformed as error:
            raise InputError(f"node: {error}") from error

    def _encoded() -> list[bytes]:
        many: list[Any] = [np.ones((2, 3), "f4"), np.array(3), np.zeros((0, 2)), np.ones(2, ">f8")]
        packed = []
        for array in many:
            file = io.BytesIO()
            np.save(file, array)
            packed.append(file.getvalue())
        return packed

    TARGETS |= {
        "ledger, in the report": Target(_ledger_shown, _ledgers),
        "its close-ups, in the report": Target(_beside_shown, _beside),
        "ledger, by the server": Target(_ledger_resumed, _ledgers),
        "its close-ups, by the server": Target(_beside_resumed, _beside),
        "federation.safetensors": Target(_federation, _federations),
        "reply of a node": Target(_reply, _replies),
        "array of a node": Target(_array, _encoded),
    }
