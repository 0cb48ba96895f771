"""Attacks on the training data; the poisoned clients then train as told."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from skymask.types import ClientData, Round


@dataclass(frozen=True)
class NoAttack:
    """Malicious clients behave like honest ones."""

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """`data` as it is."""
        return data

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """`updates` as they are."""
        return updates


@dataclass(frozen=True)
class LabelFlip:
    """Every label k of a malicious client becomes C - k - 1 (Fang et al. 2020; the paper's LF).

    Knowledge: the malicious clients' own data.
    """

    def poison_data(
        self, data: ClientData, malicious: Tensor, generator: torch.Generator
    ) -> ClientData:
        """Flip the labels of the clients marked in `malicious` (n,)."""
        flipped = data.classes - 1 - data.labels
        return dataclasses.replace(
            data, labels=torch.where(data.rows(malicious), flipped, data.labels)
        )

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Tensor:
        """`updates` as they are: the poison is in the data."""
        return updates
