"""SkyMask as one would first write it: the baseline that the library is measured against."""

import copy
from collections.abc import Callable

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from skymask.flat import flatten
from skymask.types import ClientData, Round

Loss = Callable[[Tensor, Tensor], Tensor]


def train_masks(updates: Tensor, round: Round, steps: int) -> Tensor:
    """Binary masks (n, d) of `updates` (n, d): autograd through the masks, Eq. 2 to 5.

    The step is scaled by the gradient's root mean square, as in the library.
    """
    masks = torch.ones_like(updates, requires_grad=True)
    for _ in range(steps):
        s = torch.sigmoid(masks)
        model = round.params + (s * updates).sum(0) / s.sum(0)
        (slope,) = torch.autograd.grad(round.loss(model, round.root), masks)
        with torch.no_grad():
            masks -= slope / slope.square().mean().sqrt()
    return torch.sigmoid(masks.detach()) > 0.5


def skymask(updates: Tensor, round: Round, steps: int) -> Tensor:
    """Who is accepted, (n,) bool: masks, PCA of the centred bits, scikit-learn's mixture."""
    bits = train_masks(torch.cat([updates, round.server_update[None]]), round, steps).float()
    u, s, _ = torch.linalg.svd(bits - bits.mean(0), full_matrices=False)
    points = (u[:, :2] * s[:2]).cpu().numpy()
    labels = GaussianMixture(2, random_state=0).fit_predict(points / points.std())
    return torch.from_numpy(labels[:-1] == labels[-1])


def train_in_turn(
    module: nn.Module, loss: Loss, data: ClientData, rows: Tensor, lr: float
) -> Tensor:
    """Updates (n, d) of clients who take the steps `rows` (n, steps, batch), one after another."""
    found = []
    for own in rows:
        model = copy.deepcopy(module)
        for at in own:
            model.zero_grad()
            loss(model(data.inputs[at]), data.labels[at]).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= lr * parameter.grad
        found.append((flatten(model) - flatten(module)).detach())
    return torch.stack(found)


def train_by_vmap(
    module: nn.Module, loss: Loss, data: ClientData, rows: Tensor, lr: float
) -> Tensor:
    """As `train_in_turn`, all clients at once."""
    start = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}
    own = {name: b.expand(len(rows), *b.shape) for name, b in buffers.items()}
    moved = {name: p.expand(len(rows), *p.shape) for name, p in start.items()}

    def of_one(
        params: dict[str, Tensor], own: dict[str, Tensor], inputs: Tensor, labels: Tensor
    ) -> Tensor:
        copied = {name: buffer.clone() for name, buffer in own.items()}
        return loss(functional_call(module, params | copied, (inputs,)), labels)

    for at in rows.unbind(1):
        slopes = vmap(grad(of_one))(moved, own, data.inputs[at], data.labels[at])
        moved = {name: moved[name] - lr * slopes[name] for name in moved}
    return torch.cat([(moved[name] - start[name]).flatten(1) for name in start], 1)
