"""Components by name: the text a person types, the JSON a manifest holds, and back.

A component (attack, defence, partition) is a frozen dataclass whose fields are its settings, each
with a bound that is declared beside its default (`setting`) and checked when one is made
(`check_settings`). Its text is `name` or `name:field=value,field=value`, its JSON
`{"name": ..., "settings": {...}}`. A setting may be a component itself, in text
`filtered:detector=skymask,aggregator=(krum:f=3)`, or several of them, joined by `+`.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from skymask.errors import InputError, require, told, unknown

Makers = Mapping[str, Callable[..., Any]]
"""Name -> what makes the component from its settings."""
Kinds = Mapping[str, Makers]
"""Kind ("attack", "defence", ...) -> its makers."""

_LEVELS = 20
"""Components inside one another; more could exhaust the stack."""

_METHODS = {"attack": ("poison_data", "poison_updates"), "defence": ("__call__",)}


@dataclass(frozen=True)
class Bound:
    """What a setting may be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]
    kind: str | None = None
    """The kind of component that the setting holds, if it holds any."""


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Bound:
    """A finite number within these ends."""
    ends = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    said = " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)

    def holds(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )

    return Bound(f"a number {said}" if said else "a finite number", holds)


def count(at_least: int = 1) -> Bound:
    """A whole number, not below `at_least`."""
    return Bound(
        f"a whole number, at least {at_least}",
        lambda value: type(value) is int and value >= at_least,
    )


def one_of(*choices: str) -> Bound:
    """One of these words."""
    *most, last = map(repr, choices)
    return Bound(f"{', '.join(most)} or {last}" if most else last, lambda value: value in choices)


def flag() -> Bound:
    """True or False."""
    return Bound("True or False", lambda value: isinstance(value, bool))


def component(kind: str) -> Bound:
    """A component of this kind, such as an attack."""
    return Bound(f"{_article(kind)} object", lambda value: _is_component(value, kind), kind)


def several(kind: str) -> Bound:
    """A tuple of components of this kind, at least one."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and bool(value)
            and all(_is_component(part, kind) for part in value)
        )

    return Bound(f"a tuple of {kind} objects, at least one", holds, kind)


def optional(bound: Bound) -> Bound:
    """None, or what `bound` allows."""
    return Bound(
        f"{bound.text}, or None", lambda value: value is None or bound.holds(value), bound.kind
    )


def setting(default: Any, bound: Bound) -> Any:
    """A dataclass field with this default that must stay within `bound`."""
    return dataclasses.field(default=default, metadata={"bound": bound})


def check_settings(made: Any) -> None:
    """Raise an `InputError` for the first field of `made` outside its bound."""
    for field, bound in bounds_of(type(made)).items():
        value = getattr(made, field)
        require(bound.holds(value), field, value, bound.text)


def parse(text: str, kinds: Kinds, kind: str, **defaults: Any) -> Any:
    """The component of this kind that `text` names; `defaults` fill settings the text leaves out.

    A default for a setting that the component does not have is left aside; those it has reach
    components within it too.

    Raises `InputError` for an unknown name or setting (with the nearest), and for a bad value.
    """
    return build(_described(text, kinds, kind, defaults), kinds, kind)


def build(described: Mapping[str, Any], kinds: Kinds, kind: str, levels: int = _LEVELS) -> Any:
    """The component that `described` (of `describe`) stands for.

    Raises `InputError` as `parse` does, for components nested more than `levels` deep, and for
    what `describe` would not have written.
    """
    _check_levels(kind, levels)
    if (
        not isinstance(described, Mapping)
        or not isinstance(described.get("name"), str)
        or not isinstance(described.get("settings"), Mapping)
    ):
        raise InputError(f"{kind} is {told(described)} but must be an object: name and settings")
    name, settings = described["name"], dict(described["settings"])
    maker = _maker(name, kinds, kind)
    known, bounds = settings_of(maker), bounds_of(maker)
    for field, value in settings.items():
        if field not in known:
            raise unknown(f"{kind} {name} setting", field, known)
        inner = bounds[field].kind if field in bounds else None
        if inner is not None and isinstance(value, list):
            settings[field] = tuple(build(part, kinds, inner, levels - 1) for part in value)
        elif inner is not None and isinstance(value, Mapping):
            settings[field] = build(value, kinds, inner, levels - 1)
        elif field in bounds:
            require(
                bounds[field].holds(value),
                f"{kind} {name} setting {field}",
                value,
                bounds[field].text,
            )
        else:
            _check_like(f"{kind} {name} setting {field}", value, known[field])
    try:
        return maker(**settings)
    except TypeError as error:
        raise InputError(f"{kind} {name} does not take these settings: {error}") from error


def describe(made: Any, kinds: Kinds, kind: str) -> dict[str, Any]:
    """`made` as JSON can hold it. A user's own type is named by its module and class."""
    own = f"{type(made).__module__}.{type(made).__qualname__}"
    name = next((key for key, maker in kinds[kind].items() if maker is type(made)), own)
    if not dataclasses.is_dataclass(made):
        return {"name": name, "settings": {}}
    bounds = bounds_of(type(made))

    def plain(field: str) -> Any:
        value, inner = getattr(made, field), bounds[field].kind if field in bounds else None
        if inner is not None and isinstance(value, tuple):
            return [describe(part, kinds, inner) for part in value]
        if inner is not None and value is not None:
            return describe(value, kinds, inner)
        return value if isinstance(value, int | float | str | bool | None) else repr(value)

    return {"name": name, "settings": {f.name: plain(f.name) for f in dataclasses.fields(made)}}


def settings_of(maker: Callable[..., Any]) -> dict[str, Any]:
    """The settings that `maker` takes, with their defaults."""
    parameters = inspect.signature(maker).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def bounds_of(maker: Callable[..., Any]) -> dict[str, Bound]:
    """The bounds of the settings that `maker` takes, where they are declared."""
    made = getattr(maker, "__self__", maker)  # a classmethod such as SkyMask.paper
    if not dataclasses.is_dataclass(made):
        return {}
    bounds = {f.name: f.metadata["bound"] for f in dataclasses.fields(made) if f.metadata}
    return {name: bound for name, bound in bounds.items() if name in settings_of(maker)}


def _described(
    text: str, kinds: Kinds, kind: str, defaults: Mapping[str, Any], levels: int = _LEVELS
) -> dict[str, Any]:
    _check_levels(kind, levels)
    name, _, tail = _bare(text).partition(":")
    maker = _maker(name, kinds, kind)
    bounds = bounds_of(maker)
    known = settings_of(maker)
    settings = {field: value for field, value in defaults.items() if field in known}
    for field, default in known.items():  # what is given to the whole is given to its parts
        inner = bounds[field].kind if field in bounds else None
        if inner is not None and isinstance(default, tuple):
            settings[field] = [_filled(part, kinds, inner, defaults) for part in default]
        elif inner is not None and default is not None:
            settings[field] = _filled(default, kinds, inner, defaults)
    for item in filter(None, _split(tail, ",")):
        field, equals, value = item.partition("=")
        field = field.strip().replace("-", "_")
        if not equals:
            raise InputError(
                f"{kind} setting {told(item)} has no value; write {name}:{field}=VALUE"
            )
        bound = bounds.get(field)
        if bound is None or bound.kind is None or value.strip() == "None":
            settings[field] = _value(value.strip())
        elif isinstance(known[field], tuple):
            parts = _split(value, "+")
            settings[field] = [
                _described(part, kinds, bound.kind, defaults, levels - 1) for part in parts
            ]
        else:
            settings[field] = _described(value, kinds, bound.kind, defaults, levels - 1)
    return {"name": name, "settings": settings}


def _filled(made: Any, kinds: Kinds, kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    described = describe(made, kinds, kind)
    fitting = {k: v for k, v in defaults.items() if k in described["settings"]}
    return {**described, "settings": described["settings"] | fitting}


def _check_levels(kind: str, levels: int) -> None:
    if levels < 0:
        raise InputError(f"{kind} is nested more than {_LEVELS} levels deep")


def _maker(name: str, kinds: Kinds, kind: str) -> Callable[..., Any]:
    if name not in kinds[kind]:
        raise unknown(kind, name, kinds[kind])
    return kinds[kind][name]


def _split(text: str, mark: str) -> list[str]:
    """`text` cut at each `mark` that is in no parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise InputError(f"{told(text)} has parentheses that do not match")
    return parts


def _bare(text: str) -> str:
    """`text` without the parentheses around it."""
    start, end = 0, len(text)
    while True:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if not (end - start > 1 and text[start] == "(" and text[end - 1] == ")"):
            return text[start:end]
        start, end = start + 1, end - 1


def _value(text: str) -> Any:
    """A number, True, False or None where `text` is one, else the text itself."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | bool | None) else text


def _check_like(what: str, value: Any, default: Any) -> None:
    """Raise `InputError` where `value` is no number though the default is one."""
    if isinstance(default, int | float) and (
        isinstance(value, str)
        or isinstance(value, bool) != isinstance(default, bool)
        or value is None
    ):
        raise InputError(f"{what} is {told(value)} but must be like {default!r}")


def _is_component(value: Any, kind: str) -> bool:
    methods = _METHODS.get(kind, ())
    return not isinstance(value, str | type) and all(hasattr(value, name) for name in methods)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
