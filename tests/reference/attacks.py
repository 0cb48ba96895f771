"""The crafted attacks as their papers print them, one number at a time."""

from torch import Tensor


def distance_sum(vector: Tensor, honest: Tensor) -> float:
    """Sum of squared distances from `vector` (d,) to the honest updates (n, d)."""
    return sum(float((vector - row).square().sum()) for row in honest)


def min_sum(honest: Tensor, direction: Tensor, bound: float, steps: int = 200) -> Tensor:
    """mu + lambda * direction with the largest lambda within `bound`, found by halving."""
    mean = honest.mean(0)
    low, high = 0.0, 1.0
    while distance_sum(mean + high * direction, honest) <= bound:
        high *= 2
    for _ in range(steps):
        middle = (low + high) / 2
        within = distance_sum(mean + middle * direction, honest) <= bound
        low, high = (middle, high) if within else (low, middle)
    return mean + low * direction


def fang_interval(honest: list[float], stretch: float) -> tuple[float, float]:
    """Where a malicious value of one coordinate lies; honest values are deltas to be added."""
    low, high = min(honest), max(honest)
    if sum(honest) > 0:
        return (low / stretch, low) if low > 0 else (stretch * low, low)
    return (high, stretch * high) if high > 0 else (high, high / stretch)
