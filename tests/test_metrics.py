"""What is measured of a global model."""

import pytest
import torch
import torch.nn.functional as F

from skymask import Batch
from skymask.attacks.backdoor import Scaling
from skymask.flat import flat_model
from skymask.metrics import closeup, evaluation
from skymask.types import Backdoor, Decision


def linear(classes: int = 3) -> torch.nn.Module:
    """Puts a sample in the class of its largest feature."""
    module = torch.nn.Linear(classes, classes, bias=False)
    torch.nn.init.eye_(module.weight)
    return module


def marked(inputs: torch.Tensor) -> torch.Tensor:
    """Feature 0 becomes 2."""
    return torch.cat([torch.full_like(inputs[:, :1], 2.0), inputs[:, 1:]], 1)


def test_attack_success_is_of_all_samples_and_of_the_other_classes():
    # The trigger wins over the class 1 of the third sample, not over those of the last two.
    inputs = torch.tensor([[1.0, 0, 0], [0.5, 0, 0], [0, 1, 0], [0, 3, 0], [0, 0, 4]])
    test = Batch(inputs, torch.tensor([0, 1, 1, 1, 2]))
    model = flat_model(linear())
    found = evaluation(model, F.cross_entropy, test, Backdoor(0, marked))(*model.initial())
    assert found["accuracy"] == 4 / 5
    assert found["attack_success"] == 3 / 5  # the first two are in class 0 without any trigger
    assert found["attack_success_others"] == 2 / 4
    assert evaluation(model, F.cross_entropy, test)(*model.initial()).keys() == {"accuracy", "loss"}


def test_attack_success_is_undefined_of_others_where_there_are_none():
    test = Batch(torch.eye(3)[:1].repeat(4, 1), torch.zeros(4).long())
    model = flat_model(linear())
    found = evaluation(model, F.cross_entropy, test, Backdoor(0, marked))(*model.initial())
    assert found["attack_success"] == 1
    assert found["attack_success_others"] is None


def test_attack_success_is_measured_with_the_whole_test_set_in_parts():
    """More samples than are evaluated at once; every third is of the target class."""
    inputs = torch.eye(3).repeat(900, 1)
    test = Batch(inputs, torch.arange(2700) % 3)
    model = flat_model(linear())
    found = evaluation(model, F.cross_entropy, test, Backdoor(2, torch.clone))(*model.initial())
    assert found["attack_success"] == pytest.approx(1 / 3)
    assert found["attack_success_others"] == 0


def test_the_test_set_itself_does_not_change():
    inputs = torch.rand(10, 3)
    before = inputs.clone()
    model = flat_model(linear())
    test = Batch(inputs, torch.arange(10) % 3)
    evaluation(model, F.cross_entropy, test, Scaling().backdoor())(*model.initial())
    assert inputs.equal(before)


def decision(points: torch.Tensor | None, **evidence: object) -> Decision:
    accepted = torch.tensor([True, True, False])
    parts = evidence if points is None else {"points": points, **evidence}
    return Decision(torch.zeros(4), accepted, torch.tensor([1.23456, 0.0, -7.0]), evidence=parts)


def test_a_closeup_keeps_what_there_is_of_each_client_and_the_root():
    made = decision(
        torch.tensor([[0.0, 0.1, 9.0], [0.0, 0.2, 9.0], [5.0, 0.0, 9.0], [0.1, 0.0, 9.0]]),
        length=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        gain=3.0,
        matrix=torch.zeros(3, 2),
        other=torch.zeros(7),
        ones={"fc.weight": torch.tensor([0.5, 0.25, 0.125, 1.0])},
    )
    found = closeup(made, torch.tensor([4, 8, 15]))
    assert found["clients"] == [4, 8, 15]
    assert found["points"] == [[0.0, 0.1], [0.0, 0.2], [5.0, 0.0], [0.1, 0.0]]
    assert found["apart"] == [False, False, True, False]
    assert found["values"] == {"score": [1.235, 0.0, -7.0], "length": [1.0, 2.0, 3.0, 4.0]}
    assert found["ones"] == {"fc.weight": [0.5, 0.25, 0.125, 1.0]}


def test_without_a_root_the_smaller_cluster_is_the_other_one():
    points = torch.tensor([[5.0, 0.0], [0.0, 0.2], [0.0, 0.1]])
    assert closeup(decision(points), torch.arange(3))["apart"] == [True, False, False]


def test_a_rule_without_evidence_has_a_closeup_too():
    assert closeup(decision(None), torch.arange(3)).keys() == {"clients", "values"}
