"""What goes wrong in a federation: the run goes on, and the ledger names who it was."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, QFedAvg
from torch import nn

import skymask as sm
from skymask.errors import InputError
from skymask.flower import Policy, RobustStrategy, TooFewNodes, drills
from tests.flower import federation
from tests.flower.federation import (
    LOCAL,
    NODES,
    Federation,
    accuracy,
    client_app,
    evaluated,
    excluded,
    lost,
    model,
    node_id,
    partition,
    skymask,
    start,
)

BAD = 3
HERE = drills.partitions(BAD)


def entries(path: Path) -> list[dict]:
    """The round lines of a ledger."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "nodes" in line]


def verdicts(path: Path, which: int = BAD) -> list[str]:
    """The verdicts on a node, round by round."""
    return [line["nodes"][str(node_id(which))]["verdict"] for line in entries(path)]


def reason(path: Path, which: int = BAD) -> str:
    return entries(path)[0]["nodes"][str(node_id(which))]["reason"]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


# Replies that no strategy can aggregate.

MALFORMED = {
    "NaN": (drills.not_a_number(HERE), "is not finite"),
    "shape": (drills.wrong_shape(HERE), "has shape"),
    "keys": (drills.wrong_keys(HERE), "its arrays lack"),
    "garbage": (drills.garbage(HERE), "does not decode as an array"),
    "weight 1e15": (drills.examples(HERE, 1e15), "states 1e+15 examples"),
    "negative weight": (drills.examples(HERE, -1e6), "states -1000000.0 examples"),
    "no weight": (drills.examples(HERE, 0), "states 0 examples"),
    "weight NaN": (drills.examples(HERE, float("nan")), "'num-examples' is not finite"),
    "missing metrics": (drills.missing_metrics(HERE), "0 records of metrics"),
    "additional metrics": (drills.additional_metrics(HERE), "otherwise than most nodes"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_reply_costs_its_sender_and_nobody_else(fault, ledger):
    mod, told = MALFORMED[fault]
    strategy = skymask(FedAvg(), ledger=ledger)
    result, final = start(strategy, Federation(client_app([mod])), 6)
    assert verdicts(ledger) == ["malformed"] * 3 + ["excluded"] * 3
    assert told in reason(ledger)
    assert excluded(strategy) == {BAD}
    assert verdicts(ledger, 0) == ["accepted"] * 6
    assert final > 0.7
    assert len(result.train_metrics_clientapp) == 6


@pytest.mark.parametrize("fault", [name for name in MALFORMED if name != "no weight"])
def test_bare_fedavg_does_not_survive_it(fault):
    """The control: it stops, or the model is not what the other nodes have made of it."""
    mod, _ = MALFORMED[fault]
    before = model().state_dict()["0.weight"].numpy()
    clean = start(FedAvg(), Federation(client_app()), 1)[0].arrays["0.weight"].numpy()
    try:
        result, _ = start(FedAvg(), Federation(client_app([mod])), 1)
    except Exception:
        return
    off = np.linalg.norm(result.arrays["0.weight"].numpy() - clean)
    assert not off < 0.3 * np.linalg.norm(clean - before)  # nor is NaN


def test_a_negative_loss_does_not_stop_the_strategy_that_takes_a_power_of_it(ledger):
    def lies(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "train" and HERE(context):
            reply.content["metrics"]["loss"] = -5.0
        return reply

    inner = QFedAvg(client_learning_rate=LOCAL.lr, train_loss_key="loss")
    strategy = skymask(inner, ledger=ledger)
    _, final = start(strategy, Federation(client_app([lies])), 6)
    assert verdicts(ledger) == ["malformed"] * 3 + ["excluded"] * 3
    assert "states a loss of -5.0 ('loss')" in reason(ledger)
    assert final > 0.6


def test_when_every_reply_is_malformed_the_model_stays(ledger):
    everywhere = drills.partitions(*range(NODES))
    strategy = skymask(FedAvg(), ledger=ledger, policy=Policy(strikes=None))
    _, final = start(strategy, Federation(client_app([drills.garbage(everywhere)])), 2)
    assert final == accuracy(ArrayRecord(model().state_dict()))


# Errors and silence.


def test_an_exception_in_a_client_is_an_error_and_no_strike(ledger):
    strategy = skymask(FedAvg(), ledger=ledger)
    _, final = start(strategy, Federation(client_app([drills.fails(HERE)])), 5)
    assert verdicts(ledger) == ["error"] * 5
    assert "makes the client fail" in reason(ledger)
    assert strategy.strikes == {}
    assert final > 0.6


def test_a_node_that_never_answers_is_silent_and_gets_no_strike(ledger):
    strategy = skymask(FedAvg(), ledger=ledger)
    start(strategy, Federation(client_app(), lost({BAD})), 5)
    assert verdicts(ledger) == ["silent"] * 5
    assert strategy.strikes == {}


def test_a_dead_nodes_error_is_put_down_to_that_node(ledger):
    """The SuperLink answers for a dead node, and signs with a node id of its own."""

    def line(exchange: int, replies: list[Message]) -> list[Message]:
        for i, reply in enumerate(replies):
            if partition(reply.metadata.src_node_id) == BAD:
                made_up = Message(Error(code=3, reason="node unavailable"), reply_to=reply)
                made_up.metadata.__dict__["_reply_to_message_id"] = (
                    reply.metadata.reply_to_message_id
                )
                made_up.metadata.__dict__["_src_node_id"] = 1
                replies[i] = made_up
        return replies

    strategy = skymask(FedAvg(), ledger=ledger)
    start(strategy, Federation(client_app(), line), 2)
    assert verdicts(ledger) == ["error"] * 2
    assert reason(ledger) == "node unavailable"
    assert str(1) not in entries(ledger)[0]["nodes"]


def test_when_nobody_answers_the_model_stays(ledger):
    strategy = skymask(FedAvg(), ledger=ledger)
    result, _ = start(strategy, Federation(client_app(), lost(range(NODES))), 2)
    assert result.train_metrics_clientapp[1]["skymask-failed"] == NODES
    assert np.array_equal(
        result.arrays["0.weight"].numpy(), model().state_dict()["0.weight"].numpy()
    )


# The order and the number of replies.


def test_replies_in_any_order_and_twice_are_the_same_to_the_bit():
    def muddled(exchange: int, replies: list[Message]) -> list[Message]:
        twice = [*replies, *replies[:3]]
        random.Random(exchange).shuffle(twice)
        return twice

    straight, _ = start(skymask(FedAvg()), Federation(client_app()), 4)
    mixed, _ = start(skymask(FedAvg()), Federation(client_app(), muddled), 4)
    for key, array in straight.arrays.items():
        assert mixed.arrays[key].data == array.data


def test_a_reply_to_no_request_is_ignored(ledger):
    old: list[Message] = []

    def line(exchange: int, replies: list[Message]) -> list[Message]:
        late = list(old)
        old[:] = replies[:2]
        return [*late, *replies]

    strategy = skymask(FedAvg(fraction_evaluate=0.0), ledger=ledger)
    start(strategy, Federation(client_app(), line), 3)
    assert verdicts(ledger, 0) == ["accepted"] * 3


def test_some_of_the_nodes_a_round_are_enough(ledger):
    mod = drills.sign_flip(drills.partitions(2, 5), scale=2.0)
    strategy = skymask(FedAvg(fraction_train=0.75), ledger=ledger)
    _, final = start(strategy, Federation(client_app([mod])), 14)
    assert excluded(strategy) == {2, 5}
    assert final > 0.7


# Waiting.


def test_too_few_nodes_end_in_a_clear_error():
    strategy = skymask(FedAvg(min_available_nodes=NODES + 2), node_deadline=1.5)
    with pytest.raises(TooFewNodes, match=r"8 nodes are connected .* FedAvg still waits for more"):
        start(strategy, Federation(client_app()), 1)


def test_excluded_nodes_are_not_hidden_from_sampling():
    """All eight nodes are wanted; with two excluded Flower would otherwise wait for ever."""
    mod = drills.not_a_number(drills.partitions(2, 5))
    strategy = skymask(
        FedAvg(min_train_nodes=NODES, min_available_nodes=NODES),
        policy=Policy(strikes=1),
        node_deadline=5,
    )
    _, final = start(strategy, Federation(client_app([mod])), 6)
    assert excluded(strategy) == {2, 5}
    assert final > 0.6


# What inner strategies do to the arrays.


def test_a_global_model_in_double_precision_is_fine(ledger):
    result, _ = start(skymask(FedAdam(eta=0.03), ledger=ledger), Federation(client_app()), 4)
    assert result.arrays["0.weight"].numpy().dtype == np.float64
    assert verdicts(ledger, 0) == ["accepted"] * 4


def test_replies_that_the_inner_strategy_takes_apart_are_judged_before(ledger):
    start(skymask(FedMedian(), ledger=ledger), Federation(client_app()), 3)
    assert verdicts(ledger, 0) == ["accepted"] * 3


class Broken(FedAvg):
    """Cannot aggregate, or not to anything finite."""

    result = "raise"

    def aggregate_train(self, server_round, replies):
        if self.result == "raise":
            raise ValueError("broken")
        arrays, metrics = super().aggregate_train(server_round, replies)
        arrays["0.weight"] = type(arrays["0.weight"])(np.full((32, 64), np.inf, "f4"))
        return arrays, metrics


def test_an_inner_strategy_that_fails_by_itself_is_heard():
    with pytest.raises(ValueError, match="broken"):
        start(skymask(Broken()), Federation(client_app()), 1)


def test_an_inner_strategy_that_fails_for_lack_of_replies_costs_the_round(ledger):
    strategy = skymask(Broken(), ledger=ledger)
    start(strategy, Federation(client_app([drills.garbage(HERE)])), 1)
    assert "Broken could not aggregate 7 replies" in entries(ledger)[0]["warnings"][0]


def test_an_aggregate_that_is_not_finite_is_not_taken(ledger):
    inner = Broken()
    inner.result = "inf"
    result, _ = start(skymask(inner, ledger=ledger), Federation(client_app()), 1)
    assert np.isfinite(result.arrays["0.weight"].numpy()).all()
    assert "is not finite" in entries(ledger)[0]["warnings"][0]


def test_an_aggregate_that_is_not_taken_leaves_no_trace_in_the_inner_strategy(ledger):
    """One round overflows; the rounds after it are as if it had not been."""

    class Overflows(FedAvgM):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            if server_round == 2:
                self.momentum_vector = [np.full_like(v, np.inf) for v in self.momentum_vector]
                self.current_arrays = arrays = ArrayRecord(
                    {
                        key: Array(np.full(array.shape, np.inf, "f4"))
                        for key, array in arrays.items()
                    }
                )
            return arrays, metrics

    strategy = skymask(Overflows(server_momentum=0.5), ledger=ledger)
    _, final = start(strategy, Federation(client_app()), 6)
    warned = [line["round"] for line in entries(ledger) if line["warnings"]]
    assert warned == [2]
    assert final > 0.6


def test_batch_norm_under_server_momentum_is_not_put_down_to_the_nodes(ledger, monkeypatch):
    """FedAvgM makes running variances negative, and every honest reply after that would be."""

    def normed():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            norm = nn.BatchNorm1d(32)
            return nn.Sequential(nn.Linear(64, 32), norm, nn.ReLU(), nn.Linear(32, 10))

    monkeypatch.setattr(federation, "model", normed)
    inner = FedAvgM(server_momentum=0.5, fraction_evaluate=0.0)
    strategy = skymask(inner, model=normed, ledger=ledger)
    initial = ArrayRecord(normed().state_dict())
    result = strategy.start(Federation(client_app()), initial, num_rounds=6)
    assert excluded(strategy) == set()
    assert strategy.strikes == {}
    assert result.arrays["1.running_var"].numpy().min() > 0
    warned = " / ".join(text for line in entries(ledger) for text in line["warnings"])
    assert "aggregate of FedAvgM has a negative 1.running_var" in warned
    assert len(result.train_metrics_clientapp) == 6


def test_a_round_in_which_everybody_is_rejected_is_nobodys_strike(ledger):
    """They may all be right: a wrong root data set, for one, makes strangers of all."""

    @dataclass(frozen=True)
    class Nobody:
        def __call__(self, updates, round):
            none = torch.zeros(len(updates), dtype=torch.bool)
            return sm.Decision(torch.zeros(updates.shape[1]), none, reasons=("no",) * len(updates))

    strategy = RobustStrategy(FedAvg(), defence=Nobody(), ledger=ledger, device="cpu")
    _, final = start(strategy, Federation(client_app()), 5)
    assert verdicts(ledger) == ["rejected"] * 5
    assert strategy.strikes == {}
    assert final == accuracy(ArrayRecord(model().state_dict()))


# Evaluation.


def test_evaluation_replies_are_screened_too(ledger):
    def lies(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "evaluate" and HERE(context):
            reply.content["metrics"]["accuracy"] = float("nan")
        return reply

    strategy = skymask(FedAvg(), ledger=ledger)
    result, _ = start(strategy, Federation(client_app([lies])), 2)
    assert 0 < result.evaluate_metrics_clientapp[2]["accuracy"] <= 1
    told = [json.loads(line) for line in ledger.read_text().splitlines() if "evaluation" in line]
    assert "'accuracy' is not finite" in told[0]["evaluation"][str(node_id(BAD))]["reason"]
    assert strategy.strikes == {}


def test_excluded_nodes_do_not_evaluate():
    seen = []

    def note(message, context, call_next):
        if message.metadata.message_type == "evaluate":
            seen.append(context.node_config["partition-id"])
        return call_next(message, context)

    strategy = skymask(FedAvg(), policy=Policy(strikes=1))
    start(strategy, Federation(client_app([note, drills.garbage(HERE)])), 2)
    assert BAD not in seen
    assert set(seen) == set(range(NODES)) - {BAD}


# The policy.

FLIP = drills.sign_flip(HERE, scale=2.0)


def test_who_only_observes_changes_nothing(ledger):
    observed = skymask(FedAvg(), ledger=ledger, policy=Policy(observe=True))
    result, _ = start(observed, Federation(client_app([FLIP])), 3)
    bare, _ = start(FedAvg(), Federation(client_app([FLIP])), 3)
    assert verdicts(ledger) == ["rejected"] * 3
    for key, array in bare.arrays.items():
        assert np.allclose(result.arrays[key].numpy(), array.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", [f"clinic-{BAD}", node_id(BAD)])
def test_a_node_on_the_allow_list_is_not_rejected(name, ledger):
    strategy = skymask(FedAvg(), ledger=ledger, policy=Policy(allow=(name,)))
    start(strategy, Federation(client_app([FLIP])), 2)
    assert verdicts(ledger) == ["accepted"] * 2
    assert reason(ledger).startswith("on the allow-list, else: its updates")


def test_an_excluded_node_is_asked_again_after_its_time(ledger):
    strategy = skymask(FedAvg(), ledger=ledger, policy=Policy(strikes=2, pardon_after=3))
    start(strategy, Federation(client_app([drills.garbage(HERE)])), 9)
    out = ["excluded"] * 3
    assert verdicts(ledger) == ["malformed"] * 2 + out + ["malformed"] + out


def test_standings_are_taken_over_from_the_ledger_and_may_be_pardoned(ledger):
    once = skymask(FedAvg(), ledger=ledger, policy=Policy(strikes=1))
    start(once, Federation(client_app([FLIP])), 2)
    again = skymask(FedAvg(), ledger=ledger)
    start(again, grid := Federation(client_app()), 1)
    assert BAD not in grid.asked[0]
    pardoned = skymask(FedAvg(), ledger=ledger, policy=Policy(pardon=(f"clinic-{BAD}",)))
    start(pardoned, grid := Federation(client_app()), 1)
    assert BAD in grid.asked[0]
    once.pardon(node_id(BAD))
    assert excluded(once) == set()


def test_the_ledger_names_the_node_and_its_key(ledger):
    start(skymask(FedAvg(), ledger=ledger), Federation(client_app()), 1)
    entry = entries(ledger)[0]["nodes"][str(node_id(BAD))]
    assert entry["name"] == "clinic-3"
    assert entry["key"].startswith("sha256:")
    assert isinstance(entry["score"], float)


# Warnings.


def warnings(strategy, ledger: Path, *mods) -> str:
    start(strategy, Federation(client_app(mods)), 1)
    return " / ".join(entries(ledger)[0]["warnings"])


def test_a_server_that_trains_otherwise_than_its_clients_is_warned(ledger):
    strategy = skymask(FedAvg(), local=sm.LocalSGD(steps=50, batch=32, lr=0.3), ledger=ledger)
    assert "root update is" in warnings(strategy, ledger)


def test_more_than_half_rejected_is_a_warning(ledger):
    most = drills.sign_flip(drills.partitions(*range(5)), scale=2.0)
    assert "more than half" in warnings(skymask(FedAvg(), ledger=ledger), ledger, most)


# Settings.


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"node_deadline": 0}, "node_deadline"),
        ({"max_weight_ratio": 0.5}, "max_weight_ratio"),
        ({"combine": "both"}, "combine"),
        ({"loss": None}, "loss is missing"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, told):
    with pytest.raises(InputError, match=told):
        skymask(FedAvg(), **settings)


def test_an_inner_strategy_of_another_kind_is_refused():
    with pytest.raises(InputError, match="must be a strategy of flwr"):
        skymask(sm.FedAvg())


def test_a_rule_that_needs_a_root_data_set_says_so():
    strategy = RobustStrategy(FedAvg(), defence=sm.FLTrust(), device="cpu")
    with pytest.raises(InputError, match="server_update"):
        start(strategy, Federation(client_app()), 1)


def test_too_few_replies_for_the_rule_cost_the_round_only(ledger):
    strategy = RobustStrategy(FedAvg(), defence=sm.Bulyan(2), ledger=ledger, device="cpu")
    start(strategy, Federation(client_app(), lost({BAD})), 2)
    assert verdicts(ledger, 0) == ["unjudged"] * 2
    assert "global model stays" in entries(ledger)[0]["warnings"][0]


# Going on.


class Killed(BaseException):
    """As if the process had been killed."""


def dying(after: int):
    """A network on which the server is killed in the so-manieth exchange."""

    def line(exchange: int, replies: list[Message]) -> list[Message]:
        if exchange == after:
            raise Killed
        return replies

    return line


@pytest.mark.parametrize("make", [FedAvg, lambda: FedAdam(eta=0.03)], ids=["FedAvg", "FedAdam"])
@pytest.mark.parametrize("exchange", [1, 2, 5, 6])
def test_a_killed_server_goes_on_as_if_nothing_had_happened(make, exchange, tmp_path):
    def run(folder: str, line=None):
        path = tmp_path / folder
        strategy = skymask(make(), ledger=path / "ledger.jsonl", checkpoint=path)
        grid = Federation(client_app([FLIP]), line or (lambda exchange, replies: replies))
        return start(strategy, grid, 5, evaluate_fn=evaluated)[0], strategy, path / "ledger.jsonl"

    whole, uninterrupted, straight = run("whole")
    with pytest.raises(Killed):
        run("killed", dying(exchange))
    result, strategy, ledger = run("killed")
    assert [line["round"] for line in entries(ledger)] == [1, 2, 3, 4, 5]
    for key, array in whole.arrays.items():
        assert result.arrays[key].numpy().dtype == array.numpy().dtype
        assert np.allclose(result.arrays[key].numpy(), array.numpy(), atol=1e-6)
    assert strategy.standings == uninterrupted.standings
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2, 3, 4, 5]
    for one, other in zip(entries(ledger), entries(straight), strict=True):
        assert {n: e["verdict"] for n, e in one["nodes"].items()} == {
            n: e["verdict"] for n, e in other["nodes"].items()
        }


def test_a_run_that_has_ended_is_not_run_again(tmp_path):
    start(skymask(FedAvg(), checkpoint=tmp_path), Federation(client_app()), 2)
    grid = Federation(client_app())
    result, _ = start(skymask(FedAvg(), checkpoint=tmp_path), grid, 2)
    assert grid.asked == []
    assert list(result.train_metrics_clientapp) == [1, 2]


def test_another_strategys_checkpoint_is_refused(tmp_path):
    start(skymask(FedAvg(), checkpoint=tmp_path), Federation(client_app()), 1)
    with pytest.raises(InputError, match="inner FedAvg, defence SkyMask but this is inner FedAdam"):
        start(skymask(FedAdam(), checkpoint=tmp_path), Federation(client_app()), 2)
