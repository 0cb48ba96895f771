"""The mixture of two Gaussians equals scikit-learn's, at any scale and in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.mixture import GaussianMixture

from skymask import clustering
from skymask.clustering import two_gaussians, two_gaussians_each
from tests.reference import mixture

RNG_SEEDS = range(4)


def blobs(seed: int, n: int = 40, k: int = 2, apart: float = 6.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, k))
    points[: n // 4] = 0.3 * points[: n // 4] + apart * np.eye(k)[0]
    return points


def same_parts(some: np.ndarray, others: np.ndarray) -> bool:
    return np.array_equal(some, others) or np.array_equal(some, 1 - others)


@pytest.mark.parametrize("seed", RNG_SEEDS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("apart", [0.0, 2.0, 6.0])
def test_equal_to_scikit_learn(seed, k, apart):
    points = blobs(seed, k=k, apart=apart)
    fit = two_gaussians(points, steps=5000, tolerance=1e-10)
    probabilities, likelihood = mixture.two_gaussians(points)
    assert fit.log_likelihood == pytest.approx(likelihood, abs=1e-4)
    assert same_parts(fit.labels, probabilities.argmax(1))
    own = np.sort(fit.probabilities, axis=1)
    np.testing.assert_allclose(own, np.sort(probabilities, axis=1), atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3])
def test_a_tight_group_far_away_loses_no_digits(k, size):
    points = blobs(1, n=400, k=k, apart=0.0)
    points[:4] = 500 + size * points[:4]
    fit = two_gaussians(points, steps=5000, tolerance=1e-10)
    probabilities, likelihood = mixture.two_gaussians(points)
    assert fit.log_likelihood == pytest.approx(likelihood, abs=1e-4)
    assert same_parts(fit.labels, probabilities.argmax(1))


@pytest.mark.parametrize("seed", RNG_SEEDS)
def test_the_usual_tolerance_is_close_enough(seed):
    points = blobs(seed, apart=3.0)
    exact = two_gaussians(points, steps=5000, tolerance=1e-12)
    assert two_gaussians(points).log_likelihood == pytest.approx(exact.log_likelihood, abs=0.1)


@pytest.mark.parametrize("seed", RNG_SEEDS)
def test_a_small_tight_group_beside_a_wide_one_is_found(seed):
    points = blobs(seed)
    assert same_parts(two_gaussians(points).labels, (np.arange(40) < 10).astype(int))


def test_the_second_axis_may_hold_the_groups():
    points = blobs(1)[:, ::-1] * [2.0, 1.0]
    assert same_parts(two_gaussians(points).labels, (np.arange(40) < 10).astype(int))


@given(st.permutations(range(40)), st.sampled_from([0.0, 2.0, 6.0]))
def test_the_order_of_the_points_does_not_matter(order, apart):
    points = blobs(2, apart=apart)
    fit, permuted = two_gaussians(points), two_gaussians(points[order])
    assert same_parts(permuted.labels, fit.labels[order])
    assert permuted.log_likelihood == pytest.approx(fit.log_likelihood)


@given(st.integers(-30, 30), st.floats(-3, 3))
def test_neither_scale_nor_place_matters(power, shift):
    points = blobs(3)
    fit, moved = two_gaussians(points), two_gaussians((points + shift) * 10.0**power)
    assert same_parts(moved.labels, fit.labels)
    assert moved.log_likelihood == pytest.approx(fit.log_likelihood, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("apart", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("steps", [0, 3, 100])
def test_loops_and_arrays_come_to_the_same_clusters(k, apart, steps):
    stack = np.stack([blobs(seed, k=k, apart=apart) for seed in RNG_SEEDS])
    stack[0] = np.repeat(stack[0, :2], 20, axis=0)  # two points, twenty times each
    starts = stack[..., 0] > stack[..., 0].mean(1, keepdims=True)
    shares, totals = clustering._in_arrays(stack, starts, steps, 1e-6)
    later, same = clustering._in_loops(stack, starts, steps, 1e-6)
    np.testing.assert_allclose(later, shares[:, 1], atol=1e-7)
    np.testing.assert_allclose(same, totals, rtol=1e-7)


@pytest.mark.parametrize("k", [2, 5])
def test_clusters_are_the_same_without_machine_code(k, monkeypatch):
    pytest.importorskip("numba", reason="needs the extra fast")
    stack = np.stack([blobs(seed, k=k) for seed in RNG_SEEDS])
    fast = two_gaussians_each(stack)
    monkeypatch.setattr(clustering, "machine_code", lambda *functions: None)
    for one, other in zip(fast, two_gaussians_each(stack), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-7)
        assert one.gain == pytest.approx(other.gain)


def test_points_that_are_all_the_same_are_one_cluster():
    fit = two_gaussians(np.full((5, 2), 3.0))
    assert fit.labels.tolist() == [0] * 5
    assert fit.probabilities.sum(1).tolist() == [1.0] * 5


def test_two_points_are_two_clusters():
    assert set(two_gaussians(np.array([[0.0, 1.0], [2.0, 1.0]])).labels) == {0, 1}


def test_groups_of_identical_points_are_told_apart():
    points = np.repeat([[0.0, 0.0], [1.0, 0.5]], [7, 3], axis=0)
    fit = two_gaussians(points)
    assert same_parts(fit.labels, (np.arange(10) >= 7).astype(int))
    np.testing.assert_allclose(fit.probabilities.max(1), 1.0)


def test_one_outlier_is_a_cluster_of_its_own():
    points = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1], [1e6, 1e6]])
    assert same_parts(two_gaussians(points).labels, np.array([0, 0, 0, 0, 1]))


FLOATS = st.floats(-1e30, 1e30) | st.floats(-1e-30, 1e-30) | st.sampled_from([0.0, 1.0])


SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 3))


@given(SHAPES.flatmap(lambda shape: arrays(float, shape, elements=FLOATS)))
def test_any_points_get_probabilities(points):
    fit = two_gaussians(points)
    assert fit.probabilities.shape == (len(points), 2)
    assert np.isfinite(fit.log_likelihood)
    np.testing.assert_allclose(fit.probabilities.sum(1), 1.0)
    assert (fit.probabilities >= 0).all()


def different_sets() -> np.ndarray:
    """Sets of points that need other numbers of starts and steps than each other."""
    same = np.full((40, 2), 3.0)
    line = np.stack([np.arange(40.0), np.zeros(40)], 1)
    return np.stack([blobs(0), same, blobs(1, apart=0.0), line, blobs(2, apart=2.0) * 1e9])


def test_several_sets_at_once_are_the_same_as_each_alone():
    stack = different_sets()
    for points, fit in zip(stack, two_gaussians_each(stack), strict=True):
        alone = two_gaussians(points)
        assert fit.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-6)
        assert fit.gain == pytest.approx(alone.gain, abs=1e-6)
        np.testing.assert_allclose(fit.probabilities, alone.probabilities, atol=1e-5)


def test_the_order_of_the_sets_does_not_matter():
    stack = different_sets()
    fits, others = two_gaussians_each(stack), two_gaussians_each(stack[::-1])
    for fit, other in zip(fits, others[::-1], strict=True):
        assert np.array_equal(fit.labels, other.labels)
        assert fit.gain == pytest.approx(other.gain, abs=1e-9)


@pytest.mark.parametrize("seed", RNG_SEEDS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("apart", [0.0, 6.0])
def test_the_gain_is_scikit_learns_difference_of_bic(seed, k, apart):
    points = blobs(seed, k=k, apart=apart)
    scaled = (points - points.mean(0)) / points.std()
    one = GaussianMixture(1, reg_covar=1e-6).fit(scaled).bic(scaled)
    # scikit-learn's fit from our own splits, its BIC written out.
    parameters = 2 * (k + k * (k + 1) // 2) + 1
    two = parameters * np.log(len(points)) - 2 * mixture.two_gaussians(points)[1]
    gain = two_gaussians(points, steps=5000, tolerance=1e-10).gain
    assert gain == pytest.approx((one - two) / len(points), abs=1e-5)


def test_the_gain_tells_a_tight_group_from_chance():
    rng = np.random.default_rng(1)
    chance = [two_gaussians(rng.normal(size=(40, 2))).gain for _ in range(20)]
    tight = rng.normal(size=(40, 2))
    tight[:10] = 4 + 1e-3 * tight[:10]
    assert np.median(chance) < 0
    assert max(chance) < 1 < 4 < two_gaussians(tight).gain


@given(st.integers(-30, 30), st.floats(-3, 3))
def test_the_gain_does_not_hang_on_scale_or_place(power, shift):
    points = blobs(3)
    moved = two_gaussians((points + shift) * 10.0**power)
    assert moved.gain == pytest.approx(two_gaussians(points).gain, rel=1e-5)


@pytest.mark.parametrize("points", [np.full((5, 2), 3.0), np.zeros((1, 2))])
def test_without_two_clusters_there_is_no_gain(points):
    assert two_gaussians(points).gain == 0
    assert two_gaussians_each(np.stack([points, points]))[1].labels.tolist() == [0] * len(points)
