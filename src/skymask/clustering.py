"""SkyMask, second half: which masks lie in one cluster.

A mixture of Gaussians with full covariances, fitted by expectation maximisation to the masks'
first principal coordinates (section III-C3). The start is deterministic and does not depend on
the order of the points, so that permuting the clients permutes the verdicts.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_FLOOR = 1e-6
"""Added to each variance of points that have unit variance: identical points form a cluster too."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture of two Gaussians."""

    probabilities: Array
    """Of each point belonging to each component, (n, 2)."""
    log_likelihood: float
    """Of all the points, scaled as the fit saw them."""

    @property
    def labels(self) -> npt.NDArray[np.intp]:
        """The likelier component of each point, (n,)."""
        labels: npt.NDArray[np.intp] = self.probabilities.argmax(1)
        return labels


def two_gaussians(points: Array, steps: int = 100, tolerance: float = 1e-6) -> Mixture:
    """Fit two Gaussians to `points` (n, k); n at least 2.

    The points are divided by their overall standard deviation. EM starts from each of up to k + 1
    splits (two halves along each axis at its mean, and two-means along the first) and the likeliest
    end is kept. Stops when a step gains less than `tolerance` of log-likelihood per point.
    """
    scale = points.std()
    scaled = (points - points.mean(0)) / (scale if scale > 0 else 1.0)
    if len(points) < 2:
        return Mixture(np.array([[1.0, 0.0]]), 0.0)
    starts = [_two_means(scaled[:, 0])] + [axis > 0 for axis in scaled.T]
    fits = [
        _expectation_maximisation(scaled, s, steps, tolerance)
        for s in starts
        if 0 < s.sum() < len(s)
    ]
    if not fits:  # all points are the same
        sure = np.zeros((len(points), 2))
        sure[:, 0] = 1.0
        return Mixture(sure, 0.0)
    return max(fits, key=lambda fit: fit.log_likelihood)


def _two_means(values: Array) -> npt.NDArray[np.bool_]:
    """The exact two-means split of numbers (n,): the cut with the least squared error."""
    order = np.sort(values)
    n, sums = len(order), order.cumsum()
    sizes = np.arange(1, n)
    between = (sums[:-1] / sizes - (sums[-1] - sums[:-1]) / (n - sizes)) ** 2 * sizes * (n - sizes)
    cut = int(between.argmax())
    above: npt.NDArray[np.bool_] = values > (order[cut] + order[cut + 1]) / 2
    return above


def _expectation_maximisation(
    points: Array, start: npt.NDArray[np.bool_], steps: int, tolerance: float
) -> Mixture:
    probabilities = np.stack([~start, start], 1).astype(float)
    last = -np.inf
    for _ in range(steps):
        weighted = _log_densities(points, probabilities)
        peak = weighted.max(1, keepdims=True)
        evidence = peak + np.log(np.exp(weighted - peak).sum(1, keepdims=True))
        probabilities = np.exp(weighted - evidence)
        total = float(evidence.sum())
        if total - last < tolerance * len(points):
            break
        last = total
    return Mixture(probabilities, total)


def _log_densities(points: Array, probabilities: Array) -> Array:
    """Log of weight times density of each component at each point, (n, 2), after the M step."""
    n, k = points.shape
    columns = []
    for p in probabilities.T:
        mass = p.sum() + 10 * np.finfo(float).eps
        mean = p @ points / mass
        offset = points - mean
        covariance = (p[:, None] * offset).T @ offset / mass + _FLOOR * np.eye(k)
        cholesky = np.linalg.cholesky(covariance)
        distance = np.square(np.linalg.solve(cholesky, offset.T)).sum(0)
        log_determinant = 2 * np.log(cholesky.diagonal()).sum()
        columns.append(np.log(mass / n) - (k * np.log(2 * np.pi) + log_determinant + distance) / 2)
    return np.stack(columns, 1)
