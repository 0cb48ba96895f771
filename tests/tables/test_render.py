"""A small table of records made by hand, whole and with gaps."""

import dataclasses
import json

import skymask as sm
from skymask.tables.cell import Cell, Entry, Table, Target, View
from skymask.tables.record import Record
from skymask.tables.render import render
from tests.tables.small import experiment, made_up

ALONE = experiment(honest_only=True)
OURS = experiment(attack=sm.MinSum(), defence=sm.SkyMask())
SCALING = experiment(attack=sm.Scaling(), defence=sm.SkyMask())
CLEAN = experiment(defence=sm.SkyMask())

HELD = Target(within=0.02, fpr=0.05, fnr=0.01, inverted=0, worst=0.3)
CELLS = (
    Cell("digits none", "SkyMask", CLEAN, ALONE),
    Cell("digits min-sum", "honest alone", ALONE),
    Cell(
        "digits min-sum",
        "SkyMask",
        OURS,
        ALONE,
        {"accuracy": 0.89, "fpr": 0.0027},
        since=1,
        target=HELD,
    ),
    Cell("digits scaling", "SkyMask", SCALING, ALONE, target=Target(above="honest alone")),
    Cell("digits scaling", "honest alone", ALONE),
    Cell("har none", "SkyMask", experiment(data="har")),
)
ENTRIES = tuple(
    Entry(heading, column, measure)
    for heading, column, measure in (
        ("honest alone", "honest alone", "accuracy"),
        ("SkyMask", "SkyMask", "accuracy"),
        ("difference", "SkyMask", "difference"),
        ("FPR", "SkyMask", "fpr"),
        ("FNR", "SkyMask", "fnr_since"),
        ("inverted", "SkyMask", "inverted"),
        ("caught", "SkyMask", "caught"),
        ("target", "SkyMask", "target"),
    )
)
VIEWS = (
    View("digits", ENTRIES, "digits*"),
    View("success", (Entry("SkyMask", "SkyMask", "attack_success"),), "*scaling"),
    View("har", ENTRIES, "har*"),
)
TABLE = Table("x", "Cases", CELLS, VIEWS)


def seeded(which: sm.Experiment, seed: int) -> sm.Experiment:
    return dataclasses.replace(which, seed=seed)


def records(*made: Record) -> dict[str, Record]:
    return {str(place): record for place, record in enumerate(made)}


RECORDS = records(
    made_up(seeded(ALONE, 2), 0.81),
    made_up(seeded(ALONE, 1), 0.79),
    made_up(seeded(OURS, 1), 0.77, ([1, 0], [4, 0])),
    made_up(seeded(OURS, 2), 0.78, ([6, 0], [3, 0]), fallback=True),
    made_up(seeded(SCALING, 2), 0.80, ([0], [4]), success=0.105, device="cpu, 2 cores", jobs=1),
)

WHOLE = """\
# Cases

## digits

|  | honest alone | SkyMask | difference | FPR | FNR | inverted | caught | target |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| digits min-sum | 80.0 ± 1.4 % | 77.5 ± 0.7 % (89 %) | -2.5 ± 1.1 | 17.50 ± 17.68 % (0.27 %) \
| 0.00 ± 0.00 % | 1 | - | points lost 2.5 > 2, FPR 17.50 % > 5 %, worst FPR 60.00 % > 30 %, \
inverted 1 > 0 |
| digits scaling | 80.0 ± 1.4 % | 80.0 % [1/2] | +0.0 [1/2] | 0.00 % [1/2] | - | 0 [1/2] | - | met |

## success

|  | SkyMask |
| --- | --- |
| digits scaling | 10.5 % [1/2] |

5 of 10 cells are missing, each seed counted. 2 of 4 rows have no record of their own and are \
not shown.

- Records: 5, 7 rounds.
- Device: 1x GPU (4); cpu, 2 cores (1)
- Seconds: 50 in all rounds; 30 of a device, where a cell that shares it with others counts by \
its share.
- Versions: python 3.11
- Source: abc
- Command: `skymask table x`
"""


def test_a_table_with_gaps_is_rendered_as_a_person_reads_it():
    assert render(TABLE, RECORDS, seeds=2).markdown == WHOLE


def test_a_command_with_many_rows_is_shortened():
    patterns = "".join(f" --rows 'digits {i}*'" for i in range(9))
    record = made_up(seeded(ALONE, 1), 0.8, command=f"skymask table x{patterns} --seeds 3")
    shown = render(TABLE, records(record), seeds=2)
    begin = " ".join(f"--rows 'digits {i}*'" for i in range(4))
    assert f"`skymask table x {begin} --seeds 3 (and 5 more --rows)`" in shown.markdown
    few = made_up(seeded(ALONE, 1), 0.8, command="skymask table x --rows har --rows 'a b' --json")
    assert (
        "`skymask table x --rows har --rows 'a b' --json`"
        in render(TABLE, records(few), seeds=2).markdown
    )


def test_its_data_hold_the_same_numbers():
    made = json.loads(render(TABLE, RECORDS, seeds=2).json)
    assert made["lacks"] == {
        "cells": 10,
        "missing": 5,
        "rows": 4,
        "empty_rows": ["digits none", "har none"],
    }
    ours = next(c for c in made["cells"] if c["row"] == "digits min-sum" and "target" in c)
    assert ours["seeds"] == [1, 2]
    assert round(ours["accuracy"]["value"], 3) == 0.775
    assert round(ours["difference"]["standard_error"], 4) == 0.0112
    assert ours["published"] == {"accuracy": 0.89, "fpr": 0.0027}
    assert ours["target"].startswith("points lost 2.5")
    assert made["conditions"]["device_seconds"] == 30
    assert made["conditions"]["devices"] == {"1x GPU": 4, "cpu, 2 cores": 1}


def test_without_a_record_there_are_no_rows():
    empty = render(TABLE, {}, seeds=3)
    assert "|" not in empty.markdown
    assert "15 of 15 cells are missing" in empty.markdown
    assert "No record yet" in empty.markdown


def test_a_record_of_another_experiment_is_not_used():
    other = made_up(dataclasses.replace(OURS, rounds=5), 0.9)
    assert render(TABLE, records(other), 1).markdown == render(TABLE, {}, 1).markdown


def test_a_cell_beside_others_that_has_no_record_is_missing():
    only_ours = records(made_up(OURS, 0.8), made_up(CLEAN, 0.7))
    text = render(TABLE, only_ours, 1).markdown
    assert "| digits min-sum | 80.0 % (89 %) | missing |" in text


def test_a_row_with_nothing_but_a_shared_yardstick_is_not_shown():
    shared = records(made_up(ALONE, 0.8))
    assert "|" not in render(TABLE, shared, 1).markdown
    assert "5 of 5 cells" not in render(TABLE, shared, 1).markdown
    ours = records(made_up(ALONE, 0.8), made_up(OURS, 0.79))
    lines = render(TABLE, ours, 1).markdown.splitlines()
    assert [line[:16] for line in lines if line.startswith("| digits")] == ["| digits min-sum"]


def test_a_backdoor_that_succeeds_misses_its_target():
    target = Target(within=0.02, success=0.25)
    table = dataclasses.replace(
        TABLE, cells=tuple(dataclasses.replace(cell, target=target) for cell in CELLS)
    )
    held = records(made_up(ALONE, 0.8), made_up(SCALING, 0.8, success=0.1))
    taken = records(made_up(ALONE, 0.8), made_up(SCALING, 0.8, success=0.995))
    assert "| met |" in render(table, held, 1).markdown
    assert "| attack success 99.5 % > 25 % |" in render(table, taken, 1).markdown


def test_what_has_never_been_caught_and_what_fell_back_is_said():
    starts = dataclasses.replace(CELLS[2], starts=0, target=Target(caught=5))
    table = dataclasses.replace(TABLE, cells=(starts,))
    record = made_up(OURS, 0.8, ([0], [4]), warnings=["odd"])
    record.told["summary"]["fallbacks"] = 3
    text = render(table, records(record), 1).markdown
    assert "| never | caught never > 5 |" in text
    assert "- Records with rounds in which nobody was accepted: 1." in text
    assert "- Warning (1): odd" in text


def test_a_table_that_is_cut_says_so():
    assert "Cut to 2 rounds a cell" in render(TABLE.cut(2), {}, 1).markdown
