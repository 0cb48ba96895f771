"""What is asked of SkyMask's speed beside what is measured: `python -m benchmarks.targets`.

Each figure is a median and stands beside that of a straightforward implementation (`straightforward
.py`), which does the same work in the same process, in turns, and whose results are compared first.
Fashion-MNIST and UCI HAR are the real data sets; where time alone counts and the data set is not at
hand, images of CIFAR-10's size are drawn at random. `--only` runs some of the parts.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import skymask as sm
from benchmarks import straightforward
from benchmarks.measuring import (
    DEFAULT,
    HALF,
    PAPER,
    Setting,
    cifar,
    clients_of,
    decision,
    once_more,
    random_images,
    round_seconds,
    rounds_per_second,
    straightforward_round,
    training_seconds,
)
from benchmarks.stage import STEPS, alternate, captured
from benchmarks.writing import RESULTS, conditions, markdown_table, told_of
from skymask.local_sgd import LocalSGD
from skymask.models import ResNet20, cnn


@dataclass(frozen=True)
class Row:
    """One thing that is asked for. Seconds, if not said otherwise."""

    what: str
    ours: float
    plain: float | None = None
    asked: float | None = None
    """At most so many seconds."""
    times: float | None = None
    """At least so many times as fast as the straightforward one."""
    unit: str = "ms"

    @property
    def met(self) -> str:
        """Whether what is asked for is there."""
        checks = []
        if self.asked is not None:
            checks.append(self.ours <= self.asked)
        if self.times is not None and self.plain is not None:
            checks.append(self.plain >= self.times * self.ours)
        return "" if not checks else "yes" if all(checks) else "no"

    def cells(self) -> list[str]:
        """A row of the table."""
        scale = 1e3 if self.unit == "ms" else 1.0
        number = f"{{:,.{1 if self.unit == 'ms' else 2}f}} {self.unit}"
        asked = [] if self.asked is None else [number.format(scale * self.asked)]
        asked += [] if self.times is None else [f"{self.times:g} times"]
        return [
            self.what,
            "-" if self.plain is None else number.format(scale * self.plain),
            number.format(scale * self.ours),
            "-" if self.plain is None else f"{self.plain / self.ours:.1f}",
            " and ".join(asked) or "-",
            self.met,
        ]


Part = Callable[["Setting"], Iterator[Row]]


def stage(o: Setting) -> Iterator[Row]:
    """The decision on 100 clients' updates of the paper's CNN."""
    updates, round = captured("fashion-mnist", o.device, o.data_dir)
    later = once_more(DEFAULT, updates, round)
    tasks = {
        "plain": lambda: straightforward.skymask(updates, round, STEPS),
        "paper": lambda: PAPER(updates, round),
        "default": lambda: DEFAULT(updates, later),
    }
    if not PAPER(updates, round).accepted.cpu().equal(tasks["plain"]()):
        raise RuntimeError("the straightforward stage and the library's disagree")
    seconds = alternate(tasks, o.repeats, o.device)
    asked: dict[str, Any] = {"asked": 5e-3} if o.cuda else {"times": 8}
    name = "stage, n = 101, CNN (d = 139,960), 20 mask steps"
    yield Row(f"{name}: the paper's rule", seconds["paper"], seconds["plain"], **asked)
    yield Row(f"{name}: SkyMask", seconds["default"], seconds["plain"])


def rounds(o: Setting) -> Iterator[Row]:
    """Whole rounds of Fashion-MNIST, 100 clients, one step of 32, Min-Sum."""
    plain = straightforward_round(o)
    asked: dict[str, Any] = {"asked": 10e-3} if o.cuda else {"times": 5}
    name = "round, Fashion-MNIST, 100 clients, Min-Sum"
    yield Row(f"{name}: FedAvg", round_seconds(o, "fashion-mnist", sm.FedAvg()))
    yield Row(f"{name}: the paper's rule", round_seconds(o, "fashion-mnist", PAPER), plain, **asked)
    yield Row(f"{name}: SkyMask", round_seconds(o, "fashion-mnist", sm.SkyMask()), plain, **asked)


def har(o: Setting) -> Iterator[Row]:
    """Whole rounds of UCI HAR, 30 clients."""
    asked = 3e-3 if o.cuda else None
    name = "round, UCI HAR, 30 clients, Min-Sum"
    yield Row(f"{name}: the paper's rule", round_seconds(o, "har", PAPER), asked=asked)
    yield Row(f"{name}: SkyMask", round_seconds(o, "har", sm.SkyMask()), asked=asked)


def epoch(o: Setting) -> Iterator[Row]:
    """A local epoch of 100 clients of Fashion-MNIST."""
    data = clients_of(o, "fashion-mnist")
    ours, plain = training_seconds(o, cnn(), data, LocalSGD(19, 32, 0.05))
    asked = 60e-3 if o.cuda else None
    yield Row("local training, CNN, 100 clients x 19 steps of 32", ours, plain, asked)


def resnet(o: Setting) -> Iterator[Row]:
    """One step of 100 clients of ResNet-20, and whole rounds of it."""
    data = random_images(100 if o.cuda else 10)
    n = len(data.counts)
    title = f"local training, ResNet-20, {n} clients x one step of 64"
    ours, plain = training_seconds(o, ResNet20(), data, LocalSGD(1, 64, 0.05))
    yield Row(title, ours, plain)
    if o.cuda:
        local = LocalSGD(1, 64, 0.05, precision="bfloat16")
        ours, plain = training_seconds(o, ResNet20(), data, local, close=HALF)
        yield Row(f"{title}, bfloat16", ours, plain, asked=40e-3)
        for precision, asked in (("float32", None), ("bfloat16", 250e-3)):
            local = LocalSGD(5, 64, 0.1, precision=precision)
            experiment = {"local": local, "model": "resnet-20", "clients": 100}
            title = f"round, images as CIFAR-10's, ResNet-20, l = 5, {precision}"
            yield Row(f"{title}: FedAvg", round_seconds(o, cifar(o), sm.FedAvg(), **experiment))
            seconds = round_seconds(o, cifar(o), sm.SkyMask(), **experiment)
            yield Row(f"{title}: SkyMask", seconds, asked=asked)


def shared(o: Setting) -> Iterator[Row]:
    """Several runs on one device at once."""
    counts = (1, 8) if o.cuda else (1, 2)
    for data in ("fashion-mnist", "har"):
        rates = {k: rounds_per_second(o, data, k) for k in counts}
        k = counts[-1]
        title = f"{data}: seconds a round of {k} SkyMask runs, side by side beside one at a time"
        yield Row(title, 1 / rates[k], 1 / rates[1], times=3 if o.cuda else None)


def many(o: Setting) -> Iterator[Row]:
    """Time per client and memory where there are many."""
    for name, module, shape, few, lots in (
        ("CNN", cnn(), (1, 28, 28), 100, 1000),
        ("ResNet-20", ResNet20(), (3, 32, 32), 100, 500),
    ):
        if not o.cuda and name == "ResNet-20":
            continue
        each = {n: decision(o, module, shape, n)[0] / n for n in (few, lots)}
        title = f"stage per client, {name}, n = {lots:,} beside n = {few}: SkyMask"
        yield Row(title, each[lots], each[few], times=1.0)


def large(o: Setting) -> Iterator[Row]:
    """A model of 25 million parameters."""
    if not o.cuda:
        return
    width = 3500  # two layers of it and 3,000 inputs
    module = nn.Sequential(nn.Linear(3000, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    module.append(nn.Linear(width, 10))
    seconds, d, peak, foretold = decision(o, module, (3000,), 100)
    yield Row(f"stage, n = 100, d = {d:,}: SkyMask", seconds, asked=0.5)
    title = f"memory of it beside the updates, d = {d:,}, measured and foretold (asked)"
    yield Row(title, peak / 1e9, asked=foretold / 1e9, unit="GB")


def demo(o: Setting) -> Iterator[Row]:
    """`skymask demo`, start of the program included."""
    if o.cuda:
        return
    begin = time.perf_counter()
    command = [sys.executable, "-m", "skymask.cli", "demo"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield Row("skymask demo", time.perf_counter() - begin, asked=30.0, unit="s")


PARTS: dict[str, Part] = {
    "stage": stage,
    "rounds": rounds,
    "har": har,
    "epoch": epoch,
    "resnet": resnet,
    "many": many,
    "large": large,
    "shared": shared,
    "demo": demo,
}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    o = Setting(torch.device(options.device), options.data_dir, options.repeats, options.rounds)
    for name in options.only:
        rows: list[Row] = []
        try:
            for row in PARTS[name](o):
                print(" | ".join(row.cells()), file=sys.stderr, flush=True)
                rows.append(row)
        except Exception:  # the other parts are still worth measuring
            traceback.print_exc()
            rows.append(Row(f"{name}: failed, see the log", float("nan")))
        _write(name, rows, o.device)
    print((RESULTS / f"{_place(o.device)}.md").read_text())


def _write(part: str, rows: list[Row], device: torch.device) -> None:
    """Write the rows of one part; those of the others stay, with their own conditions."""
    path = RESULTS / f"{_place(device)}.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    if rows:
        measured = conditions(device)
        parts[part] = {"conditions": measured, "rows": [asdict(row) for row in rows]}
    known = {name: parts[name] for name in PARTS if name in parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parts": known}, indent=1) + "\n")
    head = ["what", "straightforward", "SkyMask's", "times as fast", "asked", "met"]
    cells = [Row(**row).cells() for each in known.values() for row in each["rows"]]
    measured_by: dict[str, list[str]] = {}
    for name, each in known.items():
        measured_by.setdefault(told_of(each["conditions"]), []).append(name)
    told = [f"{', '.join(names)}: {how}" for how, names in measured_by.items()]
    text = "\n\n".join(
        ["# Speed, asked for and measured", markdown_table(head, cells).rstrip(), *told]
    )
    path.with_suffix(".md").write_text(text + "\n")


def _place(device: torch.device) -> str:
    return f"bench/targets-{device.type}"


if __name__ == "__main__":
    main()
