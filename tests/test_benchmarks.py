"""Every benchmark can be started: what it takes from the library is there."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OTHERS = {"rivals", "engine_rivals", "hostile_rivals"}
"""Scripts that run in other libraries' environments."""
NAMES = sorted(
    ".".join(path.relative_to(BENCHMARKS.parent).with_suffix("").parts)
    for path in BENCHMARKS.rglob("*.py")
    if path.stem not in OTHERS and not path.stem.startswith("__")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name):
    if "flower" in name or "federation" in name:
        pytest.importorskip("flwr", reason="flwr is not installed")
    if name.endswith("steered"):
        pytest.importorskip("atheris", reason="atheris is not installed")
    assert importlib.import_module(name).__doc__  # it says what it measures


def test_the_cost_model_finds_the_weights_that_made_the_numbers():
    cost = importlib.import_module("benchmarks.cost")
    sizes = [cost.Size(n, d, s) for n in (10, 50, 100) for d in (1000, 50_000) for s in (5, 20)]
    weights = [1e-3, 2e-9, 3e-9, 4e-9, 5e-7]
    found = [
        cost.Measured(size, sum(map(float.__mul__, weights, map(float, cost.terms(size)))), None, 0)
        for size in sizes
    ]
    fitted, error = cost.fitted(found)
    assert error < 1e-6
    assert list(fitted) == pytest.approx(weights, rel=1e-4)


def test_the_engines_are_given_the_work_that_simulate_does(tmp_path):
    engines = importlib.import_module("benchmarks.engines")
    work = engines.experiment(features=4, classes=3, clients=5)
    weights = engines.put(work, tmp_path, {})
    outcome = engines.own(work, rounds=4)
    data = {name: torch.from_numpy(part) for name, part in np.load(tmp_path / "data.npz").items()}
    assert torch.cat([data["weight"].flatten(), data["bias"]]).equal(weights)
    module = work.model()
    for _ in range(4):  # with one step each, the mean of the clients' updates is one step on all
        loss = F.cross_entropy(module(data["inputs"].flatten(0, 1)), data["labels"].flatten())
        gradients = torch.autograd.grad(loss, [*module.parameters()])
        with torch.no_grad():
            for part, gradient in zip(module.parameters(), gradients, strict=True):
                part -= engines.LOCAL.lr * gradient
    expected = torch.cat([part.detach().flatten() for part in module.parameters()])
    assert len(outcome.ends) == 4
    torch.testing.assert_close(outcome.weights, expected)
    assert not torch.allclose(outcome.weights, weights, atol=1e-3)
