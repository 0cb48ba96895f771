"""The drill mods: whom they change, what they send, and that they say so."""

import logging
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import Mod

from skymask.errors import InputError
from skymask.flower import drills

HERE = drills.partitions(3, 5)
SENT = np.array([1.0, -2.0, 4.0], "f4")
OWN = np.array([1.5, -2.0, 3.0], "f4")


def context(partition: int = 3, **config: object) -> Context:
    return Context(1, 7, {"partition-id": partition, **config}, RecordDict(), {})


def asked(mod: Mod, context: Context, kind: str = "train") -> Message:
    """A client's reply to a request, through `mod`."""
    arrays = {"weight": Array(SENT), "steps": Array(np.array(4))}
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    request = Message(content, dst_node_id=7, message_type=kind)

    def client(message: Message, context: Context) -> Message:
        arrays = {"weight": Array(OWN), "steps": Array(np.array(5))}
        metrics = MetricRecord({"num-examples": 20, "loss": 0.5})
        parts = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(parts), reply_to=message)

    return mod(request, context, client)


def weight(reply: Message) -> np.ndarray:
    return reply.content["arrays"]["weight"].numpy()


# Whom they change.

MODS = {
    "sign_flip": drills.sign_flip(HERE),
    "scaling": drills.scaling(HERE),
    "not_a_number": drills.not_a_number(HERE),
    "wrong_shape": drills.wrong_shape(HERE),
    "garbage": drills.garbage(HERE),
    "wrong_keys": drills.wrong_keys(HERE),
    "examples": drills.examples(HERE, 1e15),
    "missing_metrics": drills.missing_metrics(HERE),
    "additional_metrics": drills.additional_metrics(HERE),
    "fails": drills.fails(HERE),
    "slow": drills.slow(HERE, 60.0),
}


@pytest.mark.parametrize(
    ("partition", "kind"), [(4, "train"), (3, "evaluate")], ids=["honest node", "evaluation"]
)
@pytest.mark.parametrize("mod", MODS.values(), ids=MODS)
def test_honest_nodes_and_evaluation_are_left_alone(mod, partition, kind, caplog):
    with caplog.at_level(logging.WARNING, "flwr"):
        reply = asked(mod, context(partition), kind)
    assert {k: v.data for k, v in reply.content["arrays"].items()} == {
        "weight": Array(OWN).data,
        "steps": Array(np.array(5)).data,
    }
    assert reply.content["metrics"] == {"num-examples": 20, "loss": 0.5}
    assert "drill" not in caplog.text


@pytest.mark.parametrize(
    "mod", [mod for name, mod in MODS.items() if name not in ("fails", "slow")]
)
def test_every_use_is_a_warning_in_the_log(mod, caplog):
    with caplog.at_level(logging.WARNING, "flwr"):
        for _ in range(2):
            asked(mod, context())
    told = [record for record in caplog.records if "skymask drill" in record.getMessage()]
    assert len(told) == 2
    assert {record.levelno for record in told} == {logging.WARNING}


def test_a_node_can_be_picked_by_its_configuration():
    mod = drills.scaling(drills.configured(), factor=0.0)
    assert np.array_equal(weight(asked(mod, context(drill=True))), SENT)
    assert np.array_equal(weight(asked(mod, context(drill=False))), OWN)
    assert np.array_equal(weight(asked(mod, context())), OWN)


# What they send.


def test_a_sign_flip_goes_as_far_the_other_way():
    assert np.allclose(weight(asked(drills.sign_flip(HERE), context())), SENT - (OWN - SENT))
    twice = asked(drills.sign_flip(HERE, scale=2.0), context())
    assert np.allclose(weight(twice), SENT - 2 * (OWN - SENT))


def test_scaling_goes_farther():
    reply = asked(drills.scaling(HERE, factor=10.0), context())
    assert np.allclose(weight(reply), SENT + 10 * (OWN - SENT))


@pytest.mark.parametrize("name", ["sign_flip", "scaling", "not_a_number"])
def test_shapes_dtypes_and_counters_stay(name):
    """So that only a rule that looks at the values can tell (or the screening, for NaN)."""
    reply = asked(MODS[name], context())
    assert weight(reply).shape == SENT.shape
    assert weight(reply).dtype == SENT.dtype
    assert reply.content["arrays"]["steps"].numpy() == 5


def test_not_a_number_is_none():
    assert np.isnan(weight(asked(MODS["not_a_number"], context()))).all()


def test_a_wrong_shape_is_an_array_of_another_shape():
    assert weight(asked(MODS["wrong_shape"], context())).shape == (4,)


def test_garbage_does_not_decode():
    array = asked(MODS["garbage"], context()).content["arrays"]["weight"]
    assert array.shape == SENT.shape  # what it says of itself is right
    with pytest.raises(ValueError, match="pickled"):
        array.numpy()


def test_wrong_keys_are_other_names():
    reply = asked(MODS["wrong_keys"], context())
    assert set(reply.content["arrays"]) == {"other.weight", "other.steps"}


@pytest.mark.parametrize("stated", [1e15, -5.0, 0.0])
def test_examples_are_stated(stated):
    reply = asked(drills.examples(HERE, stated), context())
    assert reply.content["metrics"]["num-examples"] == stated
    assert np.array_equal(weight(reply), OWN)


def test_metrics_can_be_missing_or_too_many():
    assert not asked(MODS["missing_metrics"], context()).content.metric_records
    more = asked(MODS["additional_metrics"], context()).content["metrics"]
    assert set(more) == {"num-examples", "loss", "of-my-own"}


def test_a_failure_is_an_exception():
    with pytest.raises(RuntimeError, match="drill"):
        asked(MODS["fails"], context())


def test_a_slow_node_waits_and_then_answers_as_it_would(monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert np.array_equal(weight(asked(MODS["slow"], context())), OWN)
    assert waited == [60.0]


# Labels.


def test_flipped_labels_are_mirrored():
    labels = torch.tensor([0, 1, 9, 4])
    assert drills.flip_labels(labels, 10).tolist() == [9, 8, 0, 5]
    assert drills.flip_labels(drills.flip_labels(labels, 10), 10).equal(labels)
    assert labels.tolist() == [0, 1, 9, 4]
    assert drills.flip_labels(torch.tensor([], dtype=torch.int64), 10).numel() == 0


@pytest.mark.parametrize("labels", [[0, 10], [-1, 2]])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        drills.flip_labels(torch.tensor(labels), 10)
