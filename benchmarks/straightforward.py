"""SkyMask as one would first write it: the baseline that the library is measured against."""

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from skymask.types import Round


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
