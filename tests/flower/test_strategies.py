"""SkyMask around every strategy of Flower: the malicious end up excluded, nobody else does."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch.nn.functional import cross_entropy

import skymask as sm
from skymask.flower import RobustStrategy, drills
from skymask.report.read import read_runs
from tests.flower.federation import (
    LOCAL,
    NODES,
    Federation,
    accuracy,
    client_app,
    excluded,
    model,
    root,
    skymask,
    start,
)

ROUNDS = 8
BAD = (2, 5)

# Strategies that need to know how many clients may be bad are told of none: SkyMask has thrown them
# out by then. Bulyan wants 4 f + 3 replies, which 8 nodes without 2 only give for f = 0.
INNER: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.01),
    "FedAdam": lambda: FedAdam(eta=0.03),
    "FedYogi": lambda: FedYogi(eta=0.03),
    "FedAdagrad": lambda: FedAdagrad(eta=0.05),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5),
    "Krum": Krum,
    "MultiKrum": lambda: MultiKrum(num_nodes_to_select=4),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Bulyan": Bulyan,
    "QFedAvg": lambda: QFedAvg(client_learning_rate=LOCAL.lr, train_loss_key="loss"),
    "clipping": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 5.0, NODES),
}
ATTACKS = {
    "sign-flip": drills.sign_flip(drills.partitions(*BAD), scale=2.0),
    "scaling": drills.scaling(drills.partitions(*BAD), factor=-10.0),
}
inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


@pytest.fixture(scope="module")
def start_accuracy() -> float:
    return accuracy(ArrayRecord(model().state_dict()))


@inner
def test_without_an_attack_nobody_is_excluded(make, start_accuracy):
    strategy = skymask(make())
    result, final = start(strategy, Federation(client_app()), ROUNDS)
    assert excluded(strategy) == set()
    assert final > start_accuracy + 0.3
    assert [m["skymask-rejected"] for m in result.train_metrics_clientapp.values()] == [0] * ROUNDS


@inner
@pytest.mark.parametrize("attack", ATTACKS)
def test_both_malicious_nodes_end_excluded_and_no_honest_one(make, attack, start_accuracy):
    strategy, grid = skymask(make()), Federation(client_app([ATTACKS[attack]]))
    result, final = start(strategy, grid, ROUNDS)
    assert excluded(strategy) == set(BAD)
    assert final > start_accuracy + 0.3
    assert grid.asked[-1] == [i for i in range(NODES) if i not in BAD]
    for array in result.arrays.values():
        assert np.isfinite(array.numpy()).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_are_real(attack):
    """Without SkyMask both take the model down; else the tests above would show nothing."""
    grid = Federation(client_app([ATTACKS[attack]]))
    attacked, clean = (
        start(FedAvg(), grid, ROUNDS)[1],
        start(FedAvg(), Federation(client_app()), ROUNDS)[1],
    )
    assert attacked < clean - 0.3


def test_flipped_labels_are_found_too():
    strategy = skymask(FedAvg())
    _, final = start(strategy, Federation(client_app(flipped=BAD)), 12)
    assert excluded(strategy) == set(BAD)
    assert final > 0.8


# Other defences in SkyMask's place.


@pytest.mark.parametrize(
    "defence", [sm.Median(), sm.TrimmedMean(2), sm.Bulyan(1), sm.FLTrust(), sm.GeometricMedian()]
)
@pytest.mark.parametrize("make", [FedAvg, lambda: FedAdam(eta=0.03)], ids=["FedAvg", "FedAdam"])
def test_any_defence_can_stand_in(defence, make):
    settings = {}
    if isinstance(defence, sm.FLTrust):
        settings = {"model": model, "loss": cross_entropy, "root_data": root(), "local": LOCAL}
    strategy = RobustStrategy(make(), defence=defence, device="cpu", **settings)
    grid = Federation(client_app([ATTACKS["scaling"]]))
    _, final = start(strategy, grid, ROUNDS)
    assert final > 0.6


def test_what_the_inner_strategy_makes_of_it_is_the_defences_aggregate():
    """FedAvg around the median's aggregate is the median: held against one computed by hand."""
    sent = []

    def keep(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            sent.append({k: v.numpy() for k, v in reply.content["arrays"].items()})
        return reply

    strategy = RobustStrategy(FedAvg(), defence=sm.Median(), device="cpu")
    result, _ = start(strategy, Federation(client_app([keep])), 1)
    for key, array in result.arrays.items():
        expected = np.median(np.stack([own[key] for own in sent]), axis=0)
        assert np.allclose(array.numpy(), expected, atol=1e-6)


def test_skymask_hands_the_accepted_replies_on_as_they_are():
    """Without an attack the model is that of the bare inner strategy, but for the order of sums."""
    guarded, _ = start(skymask(FedAvg()), Federation(client_app()), 3)
    bare, _ = start(FedAvg(), Federation(client_app()), 3)
    for key, array in bare.arrays.items():
        assert np.allclose(guarded.arrays[key].numpy(), array.numpy(), atol=1e-5)


def test_the_ledger_keeps_close_ups_and_the_servers_evaluation_for_the_report(tmp_path):
    strategy = skymask(FedAvg(), ledger=tmp_path / "ledger.jsonl")
    grid = Federation(client_app([ATTACKS["sign-flip"]]))
    start(strategy, grid, 4, evaluate_fn=lambda _, a: MetricRecord({"accuracy": accuracy(a)}))
    (run,) = read_runs([tmp_path])
    assert [closeup.round for closeup in run.closeups] == [0, 1, 2, 3]
    first, last = run.closeups[0], run.closeups[-1]
    assert len(first.clients) == NODES
    assert first.points.shape == (NODES + 1, 2)
    assert {"score", "alignment", "length"} <= first.values.keys()
    assert set(last.clients) == set(run.verdicts.clients) - set(map(str, strategy.excluded))
    assert run.totals["accuracy"] > 0.5
