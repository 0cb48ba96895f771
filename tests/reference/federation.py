"""Federated averaging as one would write it on a blackboard: one client, one step at a time."""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from skymask.data import divide, load
from skymask.local_sgd import batch_rows
from skymask.models import MODELS
from skymask.randomness import key


def federated_averaging(experiment):
    """The global parameters (d,) after a run without attack; `experiment` is resolved."""
    e = experiment
    data = divide(
        load(e.data, seed=e.seed), e.clients, e.partition, e.root_size, e.root_bias, e.seed
    ).clients
    torch.manual_seed(key(e.seed, "model"))
    module = MODELS[e.model](tuple(data.inputs.shape[1:]), data.classes)
    weights = data.counts / data.counts.sum()
    for index in range(e.rounds):
        start = parameters_to_vector(module.parameters()).detach()
        total = torch.zeros_like(start)
        for client in range(e.clients):
            vector_to_parameters(start.clone(), module.parameters())
            optimizer = torch.optim.SGD(module.parameters(), lr=e.local.lr)
            for rows in batch_rows(data, [client], e.local, key(e.seed, "batches", index))[0]:
                optimizer.zero_grad()
                e.loss(module(data.inputs[rows]), data.labels[rows]).backward()
                optimizer.step()
            total += weights[client] * (parameters_to_vector(module.parameters()).detach() - start)
        vector_to_parameters(start + e.server_lr * total, module.parameters())
    return parameters_to_vector(module.parameters()).detach()
