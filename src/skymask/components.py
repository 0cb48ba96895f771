"""Components by name: the text a person types, the JSON a manifest holds, and back.

A component (attack, defence, partition) is a frozen dataclass whose fields are its settings. Its
text is `name` or `name:field=value,field=value`, its JSON `{"name": ..., "settings": {...}}`.
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from skymask.errors import InputError, unknown

Makers = Mapping[str, Callable[..., Any]]


def parse(text: str, makers: Makers, kind: str, **defaults: Any) -> Any:
    """The component that `text` names; `defaults` fill settings the text leaves out.

    A default for a setting that the component does not have is left aside.

    Raises `InputError` for an unknown name or setting (with the nearest), and for a bad value.
    """
    name, _, tail = text.partition(":")
    if name not in makers:
        raise unknown(kind, name, makers)
    settings = {}
    for item in filter(None, tail.split(",")):
        field, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{kind} setting {item!r} has no value; write {name}:{field}=VALUE")
        settings[field.strip().replace("-", "_")] = _value(value.strip())
    fitting = {k: v for k, v in defaults.items() if k in settings_of(makers[name])}
    return build({"name": name, "settings": fitting | settings}, makers, kind)


def build(described: Mapping[str, Any], makers: Makers, kind: str) -> Any:
    """The component that `described` (of `describe`) stands for."""
    name, settings = described["name"], described["settings"]
    if name not in makers:
        raise unknown(kind, name, makers)
    known = settings_of(makers[name])
    for field, value in settings.items():
        if field not in known:
            raise unknown(f"{kind} {name} setting", field, known)
        default = known[field]
        if isinstance(default, int | float) and (
            isinstance(value, str)
            or isinstance(value, bool) != isinstance(default, bool)
            or value is None
        ):
            raise InputError(
                f"{kind} {name} setting {field} is {value!r} but must be like {default!r}"
            )
    try:
        return makers[name](**settings)
    except TypeError as error:
        raise InputError(f"{kind} {name} does not take these settings: {error}") from error


def describe(component: Any, makers: Makers) -> dict[str, Any]:
    """`component` as JSON can hold it. A user's own type is named by its module and class."""
    own = f"{type(component).__module__}.{type(component).__qualname__}"
    name = next((key for key, maker in makers.items() if maker is type(component)), own)
    if not dataclasses.is_dataclass(component):
        return {"name": name, "settings": {}}
    fields = dataclasses.fields(component)
    return {"name": name, "settings": {f.name: _plain(getattr(component, f.name)) for f in fields}}


def settings_of(maker: Callable[..., Any]) -> dict[str, Any]:
    """The settings that `maker` takes, with their defaults."""
    parameters = inspect.signature(maker).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _value(text: str) -> Any:
    """A number, True, False or None where `text` is one, else the text itself."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | bool | None) else text


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else repr(value)
