"""Who is an outlier."""

import math

import pytest
import torch

from skymask.defences.outliers import below, together


def test_attackers_that_are_known_do_not_hide_those_that_are_not():
    numbers = [*torch.linspace(0.8, 2.4, 10).tolist(), *[-1.4] * 7, *[-2.9] * 8, *[-2.5] * 4]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    unknown = torch.ones(29, dtype=torch.bool)
    unknown[10:25] = False
    assert below(numbers, numbers, 3.0, others=unknown)[25:].all()


def test_of_many_numbers_one_is_beyond_the_bound_as_seldom_as_one_alone():
    assert together(3.0, 1) == 3.0
    assert together(3.0, 0) == 3.0
    for many in (2, 65):
        assert many * math.exp(-(together(3.0, many) ** 2) / 2) == pytest.approx(math.exp(-4.5))
