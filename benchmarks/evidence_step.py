"""How long a step the root evidence may take: `python -m benchmarks.evidence_step`.

Label flips (20 of 100 clients, Fashion-MNIST at q = 0.5) under plain FedAvg. In some rounds the
alignment of every client is made of differences of outputs after steps of several lengths, in
lengths of the server's own update, and of the derivative. A good one tells flippers from the honest
(AUC: how often an honest client is above a flipper) and has no honest client below 0.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.environment import usable_device
from skymask.evidence import judged
from skymask.preparation import malicious_clients

STEPS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0)
"""The last is the derivative."""
ROUNDS = (0, 2, 9, 29, 59)


def measure(seed: int, device: torch.device, data_dir: str | None) -> list[dict[str, Any]]:
    """A row for each of `ROUNDS` and `STEPS`."""
    rows: list[dict[str, Any]] = []
    flips = malicious_clients(100, 0.2, seed)

    def look(updates: Tensor, round: sm.Round) -> sm.Decision:
        for step in STEPS if round.index in ROUNDS else ():
            scores = alignment(updates, round, step)
            honest, flipped = scores[~flips], scores[flips]
            rows.append(
                {
                    "seed": seed,
                    "round": round.index,
                    "step": step,
                    "auc": float((honest[:, None] > flipped).double().mean()),
                    "below": float((honest < 0).double().mean()),
                    "least": float(honest.min()),
                }
            )
        return sm.FedAvg()(updates, round)

    experiment = sm.Experiment(
        data="fashion-mnist",
        attack=sm.LabelFlip(),
        defence=look,
        rounds=ROUNDS[-1] + 1,
        eval_every=10**6,
        seed=seed,
    )
    sm.simulate(experiment, device, data_dir=data_dir)
    return rows


def alignment(updates: Tensor, round: sm.Round, step: float) -> Tensor:
    """Of each of `updates` (n, d) in standard deviations, the better of the two: (n,)."""
    inputs, labels = round.root
    before = round.loss.outputs(round.params, inputs)
    directions = updates / updates.norm(dim=1, keepdim=True)
    if step:
        length = step * float(round.server_update.norm())
        models = (round.params + length * each for each in directions)
        change = torch.stack([round.loss.outputs(model, inputs) - before for model in models])
    else:
        change = round.loss.derivatives(round.params, directions, inputs, at_once=4)
    found = judged(change, before, labels, labels.unique())
    all_changes, error, raised, raised_error = found[:4]
    return torch.maximum(all_changes / error, raised / raised_error).cpu()


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    device = usable_device(o.device)
    rows = [row for seed in range(1, o.seeds + 1) for row in measure(seed, device, o.data_dir)]
    lines = []
    for index in ROUNDS:
        for step in STEPS:
            same = [row for row in rows if (row["round"], row["step"]) == (index, step)]
            mean = {
                name: sum(row[name] for row in same) / len(same)
                for name in ("auc", "below", "least")
            }
            lines.append(
                [
                    str(index),
                    f"{step:g}" if step else "derivative",
                    f"{mean['auc']:.3f}",
                    f"{100 * mean['below']:.1f} %",
                    f"{mean['least']:.1f}",
                ]
            )
    table = markdown_table(
        ["round", "step", "AUC", "honest clients below 0", "the lowest of them"], lines
    )
    write(
        "evidence-step",
        f"The length of the root evidence's step, means of {o.seeds} seeds",
        table,
        {"conditions": conditions(device), "rows": rows},
    )


if __name__ == "__main__":
    main()
