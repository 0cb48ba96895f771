"""What half precision costs in accuracy: `python -m benchmarks.precision`.

FedAvg without attack, clients' convolutions in float32 and in bfloat16, with the same seeds: by
default CIFAR-10's 500 rounds. Runs go on where they were stopped; finished ones are kept in
`results/bench/precision`.
"""

import argparse
import statistics
from dataclasses import replace

import torch

import skymask as sm
from benchmarks.writing import RESULTS, conditions, markdown_table, write
from skymask.experiment import DEFAULTS
from skymask.local_sgd import Precision
from skymask.tables.cell import Cell
from skymask.tables.plan import missing, tasks_of
from skymask.tables.record import Record, read_records
from skymask.tables.sweep import sweep
from skymask.tables.work import Places

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
OUT = RESULTS / "bench" / "precision"


def cells(data: str, rounds: int) -> dict[str, Cell]:
    """One for each precision."""
    usual = DEFAULTS[data].local
    return {
        precision: Cell(
            data,
            precision,
            sm.Experiment(
                data=data,
                defence=sm.FedAvg(),
                rounds=rounds,
                local=replace(usual, precision=precision),
            ),
        )
        for precision in PRECISIONS
    }


def row(precision: str, found: list[Record]) -> list[str]:
    """A row of the table, of the seeds that there are."""
    values = [100 * record.summary["accuracy_last5"] for record in found]
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{value:.1f}" for value in values)
    seconds = statistics.fmean(
        record.told["seconds"] / record.told["jobs"] / record.told["experiment"]["rounds"]
        for record in found
    )
    return [precision, f"{mean:.1f} %{spread}", f"{each} %", f"{1000 * seconds:.0f} ms"]


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar-10", choices=["cifar-10", "fashion-mnist"])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs=2, default=[3, 3], help="of each precision")
    parser.add_argument("--device", nargs="+", default=["cuda:0"])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on each device")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    o = parser.parse_args()
    told = conditions(torch.device(o.device[0]))
    asked = {
        precision: tasks_of([cell], range(1, seeds + 1))
        for seeds, (precision, cell) in zip(o.seeds, cells(o.data, o.rounds).items(), strict=True)
    }
    tasks = [task for some in asked.values() for task in some]
    left = missing(tasks, read_records(OUT), Places(OUT), told["device"])
    sweep(left, OUT, o.device, o.jobs, seconds=o.seconds, command=told["command"])
    records = read_records(OUT)
    rows = []
    for precision, some in asked.items():
        found = [records[task.key] for task in some if task.key in records]
        if found:
            rows.append(row(precision, found))
    if not rows:
        return
    head = [
        "clients' convolutions",
        "accuracy, last 5 evaluations",
        "by seed",
        "a round of a device",
    ]
    result = {"conditions": told, "rounds": o.rounds, "data": o.data, "rows": rows}
    title = f"FedAvg without attack, {o.data}, {o.rounds} rounds"
    write("bench/precision", title, markdown_table(head, rows), result)


if __name__ == "__main__":
    main()
