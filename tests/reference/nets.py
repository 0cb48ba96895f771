"""A small net with batch norm, and what the tests of flat vectors and of the root loss draw."""

import torch
from torch import nn

from skymask.randomness import generator

NO_BUFFERS = torch.empty(0)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("flat", *shape))
