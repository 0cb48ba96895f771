"""What does each attack do, undefended and defended? `python -m benchmarks.catalogue`.

The paper's settings of the data set (Fashion-MNIST: its CNN, 100 clients, q = 0.5, one local step
of 32, alpha = beta = 0.5, root data set of 100), 20 % of the clients malicious. Accuracy is the
mean of the last five evaluations (one every ten rounds), attack success its value at the last one.
Rules that need f are given the true value. An adaptive attack is given the rule that it meets.

Cells that are in the results already are not run again, so that the table can be made in pieces.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

import skymask as sm
from benchmarks.writing import RESULTS, conditions, markdown_table, write
from skymask.attacks import ATTACKS
from skymask.components import parse
from skymask.environment import device_name
from skymask.experiment import DEFAULTS, KINDS
from skymask.progress import percent

DEFENCES = ("fedavg", "fltrust", "krum", "trimmed-mean", "skymask")
HONEST = "honest clients alone"
DIRECTIONS = [
    f"{attack}direction={direction}"
    for attack in ("min-max:", "min-sum:", "min-sum:limit=max,")
    for direction in ("unit", "sign", "std")
]
"""Each crafted vector at its own bound, in every direction."""
MALICIOUS = 0.2


def run(
    data: str,
    attack: str,
    defence: str,
    seed: int,
    rounds: int,
    device: str,
    data_dir: str | None,
) -> dict[str, Any]:
    """One cell: a whole run. An error of a rule on its own terms is a result."""
    torch.set_num_threads(1)
    text = f"adaptive:defence=({defence})" if attack == "adaptive" else attack
    cell = {"data": data, "attack": attack, "defence": defence, "seed": seed, "rounds": rounds}
    experiment = sm.Experiment(
        data=data,
        seed=seed,
        rounds=rounds,
        malicious=MALICIOUS,
        honest_only=attack == HONEST,
        attack=parse("none" if attack == HONEST else text, KINDS, "attack", f=MALICIOUS),
        defence=parse(defence, KINDS, "defence", f=MALICIOUS),
    )
    result = sm.simulate(experiment, device, data_dir=data_dir)
    kept = {k: result.summary[k] for k in ("accuracy_last5", "fpr", "fnr", "fallbacks", "seconds")}
    success = {k: result.summary[k] for k in ("attack_success", "attack_success_others")}
    return cell | kept | success | {"device": device_name(torch.device(device))}


def main() -> None:
    """Run the cells that are missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist", choices=list(DEFAULTS))
    parser.add_argument("--attacks", nargs="+", default=[HONEST, *ATTACKS, *DIRECTIONS])
    parser.add_argument("--defences", nargs="+", default=DEFENCES)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4, help="cells at once on each device")
    parser.add_argument("--devices", nargs="+", default=_devices())
    parser.add_argument(
        "--minutes",
        type=float,
        default=600,
        help="start no cell after this long; 0 writes the table of those measured",
    )
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    begin, settings = time.monotonic(), conditions(torch.device(o.devices[0]))
    name = f"catalogue-{o.data}"
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {"cells": []}
    done = before["cells"]
    cells = [
        (o.data, attack, defence, seed, o.rounds)
        for seed in range(1, o.seeds + 1)
        for attack in o.attacks
        for defence in (o.defences if attack != HONEST else o.defences[:1])
    ]
    missing = [cell for cell in cells if cell not in {_key(c) for c in done}]
    print(f"{len(missing)} of {len(cells)} cells to run", flush=True)
    if o.minutes <= 0 and done:  # nothing is measured, so the table keeps its conditions
        missing, settings = [], before["conditions"]
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(o.jobs, mp_context=context) for _ in o.devices]
    waiting = list(reversed(missing))
    running: dict[Any, tuple[Any, int]] = {}

    def start(place: int) -> None:
        if waiting and time.monotonic() - begin < 60 * o.minutes:
            cell = waiting.pop()
            settings = {"device": o.devices[place], "data_dir": o.data_dir}
            running[pools[place].submit(run, *cell, **settings)] = (cell, place)

    for place in range(len(o.devices)):
        for _ in range(o.jobs):
            start(place)
    while running:
        job = next(as_completed(running))
        cell, place = running.pop(job)
        start(place)
        try:
            done.append(job.result())
        except Exception as error:  # a rule that refuses, or one that breaks: the others go on
            print(*cell, f"failed: {type(error).__name__}: {error}", flush=True)
            continue
        print(*cell, percent(done[-1]["accuracy_last5"]), flush=True)
        # What is measured stays measured if the rest is interrupted.
        path.write_text(json.dumps({"conditions": settings, "cells": done}, indent=1) + "\n")
    for pool in pools:
        pool.shutdown()
    known = [HONEST, *ATTACKS, *DIRECTIONS]
    attacks = dict.fromkeys([*known, *(c["attack"] for c in done)])
    found = {attack: [c for c in done if c["attack"] == attack] for attack in attacks}
    header = ["attack", *DEFENCES, "SkyMask FPR", "SkyMask FNR", "attack success, FedAvg / SkyMask"]
    rows = [_row(attack, cells) for attack, cells in found.items() if cells]
    seeds = len({c["seed"] for c in done})
    title = f"{o.data}, 20 % of the clients malicious, {o.rounds} rounds, {seeds} seed(s)"
    write(name, title, markdown_table(header, rows), {"conditions": settings, "cells": done})


def _devices() -> list[str]:
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _key(cell: dict[str, Any]) -> tuple[str, str, str, int, int]:
    return cell["data"], cell["attack"], cell["defence"], cell["seed"], cell["rounds"]


def _row(attack: str, cells: list[dict[str, Any]]) -> list[str]:
    def mean(defence: str, field: str) -> float | None:
        found = [c[field] for c in cells if c["defence"] == defence and c[field] is not None]
        return sum(found) / len(found) if found else None

    accuracies = [percent(mean(name, "accuracy_last5")) for name in DEFENCES]
    rates = [percent(mean("skymask", field)) for field in ("fpr", "fnr")]
    success = [percent(mean(name, "attack_success")) for name in ("fedavg", "skymask")]
    return [attack, *accuracies, *rates, " / ".join(success)]


if __name__ == "__main__":
    main()
