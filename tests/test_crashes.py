"""Processes killed at random moments, disks that are full and folders that may only be read."""

import ctypes
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.reliability import crashes
from benchmarks.reliability.killing import forked
from skymask import InputError
from skymask.cli import main
from skymask.report import write_report
from skymask.tables.record import read_records
from tests.report.folders import make_run

RUN = [*("run", "synthetic", "--rounds", "3"), *("--defence", "skymask", "--device", "cpu")]
TABLE = [
    *("table", "detection", "--rows", "digits q=0.5 min-sum", "--columns", "SkyMask"),
    *("--rounds", "5", "--seeds", "1", "--jobs", "1", "--device", "cpu"),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("what", "kills"),
    [("runs", 8), ("reports being written", 2), pytest.param("sweeps", 4, marks=pytest.mark.long)],
)
def test_kills_lose_nothing(what, kills):
    row = crashes.killed(what, kills, 1)
    assert row["kills"] == kills
    assert row["finished afterwards"] == row["begun"] > 0
    assert row["torn files read"] == 0
    assert row["divergent resumes"] in (0, "-")
    assert row["lost rounds"] in (0, "-")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_what_a_process_started_dies_with_it(tmp_path):
    told = tmp_path / "pid"

    def work():
        told.write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)

    def moment():
        while not (told.exists() and told.read_text()):
            time.sleep(0.01)

    assert forked(work, moment)
    stat = Path("/proc") / told.read_text() / "stat"
    assert not stat.exists() or ") Z " in stat.read_text()
    assert not forked(lambda: None, None)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file in a folder, hidden ones too."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_sentence(said: str, why: str) -> None:
    sentence = " ".join(said.split())
    assert sentence.count("cannot write to") == 1
    assert f"{why}; what was there is kept" in sentence
    assert "Traceback" not in sentence


@contextmanager
def full_disk():
    """A limit on the size of files stands for the disk: writing fails in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def called(arguments: list[object], capsys, monkeypatch) -> tuple[int, str]:
    """Exit status and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["skymask", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, capsys.readouterr().err


def test_a_run_on_a_full_disk_is_one_sentence_and_goes_on_later(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with full_disk():
        status, said = called([*RUN, "--out", out], capsys, monkeypatch)
    assert status == 2
    one_sentence(said, "File too large")
    assert (out / "manifest.json").exists()
    assert not (out / "checkpoint.safetensors").exists()
    assert not list(out.glob("*.part"))
    status, said = called(["run", "--resume", out], capsys, monkeypatch)
    assert status == 0, said
    assert (out / "summary.json").exists()


def test_a_report_on_a_full_disk_is_one_sentence_and_the_old_one_stays(tmp_path):
    run = make_run(tmp_path / "run")
    write_report([run])
    before = contents(run)
    with full_disk(), pytest.raises(InputError) as refused:
        write_report([run])
    one_sentence(str(refused.value), "File too large")
    assert contents(run) == before


@pytest.mark.long  # it starts two processes
def test_a_sweep_on_a_full_disk_says_so_of_the_cell_and_goes_on_later(
    tmp_path, capsys, monkeypatch
):
    with full_disk():
        status, said = called([*TABLE, "--out", tmp_path], capsys, monkeypatch)
    assert status != 0
    assert "Traceback" not in said
    told = " ".join(said.split())
    assert told.startswith(
        "failed: digits q=0.5 min-sum, SkyMask, seed 1: InputError: cannot write"
    )
    assert "File too large; what was there is kept" in told
    assert read_records(tmp_path) == {}
    assert not [path for path in contents(tmp_path) if path.suffix == ".part"]
    status, said = called([*TABLE, "--out", tmp_path], capsys, monkeypatch)
    assert status == 0, said
    assert len(read_records(tmp_path)) == 1
    assert contents(tmp_path / "failed") == {}


@contextmanager
def modes_obeyed():
    """Root, too, may not write where the mode of a folder forbids it."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of capabilities, of this thread
    held, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == libc.capget(header, fewer) == 0
    fewer[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE, among those in effect
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="root is held to modes by Linux alone")
@pytest.mark.parametrize("what", ["run", "report", "table"])
def test_a_folder_that_may_only_be_read_is_one_sentence(tmp_path, capsys, monkeypatch, what):
    place = make_run(tmp_path / "kept")
    write_report([place])
    arguments = {
        "run": [*RUN, "--out", place / "new"],
        "report": ["report", place],
        "table": [*TABLE, "--out", place],
    }[what]
    before = contents(place)
    place.chmod(0o555)
    try:
        with modes_obeyed():
            status, said = called(arguments, capsys, monkeypatch)
    finally:
        place.chmod(0o755)
    assert status == 2, said
    one_sentence(said, "Permission denied")
    assert contents(place) == before
