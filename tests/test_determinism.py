"""The same seed gives the same model, however the run is made."""

from dataclasses import replace

import pytest
import torch

from benchmarks.reliability import determinism
from skymask import compiled, masks, preparation
from skymask.simulation import simulate

EXPERIMENTS = dict(determinism.experiments(1, thorough=False))
TOLERANCE = 1e-3
"""On a GPU sums are made in another order each time; of a model's parameters after six rounds."""


@pytest.fixture(scope="module")
def usual():
    found = {}

    def of(name):
        if name not in found:
            found[name] = determinism.again(EXPERIMENTS[name])
        return found[name]

    return of


@pytest.mark.parametrize("way", [w for w in determinism.WAYS if w != "in another process"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs_are_the_same_bit_for_bit(name, way, usual):
    params, verdicts = determinism.WAYS[way](EXPERIMENTS[name])
    assert params.equal(usual(name)[0])
    assert verdicts == usual(name)[1]


@pytest.mark.long
def test_a_run_in_another_process_is_the_same(usual):
    name = "digits, skymask, label-flip"
    params, verdicts = determinism.elsewhere(EXPERIMENTS[name])
    assert params.equal(usual(name)[0])
    assert verdicts == usual(name)[1]


def test_another_seed_gives_another_model():
    one, other = (dict(determinism.experiments(s, thorough=False)) for s in (1, 2))
    name = "digits, fedavg, label-flip"
    assert not determinism.again(one[name])[0].equal(determinism.again(other[name])[0])


def test_five_clients_at_a_time_are_five(monkeypatch):
    chunks = []

    def seen(*args, **settings):
        trainer = determinism._in_fives(*args, **settings)
        chunks.append(trainer.chunk)
        return trainer

    monkeypatch.setattr(preparation, "plan", seen)
    simulate(EXPERIMENTS["digits, fedavg, label-flip"], "cpu")
    assert chunks == [5]


def test_small_blocks_are_small(monkeypatch):
    experiment, widths = replace(EXPERIMENTS["digits, skymask, label-flip"], rounds=1), []

    class Seen(masks.PlainState):
        def __init__(self, *args):
            super().__init__(*args)
            widths.append(self.width)

    monkeypatch.setattr(masks, "PlainState", Seen)
    monkeypatch.setattr(compiled, "_numba", lambda: None)
    determinism.in_blocks(experiment)
    assert set(widths) == {1000 // 13}  # 12 clients and the root model


def test_small_compiled_blocks_are_small(monkeypatch):
    pytest.importorskip("numba", reason="needs the extra fast")
    step, widths = compiled.machine_code(compiled._advance, compiled._moved), set()

    def seen(*arguments):
        widths.add(arguments[9])
        return step(*arguments)

    monkeypatch.setattr(compiled, "machine_code", lambda *functions: seen)
    determinism.in_blocks(replace(EXPERIMENTS["digits, skymask, label-flip"], rounds=1))
    assert widths == {50}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_gpu_comes_within_the_tolerance(name, usual):
    one, other = (simulate(EXPERIMENTS[name], "cuda").params.cpu() for _ in range(2))
    scale = usual(name)[0].abs().max()
    assert (one - other).abs().max() <= TOLERANCE * scale
    assert (one - usual(name)[0]).abs().max() <= TOLERANCE * scale
