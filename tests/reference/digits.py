"""A small federation on scikit-learn's digits, built by the library: real updates, a real round."""

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from skymask import ClientData, LocalSGD, Round, server_round
from skymask.clients import plan
from skymask.flat import flat_model
from skymask.models import logistic
from skymask.randomness import generator

CLIENTS, SAMPLES, ROOT = 20, 70, 100
LOCAL = LocalSGD(steps=5, batch=32, lr=0.5)


@cache
def samples(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator("digits"))
    inputs = torch.from_numpy(digits.data).to(dtype) / 16
    return inputs[order], torch.from_numpy(digits.target)[order]


@cache
def honest(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Round]:
    """Twenty honest clients' updates (20, 650) from zero parameters, and their round."""
    inputs, labels = samples(dtype)
    rows = slice(ROOT, ROOT + CLIENTS * SAMPLES)
    offsets = torch.arange(CLIENTS + 1) * SAMPLES
    data = ClientData(inputs[rows], labels[rows], offsets, 10)
    module = logistic(64, 10).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    trainer = plan(flat_model(module), F.cross_entropy, LOCAL, data)
    updates, _ = trainer(*trainer.model.initial(), data, range(CLIENTS), 1)
    root = inputs[:ROOT], labels[:ROOT]
    counts = torch.arange(1, CLIENTS + 1)
    round = server_round(
        module, F.cross_entropy, root, LOCAL, counts=counts, clients=range(CLIENTS)
    )
    return updates, round


def flipped(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Round]:
    """The same with the first `count` clients' updates turned round (a sign-flip attack)."""
    updates, round = honest(dtype)
    signs = torch.ones(CLIENTS, 1, dtype=dtype)
    signs[:count] = -1
    return updates * signs, round
