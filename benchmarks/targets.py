"""What is asked of SkyMask's speed beside what is measured: `python -m benchmarks.targets`.

Each figure is a median and stands beside that of a straightforward implementation (`straightforward
.py`), which does the same work in the same process, in turns, and whose results are compared first.
Fashion-MNIST and UCI HAR are the real data sets; where time alone counts and the data set is not at
hand, images of CIFAR-10's size are drawn at random. `--only` runs some of the parts.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skymask as sm
from benchmarks import straightforward
from benchmarks.stage import STEPS, alternate, captured
from benchmarks.writing import RESULTS, conditions, markdown_table, told_of
from skymask.clients import LocalSGD, batch_rows, plan
from skymask.data import divide, load
from skymask.flat import flat_model, flatten
from skymask.masks import kind_of_state, memory
from skymask.models import ResNet20, cnn
from skymask.randomness import generator
from skymask.types import ClientData

PAPER = sm.PaperSkyMask(100.0, relative=True, steps=STEPS, tolerance=0)
DEFAULT = sm.SkyMask(steps=STEPS, tolerance=0)
CLOSE, HALF = 5e-2, 0.3
"""Largest distance of two updates that are the same, in their length: TF32 and batch norm.

In half precision each client's rounding is its own; images that are noise make the most of it.
"""


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


@dataclass(frozen=True)
class Setting:
    """Where and how long everything is measured."""

    device: torch.device
    data_dir: str | None
    repeats: int
    rounds: int

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


def stage(o: Setting) -> Iterator[Row]:
    """The decision on 100 clients' updates of the paper's CNN."""
    updates, round = captured("fashion-mnist", o.device, o.data_dir)
    later = _later(DEFAULT, updates, round)
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
    plain = _straightforward_round(o)
    asked: dict[str, Any] = {"asked": 10e-3} if o.cuda else {"times": 5}
    name = "round, Fashion-MNIST, 100 clients, Min-Sum"
    yield Row(f"{name}: FedAvg", _round(o, "fashion-mnist", sm.FedAvg()))
    yield Row(f"{name}: the paper's rule", _round(o, "fashion-mnist", PAPER), plain, **asked)
    yield Row(f"{name}: SkyMask", _round(o, "fashion-mnist", sm.SkyMask()), plain, **asked)


def har(o: Setting) -> Iterator[Row]:
    """Whole rounds of UCI HAR, 30 clients."""
    asked = 3e-3 if o.cuda else None
    name = "round, UCI HAR, 30 clients, Min-Sum"
    yield Row(f"{name}: the paper's rule", _round(o, "har", PAPER), asked=asked)
    yield Row(f"{name}: SkyMask", _round(o, "har", sm.SkyMask()), asked=asked)


def epoch(o: Setting) -> Iterator[Row]:
    """A local epoch of 100 clients of Fashion-MNIST."""
    data = _clients(o, "fashion-mnist")
    ours, plain = _training(o, cnn(), data, LocalSGD(19, 32, 0.05))
    asked = 60e-3 if o.cuda else None
    yield Row("local training, CNN, 100 clients x 19 steps of 32", ours, plain, asked)


def resnet(o: Setting) -> Iterator[Row]:
    """One step of 100 clients of ResNet-20, and whole rounds of it."""
    data = _images(100 if o.cuda else 10)
    n = len(data.counts)
    title = f"local training, ResNet-20, {n} clients x one step of 64"
    ours, plain = _training(o, ResNet20(), data, LocalSGD(1, 64, 0.05))
    yield Row(title, ours, plain)
    if o.cuda:
        local = LocalSGD(1, 64, 0.05, precision="bfloat16")
        ours, plain = _training(o, ResNet20(), data, local, close=HALF)
        yield Row(f"{title}, bfloat16", ours, plain, asked=40e-3)
        for precision, asked in (("float32", None), ("bfloat16", 250e-3)):
            local = LocalSGD(5, 64, 0.1, precision=precision)
            experiment = {"local": local, "model": "resnet-20", "clients": 100}
            title = f"round, images as CIFAR-10's, ResNet-20, l = 5, {precision}"
            yield Row(f"{title}: FedAvg", _round(o, _cifar(o), sm.FedAvg(), **experiment))
            seconds = _round(o, _cifar(o), sm.SkyMask(), **experiment)
            yield Row(f"{title}: SkyMask", seconds, asked=asked)


def shared(o: Setting) -> Iterator[Row]:
    """Several runs on one device at once."""
    counts = (1, 8) if o.cuda else (1, 2)
    for data in ("fashion-mnist", "har"):
        rates = {k: _rounds_per_second(o, data, k) for k in counts}
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
        each = {n: _decision(o, module, shape, n)[0] / n for n in (few, lots)}
        title = f"stage per client, {name}, n = {lots:,} beside n = {few}: SkyMask"
        yield Row(title, each[lots], each[few], times=1.0)


def large(o: Setting) -> Iterator[Row]:
    """A model of 25 million parameters."""
    if not o.cuda:
        return
    width = 3500  # two layers of it and 3,000 inputs
    module = nn.Sequential(nn.Linear(3000, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    module.append(nn.Linear(width, 10))
    seconds, d, peak, foretold = _decision(o, module, (3000,), 100)
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


def _later(rule: sm.SkyMask, updates: Tensor, round: sm.Round) -> sm.Round:
    """The same round once more, as in all rounds but the first."""
    return replace(round, memory=rule(updates, round).memory)


def _round(o: Setting, data: Any, defence: sm.Defence, **settings: Any) -> float:
    """Median seconds of a round."""
    experiment = sm.Experiment(
        data=data, attack=sm.MinSum(), defence=defence, rounds=o.rounds + 4, eval_every=10**6,
        **settings,
    )  # fmt: skip
    records = sm.simulate(experiment, o.device, data_dir=o.data_dir).rounds[3:-1]
    return statistics.median(record["seconds"] for record in records)


def _straightforward_round(o: Setting) -> float:
    """Median seconds of a round as one would first write it."""
    data = _clients(o, "fashion-mnist")
    _, round = captured("fashion-mnist", o.device, o.data_dir)
    module, local = round.loss.model.module, LocalSGD(1, 32, 0.5)
    train = straightforward.train_by_vmap if o.cuda else straightforward.train_in_turn
    malicious = torch.arange(100, device=o.device) < 20

    def task() -> Tensor:
        rows = batch_rows(data, range(100), local, 1)
        updates = train(module, F.cross_entropy, data, rows, local.lr)
        sent = sm.MinSum().poison_updates(updates, malicious, round)
        accepted = straightforward.skymask(sent, round, STEPS).to(o.device)
        return round.params + 0.5 * sent[accepted].mean(0)

    return alternate({"round": task}, o.repeats, o.device)["round"]


def _training(
    o: Setting, module: nn.Module, data: ClientData, local: LocalSGD, close: float = CLOSE
) -> tuple[float, float]:
    """Median seconds of local training, the library's and a straightforward one's."""
    module = module.to(o.device)
    model, everybody = flat_model(module).to(o.device), range(len(data.counts))
    params, buffers = model.initial()
    trainer, rows = plan(model, F.cross_entropy, local, data), batch_rows(data, everybody, local, 1)
    plainly = straightforward.train_by_vmap if o.cuda else straightforward.train_in_turn
    module.train()
    tasks: dict[str, Callable[[], Any]] = {
        "plain": lambda: plainly(module, F.cross_entropy, data, rows, local.lr),
        "ours": lambda: trainer(params, buffers, data, everybody, 1)[0],
    }
    one, other = tasks["plain"](), tasks["ours"]()
    apart = float((one - other).norm() / one.norm())
    if apart > close:
        raise RuntimeError(f"the straightforward training and the library's are {apart:.1%} apart")
    seconds = alternate(tasks, o.repeats, o.device)
    return seconds["ours"], seconds["plain"]


def _decision(
    o: Setting, module: nn.Module, shape: tuple[int, ...], n: int
) -> tuple[float, int, int, int]:
    """Seconds of SkyMask's stage, d, and the GPU's peak memory beside what is foretold."""
    draw = generator("targets", n)
    root = torch.rand(100, *shape, generator=draw), torch.arange(100) % 10
    root = tuple(part.to(o.device) for part in root)
    module, local = module.to(o.device), LocalSGD(1, 32, 0.05)
    d = flatten(module).numel()
    round = sm.server_round(module, F.cross_entropy, root, local)
    updates = torch.empty(n, d, device=o.device)
    for row in updates:
        noise = torch.randn(d, generator=draw) if d < 10**6 else torch.randn(d, device=o.device)
        row.copy_(noise.to(o.device)).mul_(round.server_update.norm() / row.norm())
        row += round.server_update
    later = _later(DEFAULT, updates, round)
    if o.cuda:
        torch.cuda.reset_peak_memory_stats(o.device)
        held = torch.cuda.memory_allocated(o.device)
    seconds = alternate({"stage": lambda: DEFAULT(updates, later)}, 3, o.device)["stage"]
    peak = torch.cuda.max_memory_allocated(o.device) - held if o.cuda else 0
    return seconds, d, peak, memory(n + 1, d, d, copies=kind_of_state(updates).copies)


def _clients(o: Setting, data: str) -> ClientData:
    """The clients' samples of an experiment with `data`."""
    e = sm.Experiment(data=data).resolved()
    dataset = load(data, None if o.data_dir is None else Path(o.data_dir), e.seed)
    assert e.clients is not None
    assert e.partition is not None
    parts = divide(dataset, e.clients, e.partition, e.root_size, e.root_bias, e.seed, e.root_noise)
    return parts.clients.to(o.device)


def _images(n: int) -> ClientData:
    """Random images of CIFAR-10's size, 500 for each of n clients."""
    draw = generator("images", n)
    inputs = torch.rand(500 * n, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (500 * n,), generator=draw)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ClientData(inputs, labels, torch.arange(n + 1) * 500, 10).to(device)


def _cifar(o: Setting) -> Any:
    """CIFAR-10, or as many random images."""
    try:
        return load("cifar-10", None if o.data_dir is None else Path(o.data_dir), 1)
    except sm.InputError:
        draw = generator("cifar")
        parts = [
            sm.Batch(torch.rand(n, 3, 32, 32, generator=draw), torch.arange(n) % 10)
            for n in (50_000, 1000)
        ]
        return sm.Dataset("images", *parts, classes=10)


def _rounds_per_second(o: Setting, data: str, runs: int) -> float:
    """Of so many runs side by side, all together; start and end of the programs left out."""
    rounds = 400 if data == "har" else 30 * o.rounds // 10
    command = [sys.executable, "-m", "skymask.cli", "run", data, "--attack", "min-sum"]
    command += ["--defence", "skymask", "--rounds", str(rounds), "--device", str(o.device)]
    command += ["--eval-every", "1000000", "--json"]
    command += ["--data-dir", o.data_dir] if o.data_dir else []
    with _multi_process_service(o):
        ran = [
            subprocess.Popen(
                [*command, "--seed", str(seed)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // runs))},
                text=True,
            )
            for seed in range(1, runs + 1)
        ]
        told = [json.loads(run.communicate()[0].splitlines()[-1]) for run in ran]
    return sum(rounds / each["seconds"] for each in told)


@contextmanager
def _multi_process_service(o: Setting) -> Iterator[None]:
    """NVIDIA's daemon that lets several processes use a GPU at the same time, if it is there."""
    control = shutil.which("nvidia-cuda-mps-control") if o.cuda else None
    if control is not None:
        subprocess.run([control, "-d"], check=False, capture_output=True)
    try:
        yield
    finally:
        if control is not None:
            subprocess.run([control], input="quit\n", text=True, check=False, capture_output=True)


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
