"""What trackers get, read back from where they keep it."""

import sys
from pathlib import Path

import pytest

import skymask as sm
from skymask.tracking import mlflow, numbers, tensorboard, tracker

EXPERIMENT = sm.Experiment(
    data="synthetic", attack=sm.MinSum(), defence=sm.SkyMask(), rounds=4, eval_every=2
)


def test_numbers_of_a_record():
    found = numbers(
        {
            "round": 3,
            "accuracy": 0.5,
            "fnr": None,
            "rejected": {"1": "why", "2": None},
            "stages": {"train": 0.25},
            "evidence": {"gain": 2},
            "fallback": None,
        }
    )
    assert found == {"accuracy": 0.5, "rejected": 2.0, "stages/train": 0.25, "evidence/gain": 2.0}


# The protocol buffers that TensorBoard brings along were made by an older compiler.
@pytest.mark.filterwarnings("ignore::UserWarning:google.protobuf")
def test_tensorboard_holds_every_round(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path / "logs") as watch:
        result = sm.simulate(EXPERIMENT, device="cpu", watch=watch)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    fpr = [(event.step, event.value) for event in events.Scalars("fpr")]
    assert fpr == [(r["round"] + 1, pytest.approx(r["fpr"])) for r in result.rounds]
    assert [event.step for event in events.Scalars("accuracy")] == [2, 4]
    assert "stages/defence" in events.Tags()["scalars"]


def test_mlflow_holds_settings_and_every_round(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    # The small MLflow of the extra brings no database along, and allows files only if asked.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    with mlflow(EXPERIMENT, uri, "first") as watch:
        result = sm.simulate(EXPERIMENT, device="cpu", watch=watch)
    with pytest.raises(KeyError), mlflow(EXPERIMENT, uri, "second"):
        raise KeyError
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name("skymask synthetic")
    runs = {run.info.run_name: run for run in client.search_runs([place.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "first": "FINISHED",
        "second": "FAILED",
    }
    first = runs["first"]
    assert first.data.params["attack.name"] == "min-sum"
    assert first.data.params["local.lr"] == "0.5"
    fpr = client.get_metric_history(first.info.run_id, "fpr")
    assert [(m.step, m.value) for m in fpr] == [(r["round"] + 1, r["fpr"]) for r in result.rounds]


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_missing_is_named(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with (
        pytest.raises(sm.InputError, match=rf"pip install 'skymask\[{kind}\]'"),
        tracker(f"{kind}:{tmp_path}", EXPERIMENT, "run"),
    ):
        pass


def test_a_store_that_mlflow_cannot_use_is_named():
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    with pytest.raises(sm.InputError, match="MLflow cannot keep the run at nonsense://"):
        mlflow(EXPERIMENT, "nonsense://x").__enter__()


@pytest.mark.parametrize("text", ["", "tensorboard", "wandb:x", "tensorboard:"])
def test_what_is_no_tracker_is_refused(text: str):
    with pytest.raises(sm.InputError, match=r"must be tensorboard:FOLDER or mlflow:URI"):
        tracker(text, EXPERIMENT, "run")
