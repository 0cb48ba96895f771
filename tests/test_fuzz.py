"""Every parser of foreign bytes takes them or raises `InputError`, and nothing else."""

import base64
import subprocess
import sys
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
    assert list(tally.examples.values()) == [base64.b64encode(b"\xff").decode()]


def test_the_inputs_are_those_of_their_seed():
    one, again, other = (list(fuzz.inputs("IDX", seed, 50)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


ROOT = Path(__file__).parents[1]
HANGS = """
import sys, time
from benchmarks.reliability import fuzz, parsers
parsers.TARGETS["hangs"] = parsers.Target(lambda data, folder: time.sleep(99), lambda: [b"x"])
fuzz.NEVER = 1
sys.argv = ["fuzz", "hangs", "1", "1"]
fuzz.main()
"""


def test_an_input_that_never_ends_ends_its_process():
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, check=False)
    assert done.returncode == -14  # by the alarm


def test_a_process_that_died_is_a_crash_of_its_target():
    told = fuzz._tried("fuzz", "no such target", 1, 1)
    assert told["crashes"] == 1
    assert list(told["which"]) == ["the process ended with 1"]


def test_the_table_says_plainly_that_atheris_was_not_there(monkeypatch):
    monkeypatch.setattr(fuzz, "find_spec", lambda name: None)
    told = {"inputs": 3, "accepted": 1, "InputError": 2, "which": {}, "grown": 0.0}
    assert fuzz._row("IDX", told, None)["steered inputs"] == "none: atheris is not installed"
    both = fuzz._row("IDX", told, {**told, "crashes": 1, "which": {"KeyError in x:y": 2}})
    assert (both["steered inputs"], both["accepted"], both["crashes"]) == (3, 2, 1)
    assert both["which"] == "KeyError in x:y"


def test_nothing_imports_skymask_before_atheris_can_see_it():
    """What is imported too early is not instrumented, and nothing would say so."""
    check = "import sys, benchmarks.reliability; sys.exit('skymask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


@pytest.mark.long
def test_coverage_steers_inputs_into_the_parser():
    pytest.importorskip("atheris")
    told = fuzz._tried("steered", "IDX", 1, 2)
    assert told["inputs"] > 1_000
    assert told["accepted"] > 0
    assert told.get("crashes", 0) == 0
