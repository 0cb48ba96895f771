"""Who resists the model's steps: `python -m benchmarks.resistance`.

A fifth of the clients turn their updates round, under SkyMask. In some rounds: the resistance of
the median honest client, of the lowest one, and of the malicious ones, in standard deviations, and
how often an honest client is above a malicious one (AUC).
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.data import Groups
from skymask.environment import usable_device
from skymask.preparation import malicious_clients

ROUNDS = {
    "fashion-mnist": (4, 9, 19, 39, 79),
    "har": (4, 9, 19, 39, 79, 149, 299),
    "digits": (4, 9, 19, 39, 79),
}
MALICIOUS = 0.2


def measure(data: str, seed: int, device: torch.device, data_dir: str | None) -> list[Any]:
    """A row for each of the data set's rounds."""
    rows: list[dict[str, Any]] = []
    partition = {} if data == "har" else {"partition": Groups(0.5)}

    def look(updates: Tensor, round: sm.Round) -> sm.Decision:
        decision = sm.SkyMask()(updates, round)
        if round.index in ROUNDS[data]:
            turned = malicious_clients(len(updates), MALICIOUS, seed)
            resistance = decision.evidence["resistance"]
            honest, malicious = resistance[~turned], resistance[turned]
            rows.append(
                {
                    "data": data,
                    "seed": seed,
                    "round": round.index + 1,
                    "honest": float(honest.median()),
                    "lowest": float(honest.min()),
                    "malicious": float(malicious.median()),
                    "highest": float(malicious.max()),
                    "auc": float((honest[:, None] > malicious).double().mean()),
                }
            )
        return decision

    experiment = sm.Experiment(
        data=data,
        attack=sm.SignFlip(),
        malicious=MALICIOUS,
        defence=look,
        rounds=ROUNDS[data][-1] + 1,
        eval_every=10**6,
        seed=seed,
        **partition,
    )
    sm.simulate(experiment, device, data_dir=data_dir)
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--device")
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    device = usable_device(o.device)
    seeds = range(1, o.seeds + 1)
    rows = [row for data in o.data for s in seeds for row in measure(data, s, device, o.data_dir)]
    lines = []
    for data in o.data:
        for index in ROUNDS[data]:
            same = [row for row in rows if (row["data"], row["round"]) == (data, index + 1)]
            lines.append(
                [
                    data,
                    str(index + 1),
                    *(
                        f"{sum(row[name] for row in same) / len(same):.1f}"
                        for name in ("honest", "lowest", "malicious", "highest")
                    ),
                    f"{sum(row['auc'] for row in same) / len(same):.3f}",
                ]
            )
    head = ["data", "round", "honest, median", "lowest", "malicious, median", "highest", "AUC"]
    write(
        "resistance",
        f"Resistance under sign flips by 20 %, means of {o.seeds} seeds",
        markdown_table(head, lines),
        {"conditions": conditions(device), "rows": rows},
    )


if __name__ == "__main__":
    main()
