"""Every parser of foreign bytes takes them or raises `InputError`, and nothing else."""

from pathlib import Path

import pytest

from benchmarks.reliability import fuzz
from benchmarks.reliability.parsers import TARGETS, Target
from skymask.errors import InputError

MUTATIONS = 200


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_bytes_are_taken_or_refused(target, tmp_path):
    tally = fuzz.Tally(target, tmp_path)
    for data in fuzz.inputs(target, 1, MUTATIONS):
        tally.feed(data)
    assert tally.crashes == {}
    assert tally.counts["slow"] == 0
    assert tally.counts["accepted"] >= 1  # what it is made of is valid
    assert tally.counts["InputError"] >= MUTATIONS / 4


def test_a_crash_is_counted_and_named(tmp_path, monkeypatch):
    """The control: a parser that lets an error through."""

    def parser(data: bytes, folder: Path) -> None:
        if data == b"bad":
            raise InputError("it is bad")
        data.decode("ascii")

    monkeypatch.setitem(TARGETS, "broken", Target(parser, lambda: [b"fine"]))
    tally = fuzz.Tally("broken", tmp_path)
    for data in (b"fine", b"bad", b"\xff", b"\xfe"):
        tally.feed(data)
    assert tally.counts == {"inputs": 4, "accepted": 1, "InputError": 1, "crashes": 2, "slow": 0}
    assert list(tally.crashes.values()) == [2]
    assert next(iter(tally.crashes)).startswith("UnicodeDecodeError")


def test_the_inputs_are_those_of_their_seed():
    one, again, other = (list(fuzz.inputs("IDX", seed, 50)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
