"""The compiled mask step against the plain one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from skymask import compiled
from skymask.compiled import CompiledState, compiles
from skymask.masks import MaskTraining, PlainState, kind_of_state
from skymask.randomness import generator

pytest.importorskip("numba", reason="needs the extra fast")


def far(some, other):
    """Relative distance of two tensors."""
    return float((some - other).norm() / other.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("n", "d"), [(1, 1), (2, 1), (16, 128), (17, 129), (101, 5000), (40, 9001)]
)
@pytest.mark.parametrize("with_server", [False, True])
def test_the_compiled_step_equals_the_plain_one(n, d, with_server):
    draw = generator("compiled", n, d)
    updates = torch.randn(n, d, generator=draw)
    own = torch.randn(d, generator=draw) if with_server else None
    quick, plain = CompiledState(updates, 0.4, own), PlainState(updates, 0.4, own)
    for step in range(6):
        slope = torch.randn(d, generator=draw) if step else torch.zeros(d)
        relative = step < 4
        squares = [state.square(slope) / plain.values.numel() for state in (quick, plain)]
        assert far(*squares) < 1e-4
        told = quick.advance(slope, squares[1], 1.5, relative).tolist()
        expected = plain.advance(slope, squares[1], 1.5, relative).tolist()
        assert told[0] == expected[0]
        assert abs(told[1] - expected[1]) <= 1e-5 * n * d
        for name in ("values", "mean", "total"):
            assert far(getattr(quick, name), getattr(plain, name)) < 1e-5, name
        torch.testing.assert_close(quick.spread, plain.spread, rtol=1e-4, atol=1e-6)
    assert (quick.bits != plain.bits).float().mean() < 1e-5


def test_it_does_not_hang_on_the_number_of_threads():
    draw = generator("threads")
    updates, slope = torch.randn(60, 9000, generator=draw), torch.randn(9000, generator=draw)
    several, one = CompiledState(updates, 0.5), CompiledState(updates, 0.5)
    one.shares, one.threads = [(0, 9000)], None
    for _ in range(3):
        told = [s.advance(slope, torch.tensor(1.0), 1.0, True) for s in (several, one)]
        assert told[0].equal(told[1])
    for name in ("values", "sigmoids", "mean", "total", "spread"):
        assert getattr(several, name).equal(getattr(one, name)), name


@pytest.mark.parametrize("square", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_cannot_be_used_moves_nothing(square):
    state = CompiledState(torch.randn(3, 50, generator=generator("bad")), 0.5)
    usable, changed = state.advance(torch.ones(50), torch.tensor(square), 1.0, True).tolist()
    assert (usable, changed) == (0, 0)
    assert state.values.equal(torch.ones(3, 50))


def test_its_sigmoid_is_that_of_double_precision():
    values = np.linspace(-40, 40, 100_001).astype(np.float32)
    found = [compiled._moved(m, np.float32(0), np.float32(0), np.float32(0.5))[1] for m in values]
    expected = 1 / (1 + np.exp(-values.astype(np.float64)))
    assert np.abs(np.array(found) - expected).max() < 3e-7
    assert min(found) >= 0
    assert max(found) <= 1


def test_it_is_taken_for_single_precision_alone():
    single, double = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)
    assert (kind_of_state(single), kind_of_state(double)) == (CompiledState, PlainState)
    assert not compiles(double)


def test_without_numba_masks_are_trained_in_torch_operations(monkeypatch):
    draw = generator("without")
    updates, goal = torch.randn(9, 400, generator=draw), torch.randn(400, generator=draw)

    def trained():
        return MaskTraining(steps=6, tolerance=0)(updates, lambda mean: mean - goal)

    with_it = trained()
    monkeypatch.setattr(compiled, "_numba", lambda: None)
    assert kind_of_state(updates) is PlainState
    without = trained()
    assert 0 < with_it.bits.double().mean() < 1
    assert (with_it.bits != without.bits).double().mean() < 1e-3


def test_a_numba_that_cannot_be_imported_is_told_of_and_done_without(monkeypatch):
    def fails(name):
        raise ImportError(f"{name} needs another numpy")

    monkeypatch.setattr(compiled, "import_module", fails)
    compiled._numba.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without numba: numba needs another numpy"):
            assert not compiles(torch.ones(2, 3))
        assert kind_of_state(torch.ones(2, 3)) is PlainState  # told once
    finally:
        compiled._numba.cache_clear()


def test_it_is_compiled_where_nothing_may_be_written():
    code = (
        "import torch; from skymask.compiled import CompiledState;"
        "state = CompiledState(torch.randn(3, 5), 0.5);"
        "print(state.advance(torch.ones(5), torch.tensor(1.0), 1.0, True).tolist())"
    )
    # An empty list of places to keep machine code in is what numba finds then.
    nowhere = "from numba.core import caching; caching.CacheImpl._locator_classes = [];"
    done = subprocess.run(
        [sys.executable, "-c", nowhere + code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[1, 0]"
