import dataclasses
import json

import pytest
import torch

import skymask as sm
from skymask.records import read_object
from skymask.tables.cell import Cell
from skymask.tables.closeup import Closeup
from skymask.tables.record import read_records
from skymask.tables.work import Places, Task, run_cell
from tests.tables.small import experiment, without_times

MADE = experiment(attack=sm.FangTrim(), defence=sm.SkyMask(), rounds=3, model="mlp")
LOOK = Task.of(Cell("row", "column", MADE, closeup=True), 1)
PLAIN = Task.of(Cell("row", "column", MADE), 1)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The record of a run that was looked at."""
    folder = tmp_path_factory.mktemp("looked")
    run_cell(LOOK, folder, "cpu")
    return read_object(Places(folder).record(LOOK.key))


def test_a_closeup_has_a_point_for_each_client_and_the_server(told):
    seen = Closeup.read(told["closeup"])
    assert seen.round == 3
    assert sum(seen.malicious) == 3
    assert len(seen.updates) == len(seen.masks) == 12 + 1
    assert list(seen.ones) == ["1", "3"]
    for kinds in seen.ones.values():
        for steps in kinds.values():
            assert steps[0] == (1.0, 1.0, 1.0)
            assert len(steps) == 21
            assert all(0 <= low <= mean <= high <= 1 for mean, low, high in steps)


def test_to_look_changes_no_number_of_the_run(told, tmp_path):
    plain = without_times(run_cell(PLAIN, tmp_path, "cpu"))
    assert without_times({k: v for k, v in told.items() if k != "closeup"}) == plain
    assert LOOK.key != PLAIN.key


def test_masks_set_apart_who_differs_in_sign():
    """Six clients descend, two climb: the first component of the masks tells them apart."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 2)
    root = sm.Batch(torch.randn(32, 8), torch.arange(32) % 2)
    loss = torch.nn.functional.cross_entropy
    round = sm.server_round(model, loss, root, sm.LocalSGD(1, 32, 0.5))
    updates = round.server_update + 0.001 * torch.randn(8, len(round.params))
    updates[:2] = -3 * updates[:2]
    bad = torch.arange(8) < 2
    seen = Closeup.of(updates, round, bad)
    first = [x for x, _ in seen.masks[:-1]]
    assert max(first[2:]) < min(first[:2]) or min(first[2:]) > max(first[:2])
    assert seen.malicious == bad.tolist()
    assert Closeup.read(json.loads(json.dumps(dataclasses.asdict(seen)))) == seen


def test_one_that_was_killed_after_its_last_round_begins_again(tmp_path, told):
    places = Places(tmp_path)
    folder = places.run(LOOK.key).path
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "rounds.jsonl").write_text("{}\n" * 3)
    again = run_cell(LOOK, tmp_path, "cpu")
    assert Closeup.read(again["closeup"]) == Closeup.read(told["closeup"])
    assert not folder.exists()


def test_a_damaged_closeup_is_named(tmp_path, told):
    (tmp_path / "cells").mkdir()
    broken = {**told, "closeup": {**told["closeup"], "masks": [[0, 0]]}}
    (tmp_path / "cells" / "x.json").write_text(json.dumps(broken))
    with pytest.raises(sm.InputError, match="not a point for each client"):
        read_records(tmp_path)
