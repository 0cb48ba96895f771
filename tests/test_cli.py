"""The command line as a person uses it: its output and its exit status.

Most run inside this process, where torch is loaded already; those at the end start their own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

from skymask.attacks import ATTACKS
from skymask.cli import main
from skymask.cli.running import combined
from skymask.defences import DEFENCES

SMALL = ["run", "synthetic", "--rounds", "6", "--eval-every", "2", "--device", "cpu"]


@pytest.fixture
def skymask(capsys, monkeypatch):
    """Call the command line; gives exit status, stdout and stderr."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["skymask", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return Done(left.value.code or 0, written.out, written.err)

    return call


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def last_json(done: Done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_run_prints_and_records_the_same_numbers(skymask, tmp_path):
    folder = tmp_path / "run"
    done = skymask(*SMALL, "--attack", "min-sum", "--seed", 3, "--out", folder, "--json")
    summary = last_json(done)
    names = {"accuracy", "attack_success", "fpr", "fnr", "rounds", "seconds", "device", "seed"}
    assert names <= set(summary)
    assert (summary["rounds"], summary["seed"], summary["attack_success"]) == (6, 3, None)
    assert json.loads((folder / "summary.json").read_text()) == summary
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(6))
    assert [line["round"] for line in lines if "accuracy" in line] == [1, 3, 5]
    assert lines[-1]["accuracy"] == summary["accuracy"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["command"].startswith("skymask run synthetic --rounds 6")
    assert len(manifest["malicious_clients"]) == 4
    assert done.stderr == ""


def test_options_reach_the_experiment(skymask, tmp_path):
    folder = tmp_path / "run"
    options = {
        "--clients": 12,
        "--participation": 0.5,
        "--malicious": 0.25,
        "--local-steps": 2,
        "--batch": 8,
        "--lr": 0.1,
        "--prox": 0.01,
        "--server-lr": 1.0,
        "--root-size": 40,
        "--root-bias": 0.3,
        "--root-noise": 0.2,
        "--model": "mlp",
        "--attack": "min-sum:limit=max,direction=sign",
        "--defence": "skymask-nr:steps=5,gamma=2",
        "--partition": "dirichlet:alpha=0.3",
    }
    done = skymask(*SMALL, *[part for item in options.items() for part in item], "--out", folder)
    assert done.returncode == 0, done.stderr
    e = json.loads((folder / "manifest.json").read_text())["experiment"]
    assert (e["clients"], e["participation"], e["malicious"], e["model"]) == (12, 0.5, 0.25, "mlp")
    local = {"steps": 2, "batch": 8, "lr": 0.1, "prox": 0.01, "precision": "float32"}
    assert e["local"] == local
    assert (e["server_lr"], e["root_size"], e["root_bias"]) == (1.0, 40, 0.3)
    assert e["root_noise"] == 0.2
    settings = {"direction": "sign", "limit": "max", "knowledge": "all"}
    assert e["attack"] == {"name": "min-sum", "settings": settings}
    assert e["defence"]["name"] == "skymask-nr"
    assert (e["defence"]["settings"]["steps"], e["defence"]["settings"]["gamma"]) == (5, 2)
    assert e["partition"] == {"name": "dirichlet", "settings": {"alpha": 0.3}}


def test_half_precision_is_for_models_with_convolutions(skymask):
    done = skymask(*SMALL, "--precision", "bfloat16")
    assert done.returncode == 2
    assert "precision is 'bfloat16', which is for convolutions" in done.stderr
    done = skymask(*SMALL, "--precision", "half")
    assert done.returncode == 2
    assert "precision is 'half' but must be 'float32' or 'bfloat16'" in done.stderr


def test_seeds_give_mean_and_spread(skymask, tmp_path):
    summary = last_json(
        skymask(*SMALL, "--seeds", 3, "--seed", 5, "--json", "--out", tmp_path / "runs")
    )
    accuracies = [run["accuracy"] for run in summary["runs"]]
    assert [run["seed"] for run in summary["runs"]] == [5, 6, 7]
    assert summary["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert summary["spread"]["accuracy"] > 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["seed-5", "seed-6", "seed-7"]


def test_combined_spread_is_the_sample_standard_deviation():
    rows = [
        {
            "accuracy": a,
            "accuracy_last5": a,
            "fpr": 0.0,
            "fnr": None,
            "attack_success": None,
            "seconds": 1.0,
        }
        for a in (0.1, 0.3)
    ]
    both = combined(rows)
    assert both["accuracy"] == pytest.approx(0.2)
    assert both["spread"]["accuracy"] == pytest.approx(0.2 / 2**0.5)
    assert both["fnr"] is None
    assert both["seconds"] == 2.0


def test_paper_rule_gets_the_papers_gamma_of_the_data_set(skymask, tmp_path):
    done = skymask(*SMALL, "--defence", "skymask-paper", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["experiment"]["defence"][
        "settings"
    ]
    assert (settings["gamma"], settings["relative"]) == (1e7, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "DATA is missing"),
        (
            ["run", "fashion-mnits"],
            "data set 'fashion-mnits' is not known; did you mean 'fashion-mnist'?",
        ),
        ([*SMALL, "--attack", "minsum"], "attack 'minsum' is not known; did you mean 'min-sum'?"),
        ([*SMALL, "--defence", "skymsk"], "defence 'skymsk' is not known; did you mean 'skymask'?"),
        (
            [*SMALL, "--attack", "min-sum:limt=max"],
            "setting 'limt' is not known; did you mean 'limit'?",
        ),
        ([*SMALL, "--attack", "min-sum:limit=most"], "limit is 'most' but must be 'min' or 'max'"),
        ([*SMALL, "--attack", "min-sum:limit"], "setting 'limit' has no value"),
        ([*SMALL, "--defence", "skymask:steps=many"], "setting steps is 'many' but must be"),
        (
            [*SMALL, "--defence", "skymask:tau=1"],
            "tau is 1 but must be a number above 0 and below 1",
        ),
        ([*SMALL, "--malicious", "1"], "malicious is 1.0 but must be at least 0 and below 1"),
        ([*SMALL, "--clients", "4"], "clients"),
        ([*SMALL, "--clients", "1000000"], "samples"),
        ([*SMALL, "--root-size", "100000"], "root_size is 100000 but must be"),
        ([*SMALL, "--model", "cnn"], "cannot take the root data set"),
        ([*SMALL, "--model", "resnet"], "model 'resnet' is not known; did you mean 'resnet-20'?"),
        (
            [*SMALL, "--q", "0.5", "--partition", "dirichlet"],
            "--q and --partition exclude each other",
        ),
        ([*SMALL, "--partition", "dirichlet:alpha=-1"], "alpha is -1 but must be"),
        ([*SMALL, "--lr", "0"], "lr is 0.0 but must be"),
        ([*SMALL, "--seeds", "0"], "seeds is 0 but must be at least 1"),
        (["run", "digits", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["run", "digits", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["run", "--resume", "nowhere"], "nowhere holds no run"),
        (["data", "mnist"], "data set 'mnist' is not known; did you mean"),
        (["report", "nowhere"], "nowhere holds no run"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(skymask, arguments, says, tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "run" and len(arguments) > 3 else []
    monkeypatch.chdir(tmp_path)
    done = skymask(*arguments, *out)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_run_is_kept(skymask, tmp_path):
    folder = tmp_path / "run"
    assert skymask(*SMALL, "--out", folder).returncode == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = skymask(*SMALL, "--out", folder)
    assert done.returncode == 2
    assert f"out folder {folder} holds another run" in done.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_resume_of_a_finished_run_changes_nothing_but_says_its_summary(skymask, tmp_path):
    folder = tmp_path / "run"
    first = last_json(skymask(*SMALL, "--out", folder, "--json"))
    again = last_json(skymask("run", "--resume", folder, "--device", "cpu", "--json"))
    assert again == first


def test_resume_takes_no_other_settings(skymask, tmp_path):
    assert skymask(*SMALL, "--out", tmp_path / "run").returncode == 0
    done = skymask("run", "--resume", tmp_path / "run", "--rounds", "50")
    assert done.returncode == 2
    assert "--rounds cannot be given with --resume" in done.stderr


def test_seeds_are_refused_before_the_first_run_if_a_folder_is_taken(skymask, tmp_path):
    assert skymask(*SMALL, "--out", tmp_path / "runs" / "seed-2").returncode == 0
    done = skymask(*SMALL, "--seeds", 2, "--out", tmp_path / "runs")
    assert done.returncode == 2
    assert "seed-2 holds another run" in done.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["seed-2"]


def test_missing_data_says_where_it_looked(skymask, tmp_path):
    done = skymask("run", "har", "--data-dir", tmp_path, "--rounds", "1")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "SKYMASK_DATA" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    """A file size limit stands in for the disk: writing past it fails in the same way."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        f"sys.argv = ['skymask', *{[*SMALL, '--out', str(tmp_path / 'run')]!r}];"
        "from skymask.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"cannot write to .*run: .*; what was there is kept", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob(".*"))


def test_list_names_every_component(skymask):
    listed = last_json(skymask("list", "--json"))
    assert set(listed["attacks"]) == set(ATTACKS)
    assert set(listed["defences"]) == set(DEFENCES)
    min_sum = listed["attacks"]["min-sum"]
    assert min_sum["settings"]["limit"] == {"default": "min", "bound": "'min' or 'max'"}
    assert min_sum["kind"] == "attack"
    assert "NDSS 2021" in min_sum["reference"]
    assert listed["data"]["fashion-mnist"]["clients"] == 100
    assert all(entry["about"] for entry in listed["defences"].values())


def test_doctor_and_data_say_what_is_there(skymask, tmp_path):
    doctor = skymask("doctor", "--data-dir", tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    assert all(
        word in doctor.stdout for word in ("torch", "cpu", "fashion-mnist", "built in", "not found")
    )
    data = skymask("data", "--data-dir", tmp_path)
    assert "skymask data cifar-10" in data.stdout


def test_report_of_a_run(skymask, tmp_path):
    assert skymask(*SMALL, "--attack", "fang-trim", "--out", tmp_path / "run").returncode == 0
    done = skymask("report", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!")


def test_demo_ends_with_three_rows_and_their_folders(skymask, tmp_path):
    done = skymask("demo", "--out", tmp_path / "demo", "--json", "--device", "cpu")
    cases = last_json(done)
    assert list(cases) == ["fedavg, no attack", "fedavg, min-sum", "skymask, min-sum"]
    for summary in cases.values():
        assert (Path(summary["folder"]) / "summary.json").exists()
    assert cases["skymask, min-sum"]["fnr"] < 0.05
    assert (
        cases["skymask, min-sum"]["accuracy_last5"]
        > cases["fedavg, min-sum"]["accuracy_last5"] + 0.02
    )


def test_report_exports_numbers(skymask, tmp_path):
    assert skymask(*SMALL, "--out", tmp_path / "run").returncode == 0
    done = skymask("report", tmp_path / "run", "--export", tmp_path / "x", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x" / "rounds.csv").read_text().count("\n") == 7
    done = skymask("report", tmp_path / "run", "--round", 3)
    assert done.returncode == 2
    assert "--export FOLDER" in done.stderr


def test_watch_says_where_it_is_and_ends_with_ctrl_c(tmp_path):
    watch = subprocess.Popen(
        [sys.executable, "-m", "skymask.cli", "watch", tmp_path / "later"],
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert watch.stdout is not None
    address = watch.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address) as answer:
        assert b"Waiting for a run" in answer.read()
    watch.send_signal(signal.SIGINT)
    assert watch.wait(timeout=30) == 0
    watch.stdout.close()


def test_a_port_that_cannot_be_is_refused(skymask, tmp_path):
    done = skymask("watch", tmp_path, "--port", 70000)
    assert done.returncode == 2
    assert "port is 70000 but must be from 0 to 65535" in done.stderr


def test_the_shell_completes_names():
    line = {
        "_SKYMASK_COMPLETE": "complete_bash",
        "COMP_WORDS": "skymask run fashion",
        "COMP_CWORD": "2",
    }
    program = Path(sys.executable).with_name("skymask")
    done = subprocess.run([program], env=os.environ | line, capture_output=True, text=True)
    assert done.stdout.split() == ["fashion-mnist"]


def test_numbers_go_to_a_tracker(skymask, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    logs = tmp_path / "logs"
    done = skymask(*SMALL, "--seeds", 2, "--track", f"tensorboard:{logs}")
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in logs.iterdir()} == {"synthetic-seed-1", "synthetic-seed-2"}
    done = skymask(*SMALL, "--track", "wandb:x")
    assert done.returncode == 2
    assert "track is 'wandb:x' but must be tensorboard:FOLDER or mlflow:URI" in done.stderr
