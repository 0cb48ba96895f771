"""Processes killed at random moments, and folders that cannot be written to."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import crashes

RUN = [
    *(sys.executable, "-m", "skymask.cli", "run", "synthetic", "--rounds", "3"),
    *("--defence", "skymask", "--device", "cpu"),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_ten_kills_lose_nothing():
    for row in crashes.measure(1, thorough=False):
        assert row["finished afterwards"] == row["begun"]
        assert row["kills"] in (8, 2)
        assert row["torn files read"] == 0
        assert row["divergent resumes"] in (0, "-")
        assert row["lost rounds"] in (0, "-")


def refused(out: Path, limit) -> str:
    """What `skymask run` says where it cannot write; it may say one sentence only."""
    done = subprocess.run([*RUN, "--out", out], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    sentence = " ".join(done.stderr.split())
    assert "cannot write to" in sentence
    assert "what was there is kept" in sentence
    assert "Traceback" not in sentence
    return sentence


def test_a_full_disk_is_one_sentence_and_what_was_there_is_kept(tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the middle of one."""
    out = tmp_path / "run"
    full = 4096
    said = refused(out, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (full, full)))
    assert "File too large" in said
    assert (out / "manifest.json").exists()
    assert not (out / "checkpoint.safetensors").exists()
    assert not list(out.glob("*.part"))
    resumed = subprocess.run([*RUN[:4], "--resume", out], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_only_be_read_is_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    try:
        assert "Permission denied" in refused(tmp_path / "run", None)
    finally:
        tmp_path.chmod(0o755)
