"""Your own model and your own arrays in a simulated federation.

Two classes of tumours, thirty measurements each (scikit-learn's embedded breast cancer data): ten
clients, three of them malicious, who send the opposite of what they learn. Prints the accuracy
without a defence and with SkyMask.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale
from torch import nn

import skymask as sm


def tumours() -> sm.Dataset:
    """The data in a random order, a quarter of it for tests."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(scale(inputs), dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    train, test = slice(0, 430), slice(430, None)
    return sm.Dataset("tumours", sm.Batch(x[train], y[train]), sm.Batch(x[test], y[test]), 2)


def network() -> nn.Module:
    """Any module will do."""
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def accuracy(defence: sm.Defence) -> float:
    """The accuracy after 40 rounds under attack."""
    experiment = sm.Experiment(
        data=tumours(),
        model=network,
        clients=10,
        malicious=0.3,
        attack=sm.SignFlip(),
        defence=defence,
        partition=sm.Groups(q=0.5),
        root_size=40,
        rounds=40,
        local=sm.LocalSGD(steps=2, batch=16, lr=0.2),
    )
    return float(sm.simulate(experiment, device="cpu").summary["accuracy"])


if __name__ == "__main__":
    for name, defence in (("FedAvg", sm.FedAvg()), ("SkyMask", sm.SkyMask())):
        print(f"{name:8} {accuracy(defence):.1%}")
