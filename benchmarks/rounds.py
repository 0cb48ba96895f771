"""Seconds a round takes, by stage, and the memory it needs: `python -m benchmarks.rounds`.

Whole simulated rounds with 100 clients (HAR: 30), 20 % of them malicious (Min-Sum), SkyMask. The
first rounds warm up; figures are medians over the others. On a GPU the stages are not separated by
synchronisation, so that only the total is exact there: what one stage leaves in the queue is waited
for in the next.
"""

import argparse
import resource
import statistics
from typing import Any

import torch

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.environment import reuse_memory

STAGES = ("train", "attack", "defence")


def measure(data: str, rounds: int, device: torch.device, data_dir: str | None) -> dict[str, Any]:
    """Median seconds of a round of `data` and of its stages."""
    experiment = sm.Experiment(
        data=data, attack=sm.MinSum(), defence=sm.SkyMask(), rounds=rounds + 3, eval_every=10**6
    )
    records = sm.simulate(experiment, device, data_dir=data_dir).rounds[2:-1]
    row: dict[str, Any] = {"data": data, "rounds": len(records)}
    row["seconds"] = statistics.median(r["seconds"] for r in records)
    for stage in STAGES:
        row[stage] = statistics.median(r["stages"][stage] for r in records)
    row["host_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        row["device_megabytes"] = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
    return row


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=["har", "fashion-mnist"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    reuse_memory()
    device = torch.device(options.device)
    rows = [measure(data, options.rounds, device, options.data_dir) for data in options.data]
    table = markdown_table(
        ["data", "round, ms", *(f"{stage}, ms" for stage in STAGES), "host memory, MB"],
        [
            [
                r["data"],
                *(f"{1e3 * r[k]:.1f}" for k in ("seconds", *STAGES)),
                f"{r['host_megabytes']:.0f}",
            ]
            for r in rows
        ],
    )
    write(
        f"bench/rounds-{device.type}",
        "Seconds a round: Min-Sum, SkyMask",
        table,
        {"conditions": conditions(device), "rows": rows},
    )


if __name__ == "__main__":
    main()
