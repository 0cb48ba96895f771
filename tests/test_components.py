"""Components as text and as JSON."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skymask.attacks import ATTACKS, FangTrim, MinSum, NoAttack
from skymask.components import build, describe, parse, settings_of
from skymask.defences import DEFENCES, FedAvg, PaperSkyMask, SkyMask, SkyMaskNR
from skymask.errors import InputError
from skymask.experiment import KINDS


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("none", "attack", NoAttack()),
        ("min-sum", "attack", MinSum()),
        ("min-sum:", "attack", MinSum()),
        ("min-sum:limit=max,direction=sign", "attack", MinSum("sign", "max")),
        ("fang-trim:stretch=3", "attack", FangTrim(3)),
        ("fang-trim: stretch = 2.5 ", "attack", FangTrim(2.5)),
        ("skymask:steps=5,gamma=1e3,memory=0", "defence", SkyMask(1e3, 5, memory=0)),
        ("skymask-nr:relative=True", "defence", SkyMaskNR()),
        ("skymask-paper", "defence", PaperSkyMask()),
        ("skymask-paper:gamma=1e8", "defence", PaperSkyMask(1e8)),
        ("skymask-paper:relative=true", "defence", PaperSkyMask(relative=True)),
    ],
)
def test_text(text, kind, expected):
    assert parse(text, KINDS, kind) == expected


def test_defaults_fill_what_the_text_leaves_out_and_what_there_is():
    assert parse("skymask-paper", KINDS, "defence", gamma=5.0) == PaperSkyMask(5.0)
    assert parse("skymask-paper:gamma=2", KINDS, "defence", gamma=5.0).gamma == 2
    assert parse("fedavg", KINDS, "defence", gamma=5.0) == FedAvg()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("skymsk", "defence 'skymsk' is not known; did you mean 'skymask'"),
        ("", "choose one of: bucketing, bulyan"),
        ("skymask:gama=2", "setting 'gama' is not known; did you mean 'gamma'"),
        ("fedavg:gamma=2", "defence fedavg setting 'gamma' is not known"),
        ("skymask:gamma", "'gamma' has no value; write skymask:gamma=VALUE"),
        ("skymask:gamma=fast", "gamma is 'fast'"),
        ("skymask-nr:relative=3", "relative is 3"),
        ("skymask:relative=true", "setting 'relative' is not known"),
        ("skymask:memory=1", "memory is 1 but must be a number at least 0 and below 1"),
        ("skymask:larger=1", "larger is 1 but must be a number above 1"),
        ("skymask:steps=true", "steps is True"),
        ("skymask:dims=None", "dims"),
        ("skymask:dims=1.5", "dims is 1.5"),
        ("skymask:steps=2.5", "steps is 2.5"),
        ("skymask:tau=1", "tau is 1 but must be a number above 0 and below 1"),
    ],
)
def test_bad_text_is_refused_with_the_field(text, says):
    with pytest.raises(InputError, match=says):
        parse(text, KINDS, "defence")


@pytest.mark.parametrize(
    "text", ["min-sum:limit=least", "min-sum:direction=3", "fang-trim:stretch=1"]
)
def test_bad_values_of_attacks_are_refused(text):
    with pytest.raises(InputError, match=text.split(":")[1].split("=")[0]):
        parse(text, KINDS, "attack")


@given(st.sampled_from(["skymask", "min-sum", "fedavg", ""]), st.text())
def test_any_text_is_a_component_or_an_input_error(name, tail):
    makers = DEFENCES | ATTACKS
    try:
        made = parse(f"{name}:{tail}", {"any": makers}, "any")
    except InputError:
        return
    assert type(made) is makers[name]


@pytest.mark.parametrize("kind", KINDS)
def test_json_brings_every_component_back(kind):
    for maker in KINDS[kind].values():
        component = maker()
        described = json.loads(json.dumps(describe(component, KINDS, kind)))
        assert build(described, KINDS, kind) == component


def test_settings_that_are_not_the_defaults_survive_json():
    described = describe(MinSum("std", "max"), KINDS, "attack")
    assert described == {
        "name": "min-sum",
        "settings": {"direction": "std", "limit": "max", "knowledge": "all"},
    }
    assert build(described, KINDS, "attack") == MinSum("std", "max")


def test_a_component_of_ones_own_is_named_by_its_class():
    @dataclass(frozen=True)
    class Mine:
        rate: float = 0.5
        what: object = dict

    described = describe(Mine(), KINDS, "defence")
    assert described["name"].endswith("Mine")
    assert described["settings"] == {"rate": 0.5, "what": "<class 'dict'>"}
    assert describe(lambda: None, KINDS, "defence")["settings"] == {}
    with pytest.raises(InputError, match="is not known"):
        build(described, KINDS, "defence")


def test_settings_of_a_rule_and_of_a_maker():
    assert settings_of(SkyMask)["tau"] == 0.5
    assert settings_of(SkyMask.paper) == {"gamma": 1e7}


@pytest.mark.parametrize(
    "described",
    [None, [], {}, {"name": 1, "settings": {}}, {"name": "krum"}, {"name": "krum", "settings": []}],
)
def test_what_describe_would_not_have_written_is_refused(described):
    with pytest.raises(InputError, match=r"defence is .* name and settings"):
        build(described, KINDS, "defence")


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(InputError, match=r"f is 9+\.\.\. but must be"):
        parse("krum:f=" + "9" * 4000, KINDS, "defence")


@pytest.mark.parametrize(
    "text", ["nnm:aggregator=" * 500 + "median", "(" * 3000 + "x" + ")" * 3000]
)
def test_very_deep_text_is_refused(text):
    with pytest.raises(InputError, match=r"levels deep|not known"):
        parse(text, KINDS, "defence")
