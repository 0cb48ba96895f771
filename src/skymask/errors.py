"""What SkyMask says when it is given something it cannot use."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real


class InputError(ValueError):
    """Bad input from a person: the message names the field, the value and the bound.

    The command line turns it into one sentence and exit status 2.
    """


def unknown(field: str, value: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is not among `choices`, with the nearest right one first."""
    known = sorted(choices)
    near = get_close_matches(value[:_LONGEST], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(
        f"{field} {told(value)} is not known; {hint}choose one of: {', '.join(known)}"
    )


def told(value: object) -> str:
    """`value` as an error shows it: cut short where it is long, a number of many digits too."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or levels
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST = 200
"""Letters of a value that an error shows."""


def is_number(value: object) -> bool:
    """Whether `value` is a real number that is finite and not too large for a float."""
    # mypy does not know how a Real compares.
    return isinstance(value, Real) and bool(abs(value) <= sys.float_info.max)  # type: ignore[operator]


def require(ok: bool, field: str, value: object, bound: str) -> None:
    """Raise an `InputError` that says that `field` is `value` but must be `bound`, unless `ok`."""
    if not ok:
        raise InputError(f"{field} is {told(value)} but must be {bound}")


def require_count(field: str, value: object) -> None:
    """Raise an `InputError` unless `value` is a whole number, at least 1."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(ok, field, value, "a whole number, at least 1")
