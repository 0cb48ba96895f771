"""SkyMask in small federations, where clusters are chance: `python -m benchmarks.few_clients`.

Few clients with handwritten digits of all classes (Dirichlet, alpha = 10), six rounds of ten local
steps, many seeds. Every run is made twice: with SkyMask, and with its bounds for clusters as they
are for many clients (`defences.clusters._MANY`).
"""

import argparse
from dataclasses import dataclass
from unittest import mock

import torch

import skymask as sm
from benchmarks.writing import conditions, markdown_table, write
from skymask.defences import clusters

ATTACKS = {
    "none": sm.NoAttack(),
    "sign flip": sm.SignFlip(),
    "Min-Max": sm.MinMax(),
    "Min-Sum": sm.MinSum(),
    "ALIE": sm.ALIE(),
    "Fang-Trim": sm.FangTrim(),
    "scaling": sm.Scaling(),
}
SIZES = {8: 2, 10: 3, 12: 3, 16: 4}
"""Clients, and how many of them are malicious."""


@dataclass(frozen=True)
class Found:
    """Over all rounds of all seeds."""

    fpr: float
    fnr: float | None
    lost: int
    """Rounds in which two honest clients or more were rejected."""
    rounds: int


def measure(clients: int, malicious: int, attack: sm.Attack, seeds: int) -> Found:
    """Six rounds of `seeds` federations."""
    rounds = []
    for seed in range(1, seeds + 1):
        experiment = sm.Experiment(
            data="digits",
            attack=attack,
            defence=sm.SkyMask(),
            malicious=0.0 if isinstance(attack, sm.NoAttack) else malicious / clients,
            clients=clients,
            rounds=6,
            partition=sm.Dirichlet(10.0),
            local=sm.LocalSGD(10, 32, 0.1),
            seed=seed,
        )
        rounds += sm.simulate(experiment, "cpu").rounds
    honest = clients - malicious * (not isinstance(attack, sm.NoAttack))
    missed = [each["fnr"] for each in rounds if each["fnr"] is not None]
    return Found(
        sum(each["fpr"] for each in rounds) / len(rounds),
        sum(missed) / len(missed) if missed else None,
        sum(round(each["fpr"] * honest) >= 2 for each in rounds),
        len(rounds),
    )


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    o = parser.parse_args()
    torch.set_num_threads(1)
    rows, result = [], []
    for clients, malicious in SIZES.items():
        for name, attack in ATTACKS.items():
            found = measure(clients, malicious, attack, o.seeds)
            with mock.patch.object(clusters, "_MANY", 0):
                before = measure(clients, malicious, attack, o.seeds)
            told = [f"{clients}", name]
            for each in (found, before):
                fnr = "-" if each.fnr is None else f"{100 * each.fnr:.1f} %"
                told += [f"{100 * each.fpr:.2f} %", fnr, f"{each.lost} of {each.rounds}"]
            rows.append(told)
            result.append({"clients": clients, "attack": name, "found": vars(found)})
            result[-1]["bounds as for many"] = vars(before)
    head = ["clients", "attack", "FPR", "FNR", "rounds that lose two"]
    head += [f"{column}, bounds as for many" for column in head[2:]]
    told_of = {"conditions": conditions(torch.device("cpu")), "cells": result}
    write("few-clients", "Small federations", markdown_table(head, rows), told_of)


if __name__ == "__main__":
    main()
