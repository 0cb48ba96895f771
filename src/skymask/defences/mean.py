"""Federated averaging: everybody's update counts."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from skymask.defences.screening import example_counts, screened
from skymask.geometry import weighted_mean
from skymask.types import Decision, Round


@dataclass(frozen=True)
class FedAvg:
    """The clients' mean, weighted by their example counts (McMahan et al. 2017).

    It defends against nothing and accepts every usable update.
    """

    reference: ClassVar[str] = (
        "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized "
        "Data, AISTATS 2017"
    )

    @partial(screened, mean=True)
    def __call__(self, updates: Tensor, round: Round) -> Decision:
        """sum_i |D_i| u_i / sum_i |D_i| of `updates` (n, d)."""
        accepted = torch.ones(len(updates), dtype=torch.bool, device=updates.device)
        return Decision(weighted_mean(updates, example_counts(round, accepted)), accepted)
