"""Who turns round: `python -m benchmarks.turning`.

A fifth of the clients are honest for a while and then turn their updates round, or nobody attacks,
under SkyMask. Of the honest clients: the cosine of what they sent of late with what they sent
before that one in a thousand, and one in ten thousand, is below, and the lowest. Of the others: how
many are out so many rounds after they began.
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

START = {"fashion-mnist": (60, 100), "har": (150, 300), "digits": (60, 100)}
"""When the attackers of a data set begin, and its rounds."""
AFTER = (2, 3, 4, 5, 6, 8, 10, 20, 30)
MALICIOUS = 0.2
FIRST = 14
"""Rounds after which something is usual of a client."""


def measure(data: str, attacked: bool, seed: int, device: torch.device, at: str | None) -> Any:
    """The honest clients' cosines, (rounds, n), and how many attackers are out in each round."""
    start, rounds = START[data]
    partition = {} if data == "har" else {"partition": Groups(0.5)}
    cosines: list[Tensor] = []
    out: list[int] = []

    def look(updates: Tensor, round: sm.Round) -> sm.Decision:
        decision = sm.SkyMask()(updates, round)
        turned = malicious_clients(len(updates), MALICIOUS if attacked else 0, seed)
        cosines.append(decision.evidence["turning"][~turned])
        out.append(int((~decision.accepted.cpu())[turned].sum()))
        return decision

    experiment = sm.Experiment(
        data=data,
        attack=sm.StartsAt(start, sm.SignFlip()) if attacked else sm.NoAttack(),
        malicious=MALICIOUS if attacked else 0.0,
        defence=look,
        rounds=rounds,
        eval_every=10**6,
        seed=seed,
        **partition,
    )
    sm.simulate(experiment, device, data_dir=at)
    return torch.stack(cosines)[FIRST:], out[start:]


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=START, default=["har", "digits"])
    parser.add_argument("--device")
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    device = usable_device(o.device)
    seeds = range(1, o.seeds + 1)
    honest, late, told = [], [], []
    for data in o.data:
        for attacked in (False, True):
            runs = [measure(data, attacked, seed, device, o.data_dir) for seed in seeds]
            every = torch.cat([cosines.flatten() for cosines, _ in runs]).sort().values
            low = {
                "median": float(every.median()),
                "0.1 %": float(every[len(every) // 1000]),
                "0.01 %": float(every[len(every) // 10000]),
                "lowest": float(every[0]),
            }
            name = f"{data}, sign flips from {START[data][0]} on" if attacked else f"{data}, none"
            honest.append([name, f"{len(every):,}", *(f"{value:.2f}" for value in low.values())])
            told.append({"row": name, "observations": len(every), **low})
            if attacked:
                caught = [[out[after - 1] for after in AFTER] for _, out in runs]
                late += [
                    [data, str(seed), *map(str, each)]
                    for seed, each in zip(seeds, caught, strict=True)
                ]
                told[-1]["out_after"] = {"rounds": AFTER, "seeds": caught}
    head = ["honest clients", "cosines", "median", "0.1 % below", "0.01 % below", "lowest"]
    after = ["attackers out after so many rounds", "seed", *map(str, AFTER)]
    write(
        "turning",
        f"Turning, {o.seeds} seeds",
        markdown_table(head, honest) + "\n" + markdown_table(after, late),
        {"conditions": conditions(device), "rows": told},
    )


if __name__ == "__main__":
    main()
