"""(n, d) mathematics that the rules, the attacks and the clustering share."""

import torch
from torch import Tensor


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i rows_i / sum_i w_i of `rows` (n, d) with `weights` (n,): (d,)."""
    shares = weights.to(torch.float64) / weights.sum(dtype=torch.float64)
    return shares.to(rows.dtype) @ rows


def squared_distances(rows: Tensor) -> Tensor:
    """Squared Euclidean distances between all `rows` (n, d): (n, n) float64, exactly 0 for twins.

    |x|^2 + |y|^2 - 2 x.y cancels where x and y are close to each other but far from zero, so the
    rows are centred first and products are summed in float64; what is still lost in a pair
    (a squared distance below a thousandth of the squared norms) is computed again from the
    difference itself.
    """
    centred = rows - rows.mean(0)
    gram = _gram(centred)
    norms = gram.diagonal()
    distances = (norms[:, None] + norms - 2 * gram).clamp_min(0)
    unsure = distances < 1e-3 * (norms[:, None] + norms)
    for i, j in unsure.triu(1).nonzero().tolist():
        exact = (rows[i] - rows[j]).square().sum(dtype=torch.float64)
        distances[i, j] = distances[j, i] = exact
    return distances.fill_diagonal_(0)


def principal_components(rows: Tensor, dims: int) -> Tensor:
    """Coordinates of `rows` (n, d) along their first `dims` principal axes: (n, dims) float64.

    From the n x n Gram matrix of the centred rows, never a d x d one: with eigenpairs (l, v) of it
    the coordinates are sqrt(l) v. An axis has no sign of its own; the entry largest in size is
    made positive, so the result does not hang on the order of the rows.
    """
    gram = _gram(rows - rows.mean(0) if rows.is_floating_point() else rows.float())
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    values, vectors = torch.linalg.eigh(centred.cpu())
    values, vectors = values.flip(0)[:dims], vectors.flip(1)[:, :dims]
    points = vectors * values.clamp_min(0).sqrt()
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)
    missing = dims - points.shape[1]  # fewer rows than axes
    return torch.nn.functional.pad(points, (0, missing)) if missing > 0 else points


def _gram(rows: Tensor) -> Tensor:
    """Products of all rows with each other, in float64.

    In parts of 2^16 columns, each in the rows' own precision: products of 0 and 1 are exact that
    way, and the sum of many parts keeps its digits.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(1 << 16, 1):
        total += part @ part.T
    return total
