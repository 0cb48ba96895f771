"""The round loop on small real data."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import skymask as sm
from skymask.preparation import malicious_clients
from skymask.records import TIME_FIELDS, RunFolder
from tests.reference.federation import federated_averaging

SHORT = sm.Experiment(data="digits", malicious=0.3, rounds=12, eval_every=4)


def without_times(records):
    return [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in records]


def test_fedavg_equals_a_readable_loop():
    experiment = dataclasses.replace(SHORT, rounds=3).resolved()
    result = sm.simulate(experiment, device="cpu")
    torch.testing.assert_close(result.params, federated_averaging(experiment), rtol=1e-5, atol=1e-6)


def test_the_attack_harms_and_skymask_repairs():
    rounds = 60
    clean, attacked, protected = (
        sm.simulate(
            sm.Experiment(
                data="digits", attack=attack, defence=defence, malicious=0.3, rounds=rounds
            ),
            device="cpu",
        ).summary
        for attack, defence in (
            (sm.NoAttack(), sm.FedAvg()),
            (sm.MinSum(), sm.FedAvg()),
            (sm.MinSum(), sm.SkyMask()),
        )
    )
    assert attacked["accuracy_last5"] < clean["accuracy_last5"] - 0.04
    assert protected["accuracy_last5"] > clean["accuracy_last5"] - 0.03
    assert protected["fnr"] <= 0.05
    assert protected["fpr"] <= 0.05


def test_same_seed_same_run_other_seed_other_run():
    first, second = (sm.simulate(SHORT, device="cpu") for _ in range(2))
    assert first.params.equal(second.params)
    assert without_times(first.rounds) == without_times(second.rounds)
    other = sm.simulate(dataclasses.replace(SHORT, seed=2), device="cpu")
    assert not first.params.equal(other.params)


def test_rates_are_of_the_right_clients():
    """Everybody accepted: no honest client is rejected, every malicious one is let in."""
    result = sm.simulate(dataclasses.replace(SHORT, attack=sm.LabelFlip()), device="cpu")
    assert (result.summary["fpr"], result.summary["fnr"]) == (0.0, 1.0)
    assert {r["malicious"] for r in result.rounds} == {6}


def test_rates_are_undefined_without_malicious_clients():
    result = sm.simulate(SHORT, device="cpu")
    assert result.summary["fnr"] is None
    assert {r["malicious"] for r in result.rounds} == {0}


def test_honest_only_leaves_the_malicious_out():
    result = sm.simulate(dataclasses.replace(SHORT, honest_only=True), device="cpu")
    assert {r["clients"] for r in result.rounds} == {14}
    assert result.summary["fnr"] is None


def test_participation_draws_other_clients_each_round():
    @dataclasses.dataclass(frozen=True)
    class Watching:
        seen: list

        def __call__(self, updates, round):
            self.seen.append(round.clients.tolist())
            assert round.counts.shape == (len(updates),)
            return sm.FedAvg()(updates, round)

    seen: list[list[int]] = []
    result = sm.simulate(
        dataclasses.replace(SHORT, participation=0.25, defence=Watching(seen)), device="cpu"
    )
    assert [record["took_part"] for record in result.rounds] == seen
    assert {len(clients) for clients in seen} == {5}
    assert len({tuple(clients) for clients in seen}) > 6


def test_an_attack_of_ones_own_may_build_on_no_attack_and_does_not_see_the_root_set():
    @dataclasses.dataclass(frozen=True)
    class Curious(sm.NoAttack):
        def poison_updates(self, updates, malicious, round):
            assert round.root is None
            assert round.server_update is None
            assert round.params is not None
            return updates.masked_fill(malicious[:, None], float("nan"))

    result = sm.simulate(dataclasses.replace(SHORT, attack=Curious()), device="cpu")
    assert {r["fnr"] for r in result.rounds} == {0.0}
    assert result.summary["accuracy"] > 0.5
    assert set(result.rounds[0]["rejected"].values()) == {"its update is not finite"}


def batch_norm_net():
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.Linear(16, 10),
    )


@dataclasses.dataclass(frozen=True)
class Statistics(sm.NoAttack):
    """Malicious clients claim a running variance of `variance`."""

    variance: float | None

    def poison_updates(self, updates, malicious, round):
        if self.variance is None:
            return updates, None
        buffers = round.buffers.clone()
        buffers[malicious, 16:] = self.variance
        return updates, buffers


def test_poisoned_statistics_reach_the_defence_and_negative_ones_are_rejected():
    settings = {"model": batch_norm_net, "local": sm.LocalSGD(2, 16, 0.1)}
    usual, huge, negative = (
        sm.simulate(dataclasses.replace(SHORT, attack=Statistics(v), **settings), device="cpu")
        for v in (None, 1e6, -1.0)
    )
    assert usual.buffers[16:].max() < 100
    assert huge.buffers[16:].min() > 1e4
    assert negative.buffers[16:].min() > 0
    assert set(negative.rounds[0]["rejected"].values()) == {"its 2.running_var is negative"}


def test_a_rule_of_ones_own_gets_its_statistics_averaged_too():
    def plain_mean(updates, round):
        return sm.Decision(updates.mean(0), torch.ones(len(updates), dtype=torch.bool))

    result = sm.simulate(
        dataclasses.replace(SHORT, model=batch_norm_net, defence=plain_mean), device="cpu"
    )
    assert not result.buffers[:16].eq(0).all()


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        (None, "returned a NoneType, not a Decision"),
        (sm.Decision(torch.zeros(3), torch.ones(20, dtype=torch.bool)), r"returned update \(3,\)"),
        (sm.Decision(torch.zeros(4810), torch.ones(20)), "returned accepted as torch.float32"),
        (
            sm.Decision(torch.full((4810,), float("nan")), torch.ones(20, dtype=torch.bool)),
            "returned an update that is not finite",
        ),
    ],
)
def test_a_useless_decision_is_refused(decision, says):
    with pytest.raises(sm.InputError, match=says):
        sm.simulate(dataclasses.replace(SHORT, defence=lambda *_: decision), device="cpu")


@pytest.mark.parametrize(
    ("data", "model", "says"),
    [("digits", "cnn", "cannot take the root data set"), ("har", "cnn", "cannot take")],
)
def test_a_model_that_does_not_fit_the_data_is_refused(data, model, says, request):
    where = request.getfixturevalue("data_dir") if data == "har" else None
    with pytest.raises(sm.InputError, match=says):
        sm.simulate(sm.Experiment(data=data, model=model), device="cpu", data_dir=where)


def test_rounds_without_anybody_accepted_are_counted():
    result = sm.simulate(dataclasses.replace(SHORT, local=sm.LocalSGD(5, 16, 1e30)), device="cpu")
    assert result.summary["fallbacks"] == SHORT.rounds


def test_an_attack_that_touches_honest_rows_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Clumsy:
        def poison_data(self, data, malicious, generator):
            return data

        def poison_updates(self, updates, malicious, round):
            updates *= 2  # in place: what it was given is a copy
            return updates

    with pytest.raises(sm.InputError, match="honest rows are unchanged"):
        sm.simulate(dataclasses.replace(SHORT, attack=Clumsy()), device="cpu")


def test_an_attack_that_touches_honest_samples_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Clumsy(sm.NoAttack):
        def poison_data(self, data, malicious, generator):
            return dataclasses.replace(data, labels=torch.zeros_like(data.labels))

    with pytest.raises(sm.InputError, match="must leave the honest clients' samples"):
        sm.simulate(dataclasses.replace(SHORT, attack=Clumsy()), device="cpu")


def test_all_updates_rejected_leaves_the_model(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Nobody:
        def poison_data(self, data, malicious, generator):
            return data

        def poison_updates(self, updates, malicious, round):
            return updates

    diverged = dataclasses.replace(SHORT, local=sm.LocalSGD(5, 16, 1e30), attack=Nobody())
    result = sm.simulate(diverged, device="cpu", out=tmp_path / "run")
    assert all(r["fallback"] for r in result.rounds)
    assert result.params.isfinite().all()
    assert "no client sent a usable update" in RunFolder(tmp_path / "run").rounds()[0]["fallback"]


def test_a_model_that_starts_with_nan_is_refused(tmp_path):
    def broken():
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        torch.nn.init.constant_(module[1].weight, float("nan"))
        return module

    with pytest.raises(sm.InputError, match="loss on the root data set is nan before training"):
        sm.simulate(dataclasses.replace(SHORT, model=broken), device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_root_set_larger_than_the_data_is_refused():
    with pytest.raises(sm.InputError, match="root_size"):
        sm.simulate(dataclasses.replace(SHORT, root_size=100_000), device="cpu")


def test_malicious_clients_are_a_share_drawn_by_seed():
    marks = malicious_clients(100, 0.2, 1)
    assert marks.sum() == 20
    assert not marks.equal(malicious_clients(100, 0.2, 2))
    assert malicious_clients(10, 0.0, 1).sum() == 0


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resume_equals_uninterrupted(tmp_path, stop, monkeypatch):
    monkeypatch.setattr("skymask.simulation._CHECKPOINT_SECONDS", 0.0)
    experiment = dataclasses.replace(SHORT, attack=sm.FangTrim(), defence=sm.SkyMask())
    whole = sm.simulate(experiment, device="cpu", out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def interrupt(record):
        if record["round"] == stop:
            raise Stop

    with pytest.raises(Stop):
        sm.simulate(experiment, device="cpu", out=tmp_path / "cut", watch=interrupt)
    with (tmp_path / "cut" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 99, "fp')  # a torn line, as a kill may leave it
    resumed = sm.simulate(experiment, device="cpu", out=tmp_path / "cut", resume=True)
    assert resumed.params.equal(whole.params)
    assert without_times(resumed.rounds) == without_times(whole.rounds)
    first, second = (RunFolder(tmp_path / name) for name in ("whole", "cut"))
    assert without_times(first.rounds()) == without_times(second.rounds())
    assert second.summary["accuracy"] == first.summary["accuracy"]
    closeups = [(f.path / "closeups.jsonl").read_text() for f in (first, second)]
    assert closeups[0] == closeups[1]
    assert closeups[0].count("\n") == SHORT.rounds


def test_a_watch_that_raises_ends_the_run_with_a_checkpoint_of_that_round(tmp_path):
    class Stop(Exception):
        pass

    def interrupt(record):
        if record["round"] == 4:
            raise Stop

    with pytest.raises(Stop):
        sm.simulate(SHORT, device="cpu", out=tmp_path / "cut", watch=interrupt)
    assert RunFolder(tmp_path / "cut").load(torch.device("cpu")).rounds == 5


def test_a_run_from_before_a_field_was_there_can_be_resumed(tmp_path):
    whole = sm.simulate(dataclasses.replace(SHORT, rounds=3), device="cpu", out=tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["experiment"]["root_noise"]
    path.write_text(json.dumps(manifest))
    experiment = dataclasses.replace(SHORT, rounds=3)
    again = sm.simulate(experiment, device="cpu", out=tmp_path / "run", resume=True)
    assert again.params.equal(whole.params)
    other = dataclasses.replace(experiment, root_noise=0.1)
    with pytest.raises(sm.InputError, match=r"has root_noise 0\.0, not 0\.1"):
        sm.simulate(other, device="cpu", out=tmp_path / "run", resume=True)


def test_resume_of_another_experiment_is_refused(tmp_path):
    sm.simulate(dataclasses.replace(SHORT, rounds=2), device="cpu", out=tmp_path / "run")
    other = dataclasses.replace(SHORT, rounds=2, malicious=0.1)
    with pytest.raises(sm.InputError, match=r"the run to resume has malicious 0.3, not 0.1"):
        sm.simulate(other, device="cpu", out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("part", "other", "named"),
    [
        ("params", lambda usual: usual[:7], r"of shape \(7,\) and torch.float32 but the model has"),
        ("params", torch.Tensor.double, r"of shape \(\d+,\) and torch.float64 but the model has"),
        ("buffers", lambda usual: torch.zeros(3), r"of shape \(3,\) .* but the model has \(0,\)"),
    ],
    ids=["fewer parameters", "another type", "buffers"],
)
def test_resume_from_the_checkpoint_of_another_model_is_refused(tmp_path, part, other, named):
    """The manifest is this experiment's: files of two runs were mixed."""
    experiment = dataclasses.replace(SHORT, rounds=2)
    sm.simulate(experiment, device="cpu", out=tmp_path)
    folder = RunFolder(tmp_path)
    state = folder.load(torch.device("cpu"))
    folder.save(dataclasses.replace(state, **{part: other(getattr(state, part))}))
    records = folder.rounds()
    with pytest.raises(sm.InputError, match=f"the checkpoint in .* holds {part} {named}"):
        sm.simulate(experiment, device="cpu", out=tmp_path, resume=True)
    assert folder.rounds() == records  # refused before anything was cut


@pytest.mark.parametrize("memory", [[1, 2], {"scores": torch.ones(2)}, "a", torch.ones(3)])
def test_resume_with_the_memory_of_another_rule_is_one_sentence(tmp_path, memory):
    experiment = dataclasses.replace(SHORT, rounds=2, defence=sm.FLDetector())
    state = stopped_after_one_round(experiment, tmp_path)
    RunFolder(tmp_path).save(dataclasses.replace(state, memory=memory))
    with pytest.raises(sm.InputError, match="cannot go on from its checkpoint, whose memory may"):
        sm.simulate(experiment, device="cpu", out=tmp_path, resume=True)


def test_an_error_later_than_the_checkpoint_is_not_blamed_on_it(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class BreaksInRoundTwo(sm.FedAvg):
        def __call__(self, updates, round):
            if round.index == 2:
                raise KeyError("its own")
            return super().__call__(updates, round)

    experiment = dataclasses.replace(SHORT, rounds=3, defence=BreaksInRoundTwo())
    stopped_after_one_round(experiment, tmp_path)
    with pytest.raises(KeyError, match="its own"):
        sm.simulate(experiment, device="cpu", out=tmp_path, resume=True)


def stopped_after_one_round(experiment, out):
    """The checkpoint of a run that was interrupted."""

    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sm.simulate(experiment, device="cpu", out=out, watch=interrupt)
    return RunFolder(out).load(torch.device("cpu"))


def test_batch_norm_statistics_are_averaged_and_survive_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("skymask.simulation._CHECKPOINT_SECONDS", 0.0)

    experiment = dataclasses.replace(
        SHORT,
        model=batch_norm_net,
        attack=sm.MinSum(),
        defence=sm.SkyMask(),
        rounds=30,
        local=sm.LocalSGD(2, 16, 0.1),
    )
    result = sm.simulate(experiment, device="cpu", out=tmp_path / "run")
    assert result.buffers.shape == (32,)
    assert result.buffers.isfinite().all()
    assert (result.buffers[16:] > 0).all()
    assert not result.buffers[:16].eq(0).all()
    assert result.summary["accuracy"] > 0.5
    assert RunFolder(tmp_path / "run").load(torch.device("cpu")).buffers.equal(result.buffers)


@pytest.mark.long
@pytest.mark.parametrize("moment", [0.2, 1.0, 2.5])
def test_kill_at_any_moment_then_resume_equals_uninterrupted(tmp_path, moment):
    """`kill -9` by the clock, from the first write on; the command line resumes."""
    command = [sys.executable, "-m", "skymask.cli", "run"]
    settings = ["digits", "--attack", "min-sum", "--rounds", "80", "--device", "cpu"]
    subprocess.run(
        [*command, *settings, "--out", tmp_path / "whole"], check=True, capture_output=True
    )
    process = subprocess.Popen(
        [*command, *settings, "--out", tmp_path / "cut"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "cut" / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [*command, "--resume", tmp_path / "cut", "--json", "--device", "cpu"],
        check=True,
        capture_output=True,
        text=True,
    )
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert without_times(whole.rounds()) == without_times(cut.rounds())
    assert whole.load(torch.device("cpu")).params.equal(cut.load(torch.device("cpu")).params)
    assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == whole.summary["accuracy"]
