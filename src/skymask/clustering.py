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
    starts = np.stack([_two_means(scaled[:, 0]), *(scaled.T > 0)])
    starts = starts[(starts.sum(1) > 0) & (starts.sum(1) < len(points))]
    if not len(starts):  # all points are the same
        return Mixture(np.tile([1.0, 0.0], (len(points), 1)), 0.0)
    probabilities, totals = _expectation_maximisation(scaled, starts, steps, tolerance)
    best = int(totals.argmax())
    return Mixture(probabilities[best], float(totals[best]))


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
    points: Array, starts: npt.NDArray[np.bool_], steps: int, tolerance: float
) -> tuple[Array, Array]:
    """Run EM on `points` (n, k) from all `starts` (s, n) at once, until none gains any more.

    Returns the probabilities (s, n, 2) and log-likelihoods (s,).
    """
    probabilities = np.stack([~starts, starts], 2).astype(float)
    last = np.full(len(starts), -np.inf)
    for _ in range(steps):
        weighted = _log_densities(points, probabilities)
        peak = weighted.max(2, keepdims=True)
        evidence = peak + np.log(np.exp(weighted - peak).sum(2, keepdims=True))
        probabilities = np.exp(weighted - evidence)
        total = evidence.sum((1, 2))
        if (total - last < tolerance * len(points)).all():
            break
        last = total
    return probabilities, total


def _log_densities(points: Array, probabilities: Array) -> Array:
    """Log of weight times density of each component at each point, (s, n, 2), after the M step."""
    n, k = points.shape
    shares = probabilities.transpose(0, 2, 1)  # (s, 2, n)
    mass = shares.sum(2) + 10 * np.finfo(float).eps
    means = shares @ points / mass[..., None]
    offsets = points - means[:, :, None]  # (s, 2, n, k)
    covariances = (shares[..., None] * offsets).swapaxes(2, 3) @ offsets / mass[..., None, None]
    cholesky = np.linalg.cholesky(covariances + _FLOOR * np.eye(k))
    distances = np.square(np.linalg.inv(cholesky) @ offsets.swapaxes(2, 3)).sum(2)
    log_determinants = 2 * np.log(np.diagonal(cholesky, axis1=2, axis2=3)).sum(2)
    normal = -(k * np.log(2 * np.pi) + log_determinants[..., None] + distances) / 2
    densities: Array = (np.log(mass / n)[..., None] + normal).swapaxes(1, 2)
    return densities
