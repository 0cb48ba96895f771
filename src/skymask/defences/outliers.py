"""Who is an outlier: bounds in robust standard deviations that hold where most are attackers."""

import math

import torch
from torch import Tensor

OUTLIER = 3.0
"""Robust standard deviations from the median beyond which a client is an outlier."""
_MOST = 2 / 3
"""So many clients within the limit for outliers are honest for the most part."""
_NORMAL = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


def below(
    slow: Tensor, lately: Tensor, sure: float, beyond: float = 1.0, others: Tensor | None = None
) -> Tensor:
    """Which of n clients are below 0, of their two numbers (n,): (n,) bool.

    Below -`sure` in either one; or below -`beyond` in the slow one, and an outlier beside the good.
    Only of `others` (n,), all if None, is it not known yet that they are not among these.
    """
    surely = torch.minimum(slow, lately) < -sure
    doubtful = ~surely if others is None else others & ~surely
    return surely | (slow < _limit(slow, -beyond, doubtful))


def _limit(mine: Tensor, most: float, doubtful: Tensor) -> Tensor:
    """Below which one of n clients is an outlier beside the good ones: at most `most`.

    The good ones are those above 0, be they few: in a majority of attackers a median says nothing.
    But where honest clients are about 0, those above it are the upper half of them, which is
    narrower and higher than the whole. So where two thirds of all are within the limit, all of
    these are the good ones, and the limit is made of them once more. Likewise if two thirds of the
    `doubtful` (n,) are, whom nothing else tells from the good ones: two thirds of all are most of
    the honest clients, and more the more attackers there are.
    """
    good = mine[mine > 0] if (mine > 0).any() else mine.new_zeros(1)
    limit = outlier(good).clamp_max(most)
    within = mine >= limit
    for some in (torch.ones_like(doubtful), doubtful):
        if int((within & some).sum()) > _MOST * int(some.sum()):
            return outlier(mine[within & some]).clamp_max(most)
    return limit


def outlier(good: Tensor, least: float = 1.0) -> Tensor:
    """Below which one is an outlier beside the `good` ones, who vary by `least` at least."""
    return good.median() - OUTLIER * max(spread(good), least)


def spread(values: Tensor) -> float:
    """The robust standard deviation of `values` (k,): as if most were drawn from a normal one."""
    return _NORMAL * float((values - values.median()).abs().median())


def stouffer(one: Tensor, other: Tensor) -> Tensor:
    """Two numbers of clients in standard deviations as one such (Stouffer's): their sum / sqrt 2.

    For two whose noise has nothing to do with each other's: who is a little below 0 in both is
    hardly there by chance.
    """
    return (one + other) / math.sqrt(2)


def together(bound: float, many: int) -> float:
    """The bound that one of `many` numbers is beyond as seldom as one alone is beyond `bound`.

    For numbers whose chance of that falls as exp(-bound^2 / 2): sqrt(bound^2 + 2 ln many).
    """
    return math.sqrt(bound**2 + 2 * math.log(max(1, many)))
