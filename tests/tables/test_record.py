import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skymask as sm
from skymask.records import RunFolder
from skymask.tables.cell import identity
from skymask.tables.record import Record, compact, read_records, runs, unrolled
from tests.tables.small import experiment


@given(st.lists(st.integers(0, 3), max_size=60))
def test_runs_are_read_back(values):
    assert unrolled(json.loads(json.dumps(runs(values)))) == values


def test_equal_counts_are_short():
    assert runs([0] * 2500) == [[0, 2500]]
    assert runs([1, 2, 2, 0, 0, 0]) == [1, 2, 2, [0, 3]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run with rejections, with clients that change from round to round, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    made = experiment(
        attack=sm.Scaling(), defence=sm.Krum(f=0.1), participation=0.5, rounds=7, seed=3
    )
    return sm.simulate(made, "cpu", folder, command="skymask x"), RunFolder(folder)


def test_a_record_has_the_runs_own_rates_and_numbers(ran):
    result, folder = ran
    told = compact(folder.manifest, result.summary, result.rounds, jobs=2, warnings=["w"])
    record = Record(json.loads(json.dumps(told)))
    assert record.fpr == [r["fpr"] for r in result.rounds]
    assert record.fnr == [r["fnr"] for r in result.rounds]
    assert len({r["malicious"] for r in result.rounds}) > 1
    assert record.summary["accuracy_last5"] == result.summary["accuracy_last5"]
    evaluated = [r for r in result.rounds if "accuracy" in r]
    assert len(evaluated) == 4
    for name in ("accuracy", "attack_success"):
        assert record.told["evaluations"][name] == [r[name] for r in evaluated]
    assert (record.seed, record.told["jobs"], record.told["command"]) == (3, 2, "skymask x")
    assert record.told["warnings"] == ["w"]
    assert record.told["seconds"] == pytest.approx(sum(r["seconds"] for r in result.rounds))
    assert record.told["stages"]["train"] == sum(r["stages"]["train"] for r in result.rounds)
    assert told["cell"] == identity(folder.manifest["experiment"])


def test_records_are_found_by_what_is_in_them(tmp_path, ran):
    result, folder = ran
    told = compact(folder.manifest, result.summary, result.rounds, jobs=1)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "old-name.json").write_text(json.dumps(told))
    assert list(read_records(tmp_path)) == [told["cell"]]
    assert read_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"experiment": {"data": "digits"}}'])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "bad.json").write_text(text)
    with pytest.raises(sm.InputError, match=r"bad\.json"):
        read_records(tmp_path)


@pytest.mark.parametrize("packed", [[[1, 10**12]], ["1"], [[1, 2, 3]], [[1, -1]], [float("inf")]])
def test_counts_that_are_none_are_refused(packed):
    with pytest.raises(ValueError, match=r"count|unpack"):
        unrolled(packed)
