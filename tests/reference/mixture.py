"""The same mixture by scikit-learn, started from the same splits of the points."""

from itertools import pairwise

import numpy as np
from sklearn.mixture import GaussianMixture


def two_gaussians(points: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, 2) probabilities and the total log-likelihood of the likeliest fit."""
    scaled = (points - points.mean(0)) / points.std()
    fits = [fit(scaled, start) for start in starts(scaled) if 0 < start.sum() < len(start)]
    best = max(fits, key=lambda model: model.score(scaled))
    return best.predict_proba(scaled), float(best.score_samples(scaled).sum())


def starts(points: np.ndarray) -> list[np.ndarray]:
    """Halves along each axis at its mean, and the best cut of the first axis in two."""
    values = np.unique(points[:, 0])
    cuts = [(a + b) / 2 for a, b in pairwise(values)]
    best = min(cuts, key=lambda cut: squared_error(points[:, 0], cut))
    return [points[:, 0] > best, *(axis > axis.mean() for axis in points.T)]


def squared_error(values: np.ndarray, cut: float) -> float:
    return sum(
        ((part - part.mean()) ** 2).sum() for part in (values[values > cut], values[values <= cut])
    )


def fit(points: np.ndarray, start: np.ndarray) -> GaussianMixture:
    parts = [points[~start], points[start]]
    floor = 1e-6 * np.eye(points.shape[1])
    covariances = [np.cov(part.T, bias=True).reshape(floor.shape) + floor for part in parts]
    model = GaussianMixture(
        2,
        covariance_type="full",
        reg_covar=1e-6,
        tol=1e-10,
        max_iter=5000,
        weights_init=[len(part) / len(points) for part in parts],
        means_init=[part.mean(0) for part in parts],
        precisions_init=[np.linalg.inv(covariance) for covariance in covariances],
    )
    return model.fit(points)
