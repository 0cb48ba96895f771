import itertools
import json

import pytest
import torch
from safetensors.torch import save

from skymask.errors import InputError
from skymask.records import KEPT, Checkpoint, RunFolder, is_kept, json_lines

CPU = torch.device("cpu")
MANIFEST = {"experiment": {"seed": 1}}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(MANIFEST)
    return run


def test_checkpoint_round_trip(folder):
    memory = {
        "means": [torch.arange(3.0), torch.ones(2, dtype=torch.bool)],
        "n": 3,
        "who": "a",
        "none": None,
    }
    saved = Checkpoint(7, torch.randn(5), torch.empty(0), memory)
    folder.save(saved)
    loaded = folder.load(CPU)
    assert loaded.rounds == 7
    assert loaded.params.equal(saved.params)
    assert loaded.buffers.shape == (0,)
    assert loaded.memory["means"][0].equal(torch.arange(3.0))
    assert loaded.memory["means"][1].dtype == torch.bool
    assert {k: loaded.memory[k] for k in ("n", "who", "none")} == {"n": 3, "who": "a", "none": None}


def test_memory_that_is_no_data_is_refused_and_the_checkpoint_stays(folder):
    folder.save(Checkpoint(1, torch.ones(2), torch.empty(0), None))
    with pytest.raises(InputError, match=r"memory\.x holds a object"):
        folder.save(Checkpoint(2, torch.ones(2), torch.empty(0), {"x": object()}))
    assert folder.load(CPU).rounds == 1


def test_records_are_json_without_nan(folder):
    folder.append({"round": 0, "loss": float("nan"), "rates": [float("inf"), 0.5]})
    assert folder.rounds() == [{"round": 0, "loss": None, "rates": [None, 0.5]}]


def test_a_torn_last_line_is_dropped_and_an_inner_one_is_an_error(folder):
    for index in range(3):
        folder.append({"round": index})
    path = folder.path / "rounds.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        assert folder.rounds() == [{"round": i} for i in range(whole[:length].count(b"\n"))]
    path.write_bytes(b'{"round": 0}\n{"rou\n{"round": 2}\n')
    with pytest.raises(InputError, match=r"rounds.jsonl line 2 is not JSON"):
        folder.rounds()


def test_cut_keeps_the_first_rounds(folder):
    for index in range(5):
        folder.append({"round": index})
    folder.finish({"accuracy": 1.0})
    assert [r["round"] for r in folder.cut(3)] == [0, 1, 2]
    assert [r["round"] for r in folder.rounds()] == [0, 1, 2]
    assert folder.summary is None
    with pytest.raises(InputError, match="has 3 rounds but the checkpoint is after 4"):
        folder.cut(4)


def test_cut_drops_the_close_ups_of_later_rounds(folder):
    for index in range(3):
        folder.append({"round": index})
        folder.append_closeup({"round": index, "values": {}})
    with (folder.path / "closeups.jsonl").open("a") as file:
        file.write('{"round": 3, "val')
    folder.cut(2)
    kept, end = json_lines(folder.path / "closeups.jsonl")
    assert [closeup["round"] for closeup in kept] == [0, 1]
    assert end == (folder.path / "closeups.jsonl").stat().st_size


@pytest.mark.parametrize("rounds", [1, 2, 99, 100, 101, 150, 199, 200, 2500, 100_000])
def test_at_most_a_hundred_rounds_are_kept_from_first_to_last(rounds):
    kept = [index for index in range(rounds) if is_kept(index, rounds)]
    assert len(kept) == min(rounds, KEPT)
    assert (kept[0], kept[-1]) == (0, rounds - 1)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1 + rounds // KEPT


def test_reading_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert json_lines(path) == ([], 0)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    first, end = json_lines(path)
    assert first == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\nwhat\n')
    with pytest.raises(InputError, match=r"lines\.jsonl line 4 is not JSON"):
        json_lines(path, end, len(first))
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert json_lines(path, end, len(first)) == ([{"a": 3}], path.stat().st_size)


def test_a_folder_in_use_is_refused_untouched(folder, tmp_path):
    with pytest.raises(InputError, match="holds another run"):
        folder.start(MANIFEST)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path / "notes").start(MANIFEST)
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "notes" / "a.txt").start(MANIFEST)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08" + b"\0" * 40, b"\xff" * 64])
def test_a_corrupt_checkpoint_is_one_sentence(folder, content):
    (folder.path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a checkpoint of a run"):
        folder.load(CPU)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"experiment": 3}', '"x"'])
def test_a_corrupt_manifest_is_one_sentence(folder, content):
    (folder.path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest.json"):
        _ = folder.manifest


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        _ = RunFolder(tmp_path).manifest


def test_a_full_disk_keeps_what_was_there(folder, monkeypatch):
    folder.save(Checkpoint(1, torch.ones(2), torch.empty(0), None))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device; what was there is kept"):
        folder.save(Checkpoint(2, torch.ones(2), torch.empty(0), None))
    monkeypatch.undo()
    assert folder.load(CPU).rounds == 1
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "checkpoint.safetensors",
        "manifest.json",
    ]


def test_nothing_is_pickled(folder):
    folder.save(Checkpoint(1, torch.ones(2), torch.empty(0), {"a": torch.ones(1)}))
    folder.append({"round": 0})
    for path in folder.path.iterdir():
        assert b"\x80\x04" not in path.read_bytes()[:2]
        assert path.suffix in (".json", ".jsonl", ".safetensors")
    json.loads((folder.path / "manifest.json").read_text())


def test_what_a_killed_process_was_writing_is_in_nobodys_way(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    torn = folder.path / ".manifest.json.123.part"
    torn.write_text("{")
    folder.start({"experiment": {}})
    assert not torn.exists()
    torn = folder.path / ".checkpoint.safetensors.124.part"
    torn.write_text("x")
    (folder.path / ".report.html.125.part").write_text("somebody may be writing this")
    folder.append({"round": 0})
    assert folder.cut(1) == [{"round": 0}]
    assert not torn.exists()
    assert (folder.path / ".report.html.125.part").exists()


@pytest.mark.parametrize("outline", ["[]", "3", '{"dict": 1}', '{"tensor": []}', "[" * 100_000])
def test_a_checkpoint_with_another_outline_is_refused(tmp_path, outline):
    header = {"rounds": "1", "memory": outline, "attack_memory": outline}
    stored = {"params": torch.ones(2), "buffers": torch.ones(1)}
    (tmp_path / "checkpoint.safetensors").write_bytes(save(stored, header))
    with pytest.raises(InputError, match="is not a checkpoint of a run"):
        RunFolder(tmp_path).load(torch.device("cpu"))


@pytest.mark.parametrize("line", ['{"round": "0"}', "{}", '{"round": [1]}'])
def test_a_close_up_of_no_round_is_refused_on_resume(tmp_path, line):
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    (tmp_path / "closeups.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 has round"):
        RunFolder(tmp_path).cut(1)
