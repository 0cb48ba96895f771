"""What a federation goes on from."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Result,
)

from skymask.errors import InputError
from skymask.flower.checkpoint import (
    Federation,
    changed,
    load_federation,
    remembered,
    remind,
    save_federation,
)
from skymask.flower.policy import Standing

CPU = torch.device("cpu")
ARRAYS = ArrayRecord({"w": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)})


def federation(**changes) -> Federation:
    result = Result(ARRAYS)
    result.train_metrics_clientapp[3] = MetricRecord({"loss": 0.5, "per-class": [1.0, 2.0]})
    fields = {
        "rounds": 3,
        "arrays": ARRAYS,
        "memory": {"slow": {"values": torch.ones(2), "names": ["a", None, 1.5]}},
        "standings": {2**64 - 1: Standing(3, -1), 5: Standing(1, 0)},
        "inner": {"m_t": {"dict": {"w": {"ndarray": torch.zeros(2, dtype=torch.float64)}}}},
        "result": result,
        "about": {"inner": "FedAdam"},
    }
    return Federation(**fields | changes)


def test_what_was_saved_is_loaded(tmp_path):
    save_federation(tmp_path, federation())
    found = load_federation(tmp_path, CPU)
    assert found.rounds == 3
    assert found.standings == {2**64 - 1: Standing(3, -1), 5: Standing(1, 0)}
    assert found.memory["slow"]["names"] == ["a", None, 1.5]
    assert found.memory["slow"]["values"].equal(torch.ones(2))
    assert found.result.train_metrics_clientapp[3]["per-class"] == [1.0, 2.0]
    for key, array in ARRAYS.items():
        assert np.array_equal(found.arrays[key].numpy(), array.numpy())
        assert found.arrays[key].dtype == array.dtype


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_federation(tmp_path / "none", CPU) is None


@pytest.mark.parametrize("content", [b"", b"torn", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "federation.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_federation(tmp_path, CPU)


def test_what_a_server_optimiser_learnt_is_kept_and_not_how_it_was_set_up(tmp_path):
    inner = FedAdam(eta=0.1)
    start = remembered(inner)[0]
    inner.m_t = {"w": np.ones((2, 3))}
    inner.current_arrays = {"w": np.zeros((2, 3))}
    save_federation(tmp_path, federation(inner=changed(start, remembered(inner)[0])))
    other = FedAdam(eta=0.5)
    remind(other, load_federation(tmp_path, CPU).inner)
    assert other.eta == 0.5
    assert np.array_equal(other.m_t["w"], np.ones((2, 3)))
    assert other.v_t is None


def test_a_strategy_inside_another_one_is_kept_too(tmp_path):
    def made() -> DifferentialPrivacyServerSideFixedClipping:
        return DifferentialPrivacyServerSideFixedClipping(FedAvgM(), 0.0, 1.0, 8)

    outer = made()
    start = remembered(outer)[0]
    outer.strategy.momentum_vector = [np.ones(3)]
    outer.current_arrays = ARRAYS
    save_federation(tmp_path, federation(inner=changed(start, remembered(outer)[0])))
    other = made()
    remind(other, load_federation(tmp_path, CPU).inner)
    assert np.array_equal(other.strategy.momentum_vector[0], np.ones(3))
    assert list(other.current_arrays) == ["w", "steps"]


def test_what_cannot_be_kept_is_named():
    inner = FedAvg()
    inner.accountant = object()
    assert remembered(inner)[1] == ["accountant"]


@pytest.mark.parametrize(
    "name", ["aggregate_train", "__dict__", "aggregate_train.__globals__", "nobody.x"]
)
def test_a_checkpoint_sets_what_a_strategy_remembers_and_nothing_else(name):
    with pytest.raises(InputError, match="does not keep"):
        remind(FedAdam(), {name: 1})
