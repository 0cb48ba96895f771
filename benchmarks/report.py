"""How fast the report opens, and how soon a live page shows a round: `python -m benchmarks.report`.

A made-up run of 1,000 clients and 2,500 rounds, with close-ups of a hundred; headless Chromium.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.writing import conditions, markdown_table, write
from skymask.experiment import Experiment, to_json
from skymask.records import RunFolder, is_kept, json_text
from skymask.report import Watched, served, write_report
from tests.report.browser import browser, opened

CLIENTS, ROUNDS = 1000, 2500


def make_run(folder: Path, clients: int = CLIENTS, rounds: int = ROUNDS) -> RunFolder:
    """A run folder with records as a simulation of this size leaves them."""
    drawn = np.random.default_rng(1)
    bad = range(0, clients, 5)
    run = RunFolder(folder)
    experiment = Experiment(data="fashion-mnist", clients=clients, rounds=rounds).resolved()
    run.start({"experiment": to_json(experiment), "malicious_clients": list(bad)})
    with (
        (folder / "rounds.jsonl").open("w") as lines,
        (folder / "closeups.jsonl").open("w") as closeups,
    ):
        for index in range(rounds):
            lines.write(json_text(_record(index, clients, bad, drawn)) + "\n")
            if is_kept(index, rounds):
                closeups.write(json_text(_closeup(index, clients, bad, drawn)) + "\n")
    return run


def _record(index: int, clients: int, bad: range, drawn: np.random.Generator) -> dict[str, Any]:
    why = "its updates raise the loss of the root data set (descent {:.1f} standard deviations)"
    record: dict[str, Any] = {
        "round": index,
        "clients": clients,
        "malicious": len(bad),
        "fpr": 0.0,
        "fnr": 0.0,
        "rejected": {str(client): why.format(9 * drawn.random()) for client in bad},
        "seconds": 0.05,
        "stages": {"train": 0.03, "attack": 0.001, "defence": 0.015},
    }
    return record | ({"accuracy": 1 - 0.9 / (1 + index / 100)} if index % 10 == 9 else {})


def _closeup(index: int, clients: int, bad: range, drawn: np.random.Generator) -> dict[str, Any]:
    rows = clients + 1
    points = drawn.normal(size=(rows, 2)).round(4)
    points[list(bad)] += 6
    names = ("score", "alignment", "descent", "error", "length")
    return {
        "round": index,
        "clients": list(range(clients)),
        "points": points.tolist(),
        "apart": [row in bad for row in range(rows)],
        "gain": 3.2,
        "values": {name: drawn.normal(size=rows).round(3).tolist() for name in names},
        "ones": {f"layer{i}": drawn.random(rows).round(4).tolist() for i in range(8)},
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, browser() as started:
        run = make_run(Path(name) / "run")
        begin = time.perf_counter()
        page = write_report([run.path])
        wrote = time.perf_counter() - begin
        opening = []
        for _ in range(o.times):
            begin = time.perf_counter()
            opened(started, page).tab.close()
            opening.append(time.perf_counter() - begin)
        size = page.stat().st_size / 1e6
        large, small = (_latency(started, run, o.times), _small(started, Path(name), o.times))
    found = {
        "page written": f"{wrote:.1f} s",
        "size of the page": f"{size:.1f} MB",
        "opened, everything drawn": _told(opening),
        "a new round on the live page, 1,000 clients after 2,500 rounds": _told(large),
        "a new round on the live page, 100 clients after 200 rounds": _told(small),
    }
    write(
        "bench/report",
        f"The report on {CLIENTS} clients and {ROUNDS} rounds, in headless Chromium",
        markdown_table(["what", f"median of {o.times} (largest)"], list(map(list, found.items()))),
        {
            "conditions": conditions(torch.device("cpu")),
            "seconds": {"written": wrote, "opened": opening, "large": large, "small": small},
            "megabytes": size,
        },
    )


def _small(started: Any, folder: Path, times: int) -> list[float]:
    return _latency(started, make_run(folder / "small", 100, 200), times)


def _latency(started: Any, run: RunFolder, times: int) -> list[float]:
    """Seconds from the end of a round, its record appended, until the live page names it."""
    found = []
    clients = len(run.rounds()[0]["rejected"]) * 5
    with served(Watched([run.path])) as address:
        page = opened(started, address)
        drawn = np.random.default_rng(2)
        for index in range(len(run.rounds()), len(run.rounds()) + times):
            time.sleep(3)  # a page that has nothing to do
            run.append(_record(index, clients, range(0, clients, 5), drawn))
            begin = time.perf_counter()
            page.tab.wait_for_selector(f"#live:has-text('round {index + 1} of')", timeout=60_000)
            found.append(time.perf_counter() - begin)
        page.tab.close()
    return found


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s)"


if __name__ == "__main__":
    main()
