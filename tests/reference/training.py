"""Local training of one client as anyone would write it: a module, its gradients, its buffers."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def train(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: float,
) -> tuple[Tensor, Tensor]:
    """W_i - W_t of the parameters that are trained, and the floating-point buffers after it."""
    module = copy.deepcopy(module).train()
    trained = [p for p in module.parameters() if p.requires_grad]
    before = joined(trained)
    for inputs, labels in batches:
        module.zero_grad()
        loss(module(inputs), labels).backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    return joined(trained) - before, joined(buffers)


def joined(tensors: Iterable[Tensor]) -> Tensor:
    parts = [t.detach().reshape(-1).clone() for t in tensors]
    return torch.cat(parts) if parts else torch.empty(0)
