"""Sweeps of small cells in real processes: killed, stopped, failing; the numbers stay the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import skymask as sm
from skymask.records import RunFolder, read_object
from skymask.tables.sweep import Event, _locked, sweep
from skymask.tables.work import Places, Task, run_cell
from tests.tables.small import LONG, TASKS, Dies, experiment, task, without_times

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The records of `TASKS`, each run in one piece in this process."""
    folder = tmp_path_factory.mktemp("whole")
    return {each.key: run_cell(each, folder, "cpu") for each in TASKS}


def records(out: Path, tasks: list[Task]) -> dict[str, dict]:
    return {each.key: read_object(Places(out).record(each.key)) for each in tasks}


def same(some: dict[str, dict], other: dict[str, dict]) -> bool:
    return {k: without_times(v) for k, v in some.items()} == {
        k: without_times(v) for k, v in other.items()
    }


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "runs").iterdir() if path.is_dir())


def alive(group: int) -> bool:
    """Whether a process of this group is running."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member) == group and state != "Z":
            return True
    return False


def until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("whom", ["the group", "the parent"])
def test_a_sweep_that_is_killed_goes_on_to_the_same_numbers(tmp_path, whole, whom):
    command = [sys.executable, "-m", "tests.tables.small", str(tmp_path)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    places = Places(tmp_path)
    until(lambda: places.rounds_done(LONG.key) >= 2)
    if whom == "the group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    until(lambda: not alive(process.pid), 20)  # workers end with their parent
    with _locked(tmp_path):
        assert places.rounds_done(LONG.key) < LONG.rounds
    if whom == "the parent":
        return
    assert not places.record(LONG.key).exists()
    assert RunFolder(tmp_path / "runs" / LONG.key).manifest
    sweep(TASKS, tmp_path, ["cpu"], 2)
    assert same(records(tmp_path, TASKS), whole)
    assert folders(tmp_path) == []


def test_a_sweep_whose_time_is_up_stops_and_goes_on_to_the_same_numbers(tmp_path, whole):
    events: list[Event] = []

    def clock() -> float:
        return 16.0 if any(event.kind == "round" for event in events) else 0.0

    sweep(TASKS[:2], tmp_path, ["cpu"], 1, seconds=10, grace=5, clock=clock, watch=events.append)
    assert [event.kind for event in events if event.kind != "round"] == ["stopped"]
    done = Places(tmp_path).rounds_done(LONG.key)
    assert 0 < done < LONG.rounds
    assert RunFolder(tmp_path / "runs" / LONG.key).load("cpu").rounds == done  # nothing is lost
    assert folders(tmp_path) == [LONG.key]  # the other one was not started
    first: list[dict] = []
    run_cell(LONG, tmp_path, "cpu", watch=first.append)
    assert first[0]["round"] == done
    assert same(records(tmp_path, [LONG]), {LONG.key: whole[LONG.key]})


def test_a_cell_that_does_not_stop_is_stopped_by_force(tmp_path):
    """Before its first round is over, as a long one would not be."""
    events: list[Event] = []
    ticks = iter([0.0, 0.0] + [100.0] * 1000)
    sweep([LONG], tmp_path, ["cpu"], 1, seconds=10, clock=lambda: next(ticks), watch=events.append)
    assert [event.kind for event in events] == ["stopped"]


def test_an_interrupted_sweep_keeps_checkpoints(tmp_path):
    def interrupt(event: Event) -> None:
        if event.kind == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep([LONG], tmp_path, ["cpu"], 1, watch=interrupt)
    checkpoint = RunFolder(tmp_path / "runs" / LONG.key).load("cpu")
    assert checkpoint.rounds == Places(tmp_path).rounds_done(LONG.key) > 0


def test_cells_that_fail_are_reported_and_the_others_go_on(tmp_path):
    refuses = task(defence=sm.Bulyan(f=0.4))
    dies = Task("dies", experiment(attack=Dies()).resolved(), "dies")
    fine = TASKS[2]
    events: list[Event] = []
    sweep([refuses, dies, fine], tmp_path, ["cpu"], 1, watch=events.append)
    failed = {e.task.key: e.why for e in events if e.kind == "failed"}
    assert failed.keys() == {refuses.key, "dies"}
    assert failed[refuses.key].startswith("TooFew: ")
    assert failed["dies"] == "its process died, exit status 3"
    assert "Traceback" in Places(tmp_path).failure(refuses.key).read_text()
    assert [e.task for e in events if e.kind == "finished"] == [fine]
    assert records(tmp_path, [fine]).keys() == {fine.key}


def test_two_sweeps_do_not_write_to_one_folder(tmp_path):
    with _locked(tmp_path), pytest.raises(sm.InputError, match="another sweep writes to"):
        sweep([LONG], tmp_path, ["cpu"], 1)
    sweep([], tmp_path, ["cpu"], 1)


def test_a_cell_with_a_record_is_not_run_again(tmp_path):
    first = run_cell(TASKS[2], tmp_path, "cpu")
    again = run_cell(TASKS[2], tmp_path, "cpu", watch=lambda record: pytest.fail("it ran"))
    assert again == first
    assert folders(tmp_path) == []


@pytest.mark.parametrize("left", [[], [".manifest.json.7.part"], ["manifest.json"]])
def test_a_run_folder_that_was_left_in_any_state_is_taken_up(tmp_path, whole, left):
    """Killed before the manifest was there, while it was written, before the first checkpoint."""
    small = TASKS[2]
    folder = Places(tmp_path).run(small.key).path
    if "manifest.json" in left:
        with pytest.raises(KeyboardInterrupt):
            run_cell(small, tmp_path, "cpu", watch=_interrupt)
        (folder / "checkpoint.safetensors").unlink()
    else:
        folder.mkdir(parents=True)
        for name in left:
            (folder / name).write_text("{")
    assert without_times(run_cell(small, tmp_path, "cpu")) == without_times(whole[small.key])


def _interrupt(record: dict) -> None:
    raise KeyboardInterrupt


def test_warnings_of_a_run_are_in_its_record(tmp_path):
    none = task(attack=sm.MinSum(), malicious=0.0)
    assert "nobody: no attack" in run_cell(none, tmp_path, "cpu")["warnings"][0]
