import pytest

import skymask as sm
from skymask.tables.cell import Cell, identity
from skymask.tables.plan import Estimate, estimate, missing, rounds_left, tasks_of
from skymask.tables.record import Record
from skymask.tables.work import Places
from tests.tables.small import experiment, made_up

FEDAVG = Cell("a", "FedAvg", experiment())
SKYMASK = Cell("a", "SkyMask", experiment(attack=sm.MinSum(), defence=sm.SkyMask()))
SHARED = Cell("b", "FedAvg", experiment())
KRUM = Cell("b", "Krum", experiment(attack=sm.MinSum(), defence=sm.Krum(), rounds=9))
CELLS = [FEDAVG, SKYMASK, SHARED, KRUM]


def begin(places: Places, key: str, rounds: int) -> None:
    folder = places.run(key).path
    folder.mkdir(parents=True)
    (folder / "rounds.jsonl").write_text("{}\n" * rounds)


def test_tasks_go_seed_after_seed_and_a_shared_cell_is_there_once():
    labels = [task.label for task in tasks_of(CELLS, (1, 2))]
    assert labels == [
        f"{cell.row}, {cell.column}, seed {seed}"
        for seed in (1, 2)
        for cell in (FEDAVG, SKYMASK, KRUM)
    ]


def test_what_is_nearest_to_its_end_is_first_and_what_is_done_is_not_there(tmp_path):
    places = Places(tmp_path)
    tasks = tasks_of(CELLS, (1, 2))
    done = made_up(FEDAVG.seeded(1), 0.8)
    begin(places, identity(KRUM.seeded(2)), 7)
    begin(places, identity(SKYMASK.seeded(2)), 1)
    left = missing(tasks, {identity(FEDAVG.seeded(1)): done}, places, "another device")
    assert [task.label for task in left] == [
        "b, Krum, seed 2",
        "a, SkyMask, seed 2",
        "a, SkyMask, seed 1",
        "b, Krum, seed 1",
        "a, FedAvg, seed 2",
    ]
    assert [rounds_left(task, places) for task in left] == [2, 3, 4, 9, 4]


def test_the_longest_are_first_within_a_seed_and_a_data_set_and_the_unknown_before_them(tmp_path):
    other = Cell("c", "FedAvg", experiment(data="synthetic"))
    tasks = tasks_of([FEDAVG, SKYMASK, other, KRUM], (1, 2))
    rounds = ([0] * 3, [0] * 3)
    known = {
        str(i): made_up(cell.seeded(7), 0.8, rounds, seconds=seconds)
        for i, (cell, seconds) in enumerate([(FEDAVG, 30), (SKYMASK, 60), (other, 900)])
    }
    left = missing(tasks, known, Places(tmp_path), "1x GPU")
    assert [task.label for task in left] == [
        f"{cell.row}, {cell.column}, seed {seed}"
        for seed in (1, 2)
        for cell in (KRUM, SKYMASK, FEDAVG, other)
    ]


def test_the_estimate_is_of_cells_alike_on_the_same_device(tmp_path):
    places = Places(tmp_path)
    tasks = tasks_of([SKYMASK, KRUM], (1,))
    took = {"seconds": 12.0, "jobs": 2}
    rounds = ([0] * 3, [0] * 3)  # so that a round takes 2 s of the device
    like = made_up(SKYMASK.seeded(7), 0.8, rounds, **took)
    assert estimate(tasks, [like], "1x GPU", places) == Estimate(8.0, 1)
    assert estimate(tasks, [like], "another", places) == Estimate(0.0, 2)
    # Another attack on the same rule will do; the attack's own record counts for more.
    other = made_up(experiment(attack=sm.IPM(), defence=sm.SkyMask()), 0.8, rounds, seconds=60)
    assert estimate(tasks, [other], "1x GPU", places) == Estimate(40.0, 1)
    assert estimate(tasks, [other, like], "1x GPU", places) == Estimate(8.0, 1)
    begin(places, tasks[0].key, 3)
    assert estimate(tasks, [like], "1x GPU", places) == Estimate(2.0, 1)


def test_half_precision_is_another_kind_and_records_that_do_not_say_are_of_single(tmp_path):
    places = Places(tmp_path)
    tasks = tasks_of([SKYMASK], (1,))
    rounds = ([0] * 3, [0] * 3)
    like = made_up(SKYMASK.seeded(7), 0.8, rounds, seconds=12.0)
    older = dict(like.told["experiment"])
    older["local"] = {k: v for k, v in older["local"].items() if k != "precision"}
    record = Record({**like.told, "experiment": older})
    assert estimate(tasks, [record], "1x GPU", places).unknown == 0
    older["local"] = {**older["local"], "precision": "bfloat16"}
    assert estimate(tasks, [record], "1x GPU", places).unknown == 1


@pytest.mark.parametrize("attack", [sm.Adaptive(), sm.WhiteBox()])
def test_attacks_that_call_a_defence_are_like_none_but_themselves(tmp_path, attack):
    adapts = Cell("a", "c", experiment(attack=attack, defence=sm.SkyMask()))
    tasks, places = tasks_of([adapts], (1,)), Places(tmp_path)
    plain = made_up(SKYMASK.seeded(1), 0.8)
    assert estimate(tasks, [plain], "1x GPU", places).unknown == 1
    own = made_up(adapts.seeded(2), 0.8)
    assert estimate(tasks, [own], "1x GPU", places) == Estimate(4 * 5.0, 0)
    assert estimate(tasks_of([SKYMASK], (1,)), [own], "1x GPU", places).unknown == 1
