"""Three defences under two attacks, three seeds each: means with their spread over the seeds.

Handwritten digits, 20 clients, six of them malicious.
"""

from statistics import mean, stdev

import skymask as sm

ATTACKS = {"min-sum": sm.MinSum(), "sign-flip": sm.SignFlip()}
DEFENCES = {"FedAvg": sm.FedAvg(), "trimmed mean": sm.TrimmedMean(0.3), "SkyMask": sm.SkyMask()}


def accuracies(attack: sm.Attack, defence: sm.Defence) -> list[float]:
    """The final accuracy with each seed."""
    return [
        float(
            sm.simulate(
                sm.Experiment(
                    data="digits",
                    attack=attack,
                    defence=defence,
                    malicious=0.3,
                    rounds=30,
                    seed=seed,
                ),
                device="cpu",
            ).summary["accuracy"]
        )
        for seed in (1, 2, 3)
    ]


if __name__ == "__main__":
    print(f"{'':14}" + "".join(f"{name:>18}" for name in ATTACKS))
    for name, defence in DEFENCES.items():
        found = [accuracies(attack, defence) for attack in ATTACKS.values()]
        cells = "".join(f"{mean(each):>11.1%} ± {stdev(each):.1%}" for each in found)
        print(f"{name:14}{cells}")
