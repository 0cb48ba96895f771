"""What the server and the clients agree on: the model, the data, how a client trains."""

from collections.abc import Mapping
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, nn
from torch.utils.data import DataLoader, TensorDataset

from skymask.data import Dirichlet, Federation, divide, load
from skymask.models import cnn, mlp
from skymask.types import Batch

Config = Mapping[str, Any]
ATTACKS = ("sign-flip", "label-flip")


def build_model(config: Config) -> nn.Module:
    """The CNN of the SkyMask paper for Fashion-MNIST, a small perceptron for the digits."""
    return mlp(64, 10) if config["data"] == "digits" else cnn()


def divided(config: Config, nodes: int) -> Federation:
    """The data set as it lies among `nodes` nodes, and the server's root data, which no node has.

    Every process divides it alike, from the seed. In a federation of your own a node reads its own
    data, and only the server reads the root data.
    """
    return _divided(config["data"], config["data-dir"], nodes, config["root-size"], config["seed"])


@cache  # in a simulation one process is many nodes, one after another
def _divided(data: str, folder: str, nodes: int, root_size: int, seed: int) -> Federation:
    dataset = load(data, Path(folder) if folder else None)
    return divide(dataset, nodes, Dirichlet(10.0), root_size, seed=seed)


def node_data(config: Config, node: int, nodes: int) -> Batch:
    """The samples of one node."""
    held = divided(config, nodes).clients
    begin, end = held.offsets[node : node + 2].tolist()
    return Batch(held.inputs[begin:end], held.labels[begin:end])


def train(model: nn.Module, samples: Batch, config: Config, random: Generator) -> float:
    """Some steps of SGD on mini-batches of `samples`; gives the mean loss."""
    loader = DataLoader(
        TensorDataset(*samples), config["batch-size"], shuffle=True, generator=random
    )
    optimizer = torch.optim.SGD(model.parameters(), config["learning-rate"])
    model.train()
    losses = []
    batches = chain.from_iterable(repeat(loader))  # one epoch after another
    for inputs, labels in islice(batches, config["local-steps"]):
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model: nn.Module, samples: Batch) -> float:
    """The share of `samples` that the model labels correctly."""
    model.eval()
    parts = zip(samples.inputs.split(1000), samples.labels.split(1000), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return right / len(samples.labels)
