"""SkyMask, second half: which masks lie in one cluster.

A mixture of Gaussians with full covariances, fitted by expectation maximisation to the masks'
first principal coordinates (section III-C3). The start is deterministic and does not depend on
the order of the points, so that permuting the clients permutes the verdicts.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skymask.compiled import machine_code

Array = npt.NDArray[np.float64]

_FLOOR = 1e-6
"""Added to each variance of points that have unit variance: identical points form a cluster too."""
_DIMS = 4
"""Of more dimensions numpy's products are faster than loops."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture of two Gaussians."""

    probabilities: Array
    """Of each point belonging to each component, (n, 2)."""
    log_likelihood: float
    """Of all the points, scaled as the fit saw them."""
    gain: float = 0.0
    """How much better than one Gaussian, per point: the difference of the two BICs over n."""

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
    return two_gaussians_each(points[None], steps, tolerance)[0]


def two_gaussians_each(stack: Array, steps: int = 100, tolerance: float = 1e-6) -> list[Mixture]:
    """`two_gaussians` of each of several sets of points (g, n, k), all in one run of EM."""
    n = stack.shape[1]
    one = Mixture(np.tile([1.0, 0.0], (n, 1)), 0.0)  # a single point, or all the same
    if n < 2:
        return [one] * len(stack)
    scale = stack.std((1, 2), keepdims=True)
    scaled = (stack - stack.mean(1, keepdims=True)) / np.where(scale > 0, scale, 1.0)
    splits = np.concatenate([_two_means(scaled[:, :, 0])[:, None], scaled.swapaxes(1, 2) > 0], 1)
    owners, which = np.nonzero(splits.any(2) & ~splits.all(2))
    if not len(owners):
        return [one] * len(stack)
    shares, totals = _expectation_maximisation(
        scaled[owners], splits[owners, which], steps, tolerance
    )
    gains = _gains(scaled, totals, owners)
    found = []
    for owner in range(len(stack)):
        mine = np.flatnonzero(owners == owner)
        if not len(mine):
            found.append(one)
            continue
        best = mine[totals[mine].argmax()]
        found.append(Mixture(shares[best].T, float(totals[best]), float(gains[best])))
    return found


def _gains(sets: Array, totals: Array, owners: npt.NDArray[np.intp]) -> Array:
    """BIC of one Gaussian for each of `sets` (g, n, k) minus that of two, per point: (s,).

    The two have the log-likelihoods `totals` (s,), for the sets `owners` (s,).
    """
    _, n, k = sets.shape
    spread = sets.swapaxes(1, 2) @ sets / n  # the sets are centred
    covariances = spread + _FLOOR * np.eye(k)
    distances = np.trace(np.linalg.solve(covariances, spread), axis1=1, axis2=2)
    alone = -n / 2 * (k * math.log(2 * math.pi) + np.linalg.slogdet(covariances)[1] + distances)
    more = 1 + k + k * (k + 1) // 2  # a weight, a mean and a covariance
    gains: Array = (2 * (totals - alone[owners]) - more * math.log(n)) / n
    return gains


def _two_means(values: Array) -> npt.NDArray[np.bool_]:
    """The exact two-means split of each row of (g, n): the cut with the least squared error."""
    order = np.sort(values)
    n, sums = order.shape[1], order.cumsum(1)
    sizes = np.arange(1, n)
    low, high = sums[:, :-1] / sizes, (sums[:, -1:] - sums[:, :-1]) / (n - sizes)
    cut = ((low - high) ** 2 * sizes * (n - sizes)).argmax(1)[:, None]
    between = np.take_along_axis(order, cut, 1) + np.take_along_axis(order, cut + 1, 1)
    above: npt.NDArray[np.bool_] = values > between / 2
    return above


def _expectation_maximisation(
    points: Array, starts: npt.NDArray[np.bool_], steps: int, tolerance: float
) -> tuple[Array, Array]:
    """Run EM on `points` (s, n, k), from each of `starts` (s, n) until it gains no more.

    Returns the probabilities (s, 2, n) and log-likelihoods (s,). In machine code if there is any:
    a few points are less work than numpy's calls.
    """
    compiled = machine_code(_in_loops, _inverse)
    if compiled is not None and points.shape[2] <= _DIMS:
        later, totals = compiled(np.ascontiguousarray(points), starts, steps, tolerance)
        return np.stack([1 - later, later], 1), totals
    return _in_arrays(points, starts, steps, tolerance)


def _in_loops(
    points: Array, starts: npt.NDArray[np.bool_], steps: int, tolerance: float
) -> tuple[Array, Array]:
    """As `_in_arrays`, one start after the other; of the probabilities the second one's, (s, n)."""
    count, n, k = points.shape
    shares, totals = np.empty((count, n)), np.empty(count)
    means, precisions = np.empty((2, k)), np.empty((2, k, k))
    weights, constants, away = np.empty((2, n)), np.empty(2), np.empty(k)
    for s in range(count):
        own, last, total = points[s], -np.inf, -np.inf
        weights[0], weights[1] = 1.0 - starts[s], starts[s]
        for _ in range(steps):
            for c in range(2):
                mass = 10 * 2.220446049250313e-16
                means[c], precisions[c] = 0.0, 0.0
                for i in range(n):
                    mass += weights[c, i]
                    for j in range(k):
                        means[c, j] += weights[c, i] * own[i, j]
                        for h in range(k):
                            precisions[c, j, h] += weights[c, i] * own[i, j] * own[i, h]
                means[c] /= mass
                for j in range(k):
                    for h in range(k):
                        product = precisions[c, j, h] / mass
                        precisions[c, j, h] = product - means[c, j] * means[c, h]
                    precisions[c, j, j] += _FLOOR
                scale = k * math.log(2 * math.pi) + math.log(_inverse(precisions[c]))
                constants[c] = math.log(mass / n) - scale / 2
            total = 0.0
            for i in range(n):
                ahead = 0.0
                likelier = -np.inf
                for c in range(2):
                    distance = 0.0
                    for j in range(k):
                        away[j] = own[i, j] - means[c, j]
                    for j in range(k):
                        for h in range(k):
                            distance += away[j] * precisions[c, j, h] * away[h]
                    weighted = constants[c] - distance / 2
                    ahead = weighted - ahead  # after both: the second less the first
                    likelier = max(likelier, weighted)
                odds = math.exp(-abs(ahead))  # of the unlikelier component
                total += likelier + math.log(1 + odds)
                less = odds / (1 + odds)
                weights[1, i] = less if ahead < 0 else 1 - less
                weights[0, i] = 1 - weights[1, i]
            if total - last < tolerance * n:
                break
            last = total
        shares[s], totals[s] = weights[1], total
    return shares, totals


def _inverse(matrix: Array) -> float:
    """Put the inverse of a positive definite (k, k) in its place; returns its determinant."""
    determinant = 1.0
    for j in range(len(matrix)):
        pivot = matrix[j, j]
        determinant *= pivot
        matrix[j, j] = 1.0
        matrix[j] /= pivot
        for i in range(len(matrix)):
            if i != j:
                factor = matrix[i, j]
                matrix[i, j] = 0.0
                matrix[i] -= factor * matrix[j]
    return determinant


def _in_arrays(
    points: Array, starts: npt.NDArray[np.bool_], steps: int, tolerance: float
) -> tuple[Array, Array]:
    """As `_expectation_maximisation`, all starts side by side.

    Moments and log densities are sums over the terms 1, x_i and x_i x_j, which are made once:
    points of unit variance lose nothing by it that the floor of a variance would not hide.
    """
    s, n, k = points.shape
    products = (points[..., :, None] * points[..., None, :]).reshape(s, n, k * k)
    terms = np.concatenate([np.ones((s, n, 1)), points, products], 2)  # (s, n, m)
    columns = np.ascontiguousarray(terms.swapaxes(1, 2))
    shares = np.stack([~starts, starts], 1).astype(float)
    total = np.full(s, -np.inf)
    going = np.ones(s, bool)
    for _ in range(steps):
        weighted = _log_density(shares[going] @ terms[going], n, k) @ columns[going]  # (s, 2, n)
        ahead = weighted[:, 1] - weighted[:, 0]
        odds = np.exp(-np.abs(ahead))  # of the unlikelier component
        whole = 1 + odds
        less = odds / whole
        later = np.where(ahead < 0, less, 1 - less)
        shares[going] = np.stack([1 - later, later], 1)
        now, last = (weighted.max(1) + np.log(whole)).sum(1), total[going]
        total[going] = now
        going[going] = ~(now - last < tolerance * n)
        if not going.any():
            break
    return shares, total


def _log_density(moments: Array, n: int, k: int) -> Array:
    """Coefficients (s, 2, m) of the log of weight times density in the terms, as is `moments`.

    `moments` (s, 2, m) are the sums of the terms of all n points, shared among the components.
    """
    mass = moments[..., :1] + 10 * np.finfo(float).eps
    moments = moments / mass
    means = moments[..., 1 : k + 1]
    products = moments[..., k + 1 :].reshape(*means.shape, k)
    covariances = products - means[..., None] * means[..., None, :] + _FLOOR * np.eye(k)
    precisions, determinants = _inverses(covariances)
    linear = precisions @ means[..., None]
    distances = (means[..., None, :] @ linear)[..., 0]
    constant = np.log(mass / n) - (np.log((2 * np.pi) ** k * determinants) + distances) / 2
    square = precisions.reshape(*mass.shape[:2], k * k) / -2
    return np.concatenate([constant, linear[..., 0], square], 2)


def _inverses(matrices: Array) -> tuple[Array, Array]:
    """Inverses and determinants (s, 2, 1) of symmetric `matrices` (s, 2, k, k)."""
    if matrices.shape[-1] != 2:
        determinants: Array = np.linalg.det(matrices)[..., None]
        return np.linalg.inv(matrices).astype(float), determinants
    a, b, c = (matrices[..., i, j, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    determinants = a * c - b * b
    inverses: Array = np.concatenate([c, -b, -b, a], 2) / determinants
    return inverses.reshape(matrices.shape), determinants
