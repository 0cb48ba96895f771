"""Reads what is known of each client in a round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skymask.errors import InputError
from skymask.report.run import CloseUp, Floats, number


def closeup(where: str, line: Mapping[str, Any], reasons: Sequence[Mapping[str, str]]) -> CloseUp:
    """A close-up as `metrics.closeup` wrote it, checked; `reasons` are those of each round.

    Raises `InputError`, beginning with `where`, for anything else.
    """
    try:
        index, clients = line["round"], [str(int(client)) for client in line["clients"]]
        n = len(clients)
        points = _rows(line["points"], n, 2) if "points" in line else None
        apart = tuple(bool(mark) for mark in line.get("apart", ()))
        if (
            (points is not None and len(apart) != len(points))
            or type(index) is not int
            or index < 0
        ):
            raise ValueError("apart or round")
        values, ones = (
            {str(name): _rows(part, n, None) for name, part in dict(line.get(kind, {})).items()}
            for kind in ("values", "ones")
        )
        if any((part < -_ROUNDING).any() or (part > 1 + _ROUNDING).any() for part in ones.values()):
            raise ValueError("ones")
        gain = number(where, line, "gain")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where} is not what is known of each client in a round") from error
    why = reasons[index] if index < len(reasons) else {}
    return CloseUp(index, tuple(clients), points, apart, gain, values, ones, why)


_ROUNDING = 1e-3
"""By how much a share of ones may miss the numbers from 0 to 1."""


def _rows(given: Any, n: int, columns: int | None) -> Floats:
    """`given` as n or n + 1 numbers, or rows of at most `columns` numbers, padded with 0."""
    if columns is not None:
        given = [(list(row) + [0.0] * columns)[:columns] for row in given]
    rows = np.array(given, dtype=np.float64)
    if rows.ndim != (1 if columns is None else 2) or len(rows) not in (n, n + 1):
        raise ValueError("not one row a client")
    return np.where(np.abs(rows) < _LARGEST, rows, np.nan)


_LARGEST = 1e30
"""The page has its numbers in single precision; what is larger is drawn no more than infinity."""
