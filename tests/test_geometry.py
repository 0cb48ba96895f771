"""Means, distances and principal axes against slow or independent ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA

from skymask import geometry
from skymask.geometry import (
    distances_to,
    principal_components,
    sketch,
    squared_distances,
    weighted_mean,
)
from skymask.randomness import generator


def drawn(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("geometry", *shape), dtype=dtype)


def slow_distances(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double()
    return torch.stack([torch.stack([(a - b).square().sum() for b in rows]) for a in rows])


def test_a_mean_by_hand():
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    assert weighted_mean(rows, torch.tensor([1, 1, 2])).tolist() == [3.5, 7.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_beyond_single_precision(dtype):
    rows, weights = drawn(6, 9, dtype=dtype), torch.tensor([2**40 + 1, 3, 2**40, 7, 1, 2**41])
    mean = weighted_mean(rows, weights)
    assert mean.dtype == dtype
    expected = torch.from_numpy(np.average(rows.double().numpy(), axis=0, weights=weights.numpy()))
    torch.testing.assert_close(mean, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("step", [1.0, 3e-2, 3e-3, 1e-3, 1e-5])
def test_distances_equal_a_loop(dtype, offset, step):
    # Rows 0 and 1 lie `step` apart, where all others are about 1 apart, far from zero.
    rows = drawn(7, 20_000, dtype=dtype)
    rows[1] = rows[0] + step * drawn(20_000, dtype=dtype)
    rows = rows + offset
    distances = squared_distances(rows)
    torch.testing.assert_close(distances, slow_distances(rows), rtol=2e-3, atol=0)
    assert distances.dtype == torch.float64


def test_twins_have_no_distance():
    rows = drawn(6, 100) + 50
    rows[4] = rows[1]
    distances = squared_distances(rows)
    assert distances[1, 4] == distances[4, 1] == 0
    assert not distances.diagonal().any()
    assert (distances > 0).sum() == 36 - 6 - 2


@pytest.fixture
def grams(monkeypatch) -> list[int]:
    """How many rows each Gram matrix had that was computed."""
    sizes, products = [], geometry._products

    def counted(*given):
        total = products(*given)
        sizes.append(len(total))
        return total

    monkeypatch.setattr(geometry, "_products", counted)
    return sizes


def test_an_outlier_does_not_blur_the_others_distances(grams):
    rows = drawn(5, 100)
    rows[0] *= 1e6
    torch.testing.assert_close(squared_distances(rows), slow_distances(rows), rtol=2e-3, atol=0)
    assert grams == [5, 4]


def test_many_twins_cost_one_more_gram_matrix(grams):
    rows = drawn(40, 100) + 50
    same = torch.arange(40) % 3 == 1
    rows[same] = rows[1].clone()
    distances = squared_distances(rows)
    assert grams == [40, 13]
    assert not distances[same][:, same].any()
    assert len(distances[same].unique(dim=0)) == 1  # bit for bit
    assert distances.equal(distances.T)
    torch.testing.assert_close(distances, slow_distances(rows), rtol=2e-3, atol=0)


def test_identical_rows_cost_one_more_gram_matrix(grams):
    assert not squared_distances(drawn(1, 100).expand(30, 100)).any()
    assert grams == [30, 30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_within_groups(dtype):
    # Colluders near one another and twins among them, beside huge ones that differ by little.
    rows = drawn(24, 500, dtype=dtype)
    rows[:6] = rows[0] + 1e-4 * rows[:6]
    rows[2:4] = rows[1].clone()
    rows[6:12] = 1e12 * (rows[6] + 1e-2 * rows[6:12])
    rows[12:14] = 1e12 * rows[6]
    torch.testing.assert_close(squared_distances(rows), slow_distances(rows), rtol=2e-3, atol=0)


@given(st.data(), st.integers(1, 9), st.integers(1, 4))
def test_distances_of_anything(data, n, d):
    scales = data.draw(arrays(np.float32, (n, 1), elements=st.sampled_from([0, 2**-10, 1, 2**30])))
    whole = data.draw(arrays(np.float32, (n, d), elements=st.integers(-3, 3)))
    rows = torch.from_numpy(scales * whole)
    distances = squared_distances(rows)
    torch.testing.assert_close(distances, slow_distances(rows), rtol=2e-3, atol=0)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1.8e19), (torch.float64, 1.2e154)])
def test_distances_that_overflow(dtype, size):
    # The rows' own squared lengths are finite, those of their differences are not.
    rows = size * torch.tensor([[1, 0], [-1, 0], [-1, 0], [0, 0], [0, 1e-9]], dtype=dtype)
    distances, expected = squared_distances(rows), slow_distances(rows)
    assert not distances.isnan().any()
    near = expected < 1e300
    torch.testing.assert_close(distances[near], expected[near], rtol=2e-3, atol=0)
    assert (distances[~near] > 1e300).all()


def test_parts_make_no_difference(monkeypatch):
    rows, point = drawn(11, 130, dtype=torch.float64), drawn(130, dtype=torch.float64)
    expected = squared_distances(rows), distances_to(point, rows)
    for entries, height in ((1, 1), (100, 3), (1500, 5), (10**6, 11)):
        monkeypatch.setattr(geometry, "_ENTRIES", entries)
        monkeypatch.setattr(geometry, "_ROWS", height)
        torch.testing.assert_close(squared_distances(rows), expected[0])
        torch.testing.assert_close(distances_to(point, rows), expected[1])
    by_hand = (rows - point).square().sum(1).sqrt()
    torch.testing.assert_close(distances_to(point, rows), by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_are_summed_in_wider_ones(dtype):
    rows = drawn(6, 5000).to(dtype)
    torch.testing.assert_close(squared_distances(rows), slow_distances(rows), rtol=2e-3, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_axes_are_those_of_pca(dtype, offset):
    rows = drawn(12, 30, dtype=dtype) * torch.linspace(3, 0.1, 30, dtype=dtype) + offset
    points = principal_components(rows, 3).numpy()
    expected = PCA(3, svd_solver="full").fit_transform(rows.double().numpy())
    assert points.dtype == np.float64
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-3, atol=1e-3)
    signs = np.sign((points * expected).sum(0))
    np.testing.assert_allclose(points, signs * expected, rtol=1e-3, atol=1e-3)


def test_bits_are_exact():
    bits = drawn(15, 70_000) > 0.3
    points = principal_components(bits, 2).numpy()
    expected = PCA(2, svd_solver="full").fit_transform(bits.double().numpy())
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-8, atol=1e-8)


def test_permuted_rows_give_permuted_points():
    rows, order = drawn(9, 40, dtype=torch.float64), torch.randperm(9, generator=generator(1))
    torch.testing.assert_close(
        principal_components(rows[order], 2), principal_components(rows, 2)[order]
    )


def test_all_axes_keep_the_distances_and_missing_ones_are_zero():
    rows = drawn(3, 50, dtype=torch.float64)
    points = principal_components(rows, 5)
    assert points.shape == (3, 5)
    assert not points[:, 3:].any()
    torch.testing.assert_close(slow_distances(points), slow_distances(rows))


def test_identical_rows_lie_at_the_origin():
    assert not principal_components(torch.ones(4, 10, dtype=torch.bool), 2).any()
    assert principal_components(torch.ones(1, 10), 2).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("d", [40, 512, 5003])
def test_a_sketch_keeps_products_and_is_the_sum_of_its_parts(d):
    rows = torch.randn(6, d, generator=generator("sketch", d))
    whole = sketch(rows, 512, seed=7)
    parts = [sketch(rows[:, at : at + 17], 512, 7, at) for at in range(0, d, 17)]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-5, atol=1e-4)
    error = (whole @ whole.T - rows @ rows.T) / rows.norm(dim=1).square().mean()
    assert float(error.abs().max()) < 4 / 512**0.5
    if d <= 512:  # a column has a bucket of its own
        torch.testing.assert_close(whole.abs()[:, :d], rows.abs())
    assert not torch.allclose(sketch(rows, 512, seed=8), whole)
    long = torch.ones(1, 100_000)
    assert float(sketch(long, 512, seed=1).norm() / long.norm()) == pytest.approx(1, abs=0.2)
