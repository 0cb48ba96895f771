"""Eq. 2 to 5 as printed, with autograd on the n x d masks and on whole models, not updates."""

from collections.abc import Callable

import torch
from torch import Tensor


def train(
    models: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    gamma: float,
    relative: bool,
    steps: int,
    tolerance: float = -1.0,
    tau: float = 0.5,
) -> tuple[list[Tensor], Tensor]:
    """The masks m (n, d) after each step, and the binary masks after the last one."""
    masks = torch.ones_like(models)
    bits = torch.sigmoid(masks) > tau
    history = []
    for _ in range(steps):
        masks = masks.requires_grad_()
        shares = torch.sigmoid(masks)
        mean = (shares * models).sum(0) / shares.sum(0)  # Eq. 2
        (gradient,) = torch.autograd.grad(loss(mean), masks)  # Eq. 3
        if relative:
            gradient = gradient / gradient.square().mean().sqrt()
        masks = (masks - gamma * gradient).detach()  # Eq. 4
        history.append(masks)
        before, bits = bits, torch.sigmoid(masks) > tau  # Eq. 5
        if (before != bits).double().mean() <= tolerance:
            break
    return history, bits
