import dataclasses
import json

import pytest
import torch

import skymask as sm
from skymask.experiment import DEFAULTS, from_json, to_json
from skymask.models import logistic


def own_data(classes: int = 3) -> sm.Dataset:
    labels = torch.arange(120) % classes
    batch = sm.Batch(torch.randn(120, 4, generator=torch.Generator().manual_seed(1)), labels)
    return sm.Dataset("mine", batch, batch, classes)


@pytest.mark.parametrize("name", DEFAULTS)
def test_manifest_round_trip_is_the_same_experiment(name):
    experiment = sm.Experiment(data=name, attack=sm.MinSum("std"), defence=sm.SkyMask.paper(2.0))
    written = json.loads(json.dumps(to_json(experiment.resolved())))
    assert from_json(written) == experiment.resolved()


def test_every_field_is_in_the_manifest():
    written = to_json(sm.Experiment().resolved())
    assert set(written) == {field.name for field in dataclasses.fields(sm.Experiment)}


def test_defaults_are_the_papers():
    fashion = sm.Experiment(data="fashion-mnist").resolved()
    assert (fashion.clients, fashion.rounds, fashion.server_lr) == (100, 2500, 0.5)
    assert fashion.local == sm.LocalSGD(steps=1, batch=32, lr=0.5)
    assert fashion.partition == sm.Groups(q=0.5)
    assert (fashion.malicious, fashion.root_size, fashion.root_bias) == (0.2, 100, 0.1)
    cifar = sm.Experiment(data="cifar-10").resolved()
    assert (cifar.clients, cifar.rounds, cifar.model) == (100, 500, "resnet-20")
    assert cifar.local is not None
    assert cifar.local.steps == 5
    assert sm.Experiment(data="har").resolved().clients == 30


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("data", "fashion-mnits", "did you mean 'fashion-mnist'"),
        ("model", "cnnn", "did you mean 'cnn'"),
        ("malicious", 1.0, "malicious is 1.0 but must be at least 0 and below 1"),
        ("malicious", -0.1, "malicious is -0.1"),
        ("malicious", float("nan"), "malicious is nan"),
        ("participation", 0.0, "participation is 0.0 but must be above 0"),
        ("clients", 0, "clients is 0 but must be a whole number, at least 1"),
        ("rounds", 0, "rounds is 0"),
        ("rounds", 2.5, "rounds is 2.5 but must be a whole number"),
        ("seed", "x", "seed is 'x' but must be a whole number"),
        ("attack", "min-sum", "attack is 'min-sum' but must be an object"),
        ("attack", object(), "an object with a method poison_data"),
        ("defence", sm.SkyMask, "must be an object such as"),
        ("model", logistic(4, 3), "model is 'Sequential' but must be a name or a function"),
        ("eval_every", 0, "eval_every is 0"),
        ("server_lr", float("inf"), "server_lr is inf"),
        ("root_size", 0, "root_size is 0"),
        ("root_bias", 1.5, "root_bias is 1.5 but must be between 0 and 1"),
        ("root_noise", -0.1, "root_noise is -0.1 but must be between 0 and 1"),
        ("root_noise", float("nan"), "root_noise is nan but must be between 0 and 1"),
    ],
)
def test_bad_field_says_value_and_bound(field, value, says):
    with pytest.raises(sm.InputError, match=says.replace("'", ".")):
        sm.Experiment(**{field: value})


def test_own_data_needs_model_and_clients():
    with pytest.raises(sm.InputError, match="model is None"):
        sm.Experiment(data=own_data(), clients=4).resolved()
    with pytest.raises(sm.InputError, match="clients is None"):
        sm.Experiment(data=own_data(), model="logistic").resolved()


def test_own_parts_are_named_and_not_rebuilt():
    written = to_json(sm.Experiment(data=own_data(), model=lambda: logistic(4, 3), clients=4))
    assert written["data"] == "own: mine"
    with pytest.raises(sm.InputError, match="which is your own; resume it from Python"):
        from_json(written)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data": ["digits"]}, "field data is"),
        ({"loss": "hinge"}, "loss is 'hinge' but must be 'cross_entropy'"),
        ({"local": None}, "field local is None"),
        ({"local": {"speed": 1}}, "field local is .*speed"),
        ({"local": {"lr": "fast"}}, "lr is 'fast' but must be a positive number"),
        ({"malicious": "many"}, "malicious is 'many' but must be at least 0"),
        ({"server_lr": 10**400}, "server_lr is 10+... but must be a positive number"),
        ({"honest_only": "x"}, "honest_only is 'x' but must be True or False"),
        ({"attack": {"name": []}}, "attack is .* name and settings"),
        ({"sede": 1}, "did you mean 'seed'"),
    ],
)
def test_a_manifest_that_was_not_written_by_us_is_refused(changed, says):
    with pytest.raises(sm.InputError, match=says):
        from_json(to_json(sm.Experiment().resolved()) | changed)


def test_a_manifest_that_lacks_a_field_is_refused():
    written = to_json(sm.Experiment().resolved())
    del written["local"]
    with pytest.raises(sm.InputError, match="one with a field 'local'"):
        from_json(written)
