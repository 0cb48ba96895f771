"""An attack of your own, beside one of the catalogue.

An attack is an object with `poison_data` or `poison_updates`; what it leaves out is done for it by
`skymask.Attack`. This one sends the honest clients' mean, turned around in a random half of the
coordinates, which it draws anew in every round.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import skymask as sm


@dataclass(frozen=True)
class HalfTurned(sm.Attack):
    """Turns half of the honest mean around, `strength` times."""

    strength: float = 3.0

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: sm.Round) -> Tensor:
        """Replace the rows of `updates` (n, d) that `malicious` (n,) marks; leave the others."""
        honest = updates[~malicious].mean(0)
        half = torch.rand(len(honest), generator=round.generator).to(updates.device) < 0.5
        updates[malicious] = self.strength * torch.where(half, -honest, honest)
        return updates


def show(name: str, attack: sm.Attack) -> None:
    """Run the attack without a defence and with SkyMask, and print a line."""
    told = []
    for defence in (sm.FedAvg(), sm.SkyMask()):
        experiment = sm.Experiment(
            data="digits", attack=attack, defence=defence, malicious=0.3, rounds=30
        )
        told.append(sm.simulate(experiment, device="cpu").summary)
    without, guarded = told
    print(
        f"{name:12} FedAvg {without['accuracy']:.1%}, SkyMask {guarded['accuracy']:.1%} "
        f"(malicious let in {guarded['fnr']:.1%}, honest thrown out {guarded['fpr']:.1%})"
    )


if __name__ == "__main__":
    show("half turned", HalfTurned())
    show("min-sum", sm.MinSum())
