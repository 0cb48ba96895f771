"""Run folders made by hand, and written reports taken apart."""

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from skymask.attacks import MinSum
from skymask.defences import SkyMask
from skymask.experiment import Experiment, to_json
from skymask.records import RunFolder

EXPERIMENT = Experiment(
    data="digits", attack=MinSum(), defence=SkyMask(), malicious=0.25, clients=8, rounds=4
).resolved()
OUTSIDE = "its mask is outside the benign cluster (probability 0.{:02} of being inside)"
RECORDS: list[dict[str, Any]] = [
    {"fpr": 0.0, "fnr": 0.5, "rejected": {"7": OUTSIDE.format(1)}, "seconds": 1.0},
    {"fpr": 0.5, "fnr": 0.0, "rejected": {"7": OUTSIDE.format(2), "3": None}, "seconds": 1.5},
    {"fpr": 0.0, "fnr": 0.0, "rejected": {"7": "its update is not finite"}, "seconds": 1.0},
    {"fpr": 0.1, "fnr": None, "rejected": {}, "seconds": 1.5, "fallback": "nobody is left"},
]
RECORDS[1]["accuracy"], RECORDS[3]["accuracy"] = 0.625, 0.875
SUMMARY = {"accuracy": 0.875, "accuracy_last5": 0.75, "fpr": 0.15, "fnr": 1 / 6, "seconds": 5.0}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def make_run(
    path: Path,
    *,
    records: list[dict[str, Any]] | None = None,
    closeups: list[dict[str, Any]] | None = None,
    summary: Mapping[str, Any] | None = SUMMARY,
    experiment: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """A run folder by hand: four rounds of eight clients unless told otherwise."""
    folder = RunFolder(path)
    described = to_json(EXPERIMENT) | dict(experiment or {})
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    folder.start({"experiment": described, "versions": versions, "device": "cpu"} | manifest)
    if records is None:
        records = RECORDS
    for index, record in enumerate(records):
        folder.append({"round": index} | record)
    for closeup in closeups or []:
        folder.append_closeup(closeup)
    if summary is not None:
        folder.finish(summary)
    return path


def make_closeup(index: int, clients: int = 8, **changed: Any) -> dict[str, Any]:
    """What is known of each client in a round: client 7 and 3 stand apart, the root is last."""
    rows = range(clients + 1)
    return {
        "round": index,
        "clients": list(range(clients)),
        "points": [[float(i % 5), 9.0 if i in (3, 7) else float(index)] for i in rows],
        "apart": [i in (3, 7) for i in rows],
        "gain": 2.5,
        "values": {"score": [i - 4.0 for i in range(clients)], "length": [0.25] * (clients + 1)},
        "ones": {"a.weight": [i / 10 for i in rows], "b.weight": [0.5] * (clients + 1)},
    } | changed


def make_ledger(path: Path, *lines: dict[str, Any], start: dict[str, Any] | None = None) -> Path:
    """A ledger of three nodes by hand; `lines` come after the first two rounds."""
    about = {"ledger": 1, "inner": "FedAvg", "defence": "SkyMask", "seed": 0}
    rounds = [
        {
            "round": index,
            "seconds": {"clients": 2.0, "defence": 0.5, "round": 2.5},
            "nodes": {
                "11": {"verdict": "accepted", "strikes": 0, "resting": 0, "name": "clinic-1"},
                "12": {"verdict": verdict, "reason": "too long", "strikes": 3, "resting": resting},
                "13": {"verdict": "silent", "strikes": 0, "resting": 0},
            },
        }
        for index, verdict, resting in ((1, "rejected", 0), (2, "excluded", 19))
    ]
    text = "".join(json.dumps(line) + "\n" for line in [about | (start or {}), *rounds, *lines])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def evil_run(folder: Path) -> Path:
    """A run that tries to break out of the page wherever a folder can say something."""
    return make_run(
        folder / "<b>run<b> & <script>alert(1)<",
        records=[{"accuracy": 0.5, "fpr": 0.0, "fnr": 0.0, "rejected": {EVIL: EVIL, "<i>": None}}],
        closeups=[make_closeup(0, values={EVIL: [0.5] * 8}, ones={EVIL: [0.5] * 9})],
        experiment={
            "data": EVIL,
            "model": EVIL,
            "attack": {"name": EVIL, "settings": {EVIL: EVIL}},
            "defence": EVIL,
            "seed": EVIL,
            "rounds": EVIL,
        },
        summary=None,
        command=EVIL,
        versions={EVIL: EVIL},
        device=EVIL,
    )


class Page(HTMLParser):
    """A written report, taken apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self.texts.append(data)
            if "tr" in self._open:
                self.rows[-1].append(data)

    @property
    def text(self) -> str:
        """What a reader sees, on one line."""
        return " ".join(" ".join(self.texts).split())

    @property
    def code(self) -> list[str]:
        """The scripts that run: plotly.js, and the page's own."""
        return self.scripts[2:]

    @property
    def clients(self) -> list[dict[str, Any]]:
        """What the page's script gets of each run's clients."""
        return list(json.loads(self.scripts[1]))

    @property
    def figures(self) -> dict[str, Any]:
        """The figures as plotly.js gets them."""
        return dict(json.loads(self.scripts[0]))
