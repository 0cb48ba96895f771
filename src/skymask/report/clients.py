"""What is drawn of single clients: verdicts over rounds, and the close-ups of kept rounds."""

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from skymask.report.figures import base_layout
from skymask.report.run import ABSENT, EXCLUDED, REJECTED, Bytes, CloseUp, Floats, Run, Verdicts
from skymask.report.summary import clean

_BINS = 500
"""Columns of the heat map, at most; more rounds share one."""
_ROWS = 250
"""Rows of the heat map, at most; more clients share one."""
_MASK_CELLS = 3_000_000
"""Shares of ones that a page may hold for single clients."""

NOT_ASKED, NOT_THERE = 120, 140
"""Cells of the heat map above 100, which is the share of rounds in which a client was rejected."""
_SCALE = [
    # Light to dark, so that it reads in grey too; what is no share has a colour of its own.
    (0, "#e8f1f8"),
    (1, "#fdd0a2"),
    (50, "#e6740f"),
    (100, "#8c2d04"),
    (110, "#8c2d04"),
    (110, "#7b5ea7"),
    (130, "#7b5ea7"),
    (130, "#a8adb3"),
    (140, "#a8adb3"),
]

_GROUPS: dict[str, tuple[str, str, str]] = {
    "honest": ("honest, accepted", "#0072B2", "circle"),
    "honest-out": ("honest, left out", "#56B4E9", "x"),
    "malicious-out": ("malicious, left out", "#D55E00", "x"),
    "malicious": ("malicious, accepted", "#CC79A7", "circle"),
    "in": ("accepted", "#0072B2", "circle"),
    "out": ("left out", "#D55E00", "x"),
    "root": ("the server's own", "#009E73", "star"),
}
"""Kind of point -> its name, its colour (Okabe and Ito's) and its shape."""


def packed(values: npt.ArrayLike, dtype: str) -> dict[str, Any]:
    """An array as plotly.js and the page's script read it, "f4", "i4" or "u1", in base64."""
    array = np.asarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    found = {"dtype": dtype, "bdata": base64.b64encode(array.tobytes()).decode()}
    return found | ({"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {})


# Verdicts over rounds


def binned(verdicts: Verdicts) -> tuple[Bytes, list[int]]:
    """(clients, bins) per cent of rounds rejected, NOT_ASKED or NOT_THERE; and the first rounds.

    The share is of those rounds of the bin in which the client was judged; a bin in which it never
    was is NOT_ASKED if it was excluded in any of its rounds, else NOT_THERE.
    """
    clients, rounds = verdicts.codes.shape
    bins = min(rounds, _BINS)
    edges = [bin * rounds // bins for bin in range(bins)] if bins else []
    if not clients or not bins:
        return np.zeros((clients, bins), np.uint8), edges

    def count(code: int) -> npt.NDArray[np.int64]:
        return np.add.reduceat((verdicts.codes == code).astype(np.int64), edges, axis=1)

    sizes = np.diff([*edges, rounds])
    excluded, absent = count(EXCLUDED), count(ABSENT)
    judged = sizes - excluded - absent
    shares = np.ceil(100 * count(REJECTED) / np.maximum(judged, 1))
    nowhere = np.where(excluded > 0, NOT_ASKED, NOT_THERE)
    return np.where(judged > 0, shares, nowhere).astype(np.uint8), edges


def heat_map(run: Run) -> dict[str, Any]:
    """Clients by rounds: how often each was rejected."""
    cells, edges = binned(run.verdicts)
    clients = len(cells)
    group = -(-clients // _ROWS)
    cells = _grouped(cells, group)
    names = [_text(run.label(client)) for client in run.verdicts.clients][:: max(group, 1)]
    told = f"{group} clients from {{}} on" if group > 1 else "client {}"
    malicious = sum(client in (run.malicious or ()) for client in run.verdicts.clients)
    trace = {
        "type": "heatmap",
        "z": packed(cells, "u1"),
        "x": [edge + 1 for edge in edges],
        "y": list(range(len(cells))),
        "text": [told.format(name) for name in names],
        "zmin": 0,
        "zmax": 140,
        "colorscale": [[at / 140, colour] for at, colour in _SCALE],
        "showscale": False,
        "hoverinfo": "none",
    }
    ticks = list(range(0, len(names), max(1, -(-len(names) // 25))))
    layout = base_layout(False) | {
        "margin": {"l": 84, "r": 12, "t": 12, "b": 48},
        "hovermode": "closest",
        "xaxis": {"title": {"text": "rounds"}, "showgrid": False, "zeroline": False},
        "yaxis": {
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
            "tickvals": ticks,
            "ticktext": [_short(names[at]) for at in ticks],
            "automargin": True,
        },
        "shapes": [],
    }
    if 0 < malicious < clients:
        edge = malicious / group - 0.5
        line = {"type": "line", "xref": "paper", "x0": -0.06, "x1": 1, "y0": edge, "y1": edge}
        layout["shapes"] = [line | {"line": {"width": 2, "dash": "dot", "color": "#808890"}}]
    return {"data": [trace], "layout": layout, "group": group}


def _grouped(cells: Bytes, group: int) -> Bytes:
    """Means over `group` rows each, of the cells that are shares; else the commonest of the two."""
    if group <= 1:
        return cells
    starts = list(range(0, len(cells), group))
    shares = cells <= 100
    total = np.add.reduceat(np.where(shares, cells, 0).astype(np.int64), starts)
    there = np.add.reduceat(shares.astype(np.int64), starts)
    asked = np.add.reduceat((cells == NOT_ASKED).astype(np.int64), starts)
    means = np.ceil(total / np.maximum(there, 1))
    nowhere = np.where(asked > 0, NOT_ASKED, NOT_THERE)
    return np.where(there > 0, means, nowhere).astype(np.uint8)


# Close-ups


def groups(run: Run, closeup: CloseUp) -> dict[str, list[int]]:
    """Kind of point (of `_GROUPS`) -> the rows of a close-up that are of it."""
    found: dict[str, list[int]] = {}
    for row, client in enumerate(closeup.clients):
        out = client in closeup.reasons
        if run.malicious is None:
            kind = "out" if out else "in"
        else:
            kind = ("malicious" if client in run.malicious else "honest") + ("-out" * out)
        found.setdefault(kind, []).append(row)
    if _rows(closeup) > len(closeup.clients):
        found["root"] = [len(closeup.clients)]
    return {kind: found[kind] for kind in _GROUPS if kind in found}


def _rows(closeup: CloseUp) -> int:
    sizes = [len(part) for part in (*closeup.ones.values(), *closeup.values.values())]
    return max([len(closeup.clients), *sizes, 0 if closeup.points is None else len(closeup.points)])


def scatter(run: Run, closeup: CloseUp) -> dict[str, Any]:
    """The masks' first two principal components, a point each client."""
    return {"data": points(run, closeup), "layout": scatter_layout()}


def points(run: Run, closeup: CloseUp) -> list[dict[str, Any]]:
    """The traces of `scatter`: filled in the root's cluster, hollow in the other one."""
    traces = []
    at = closeup.points
    for kind, rows in groups(run, closeup).items():
        if at is None or rows[-1] >= len(at):
            continue
        name, colour, shape = _GROUPS[kind]
        for other in (False, True):
            members = [row for row in rows if closeup.apart[row] is other]
            if not members:
                continue
            trace = {
                "type": "scatter",
                "mode": "markers",
                "name": name + (", other cluster" if other else ""),
                "x": packed(at[members, 0], "f4"),
                "y": packed(at[members, 1], "f4"),
                "customdata": packed(members, "i4"),
                "marker": {
                    "color": colour,
                    "size": 15 if kind == "root" else 9,
                    "symbol": shape + "-open" * other,
                    "line": {"width": 2 if other else 1, "color": colour},
                },
                "hoverinfo": "none",
            }
            traces.append(trace)
    return traces


def scatter_layout() -> dict[str, Any]:
    """The layout of `scatter`."""
    axis = {"zeroline": False, "showticklabels": False}
    return _with_legend_above() | {
        "xaxis": axis | {"title": {"text": "first principal component"}},
        "yaxis": axis | {"title": {"text": "second principal component"}},
    }


def ones(run: Run, closeup: CloseUp) -> dict[str, Any]:
    """Share of ones in each layer's masks: mean and range of each kind of client."""
    return {"data": shares(run, closeup), "layout": ones_layout(tuple(closeup.ones))}


def shares(run: Run, closeup: CloseUp) -> list[dict[str, Any]]:
    """The traces of `ones`."""
    if not closeup.ones:
        return []
    layers = [_text(layer) for layer in closeup.ones]
    matrix = _matrix(closeup.ones, _rows(closeup))
    traces = []
    kinds = groups(run, closeup)
    for place, (kind, rows) in enumerate(kinds.items()):
        name, colour, shape = _GROUPS[kind]
        part = matrix[rows]
        means = part.mean(0)
        # Beside one another, so that ranges do not hide each other.
        aside = 0.12 * (place - (len(kinds) - 1) / 2)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [layer + aside for layer in range(len(layers))],
                "y": _plain(means),
                "error_y": {
                    "array": _plain(part.max(0) - means),
                    "arrayminus": _plain(means - part.min(0)),
                    "thickness": 1,
                    "width": 3,
                },
                "marker": {"color": colour, "symbol": shape, "size": 8},
                "text": layers,
                "hovertemplate": "%{text}: %{y:.1%}",
            }
        )
    return traces


def ones_layout(layers: tuple[str, ...] = ()) -> dict[str, Any]:
    """The layout of `ones`."""
    return _with_legend_above() | {
        "xaxis": {
            "tickvals": list(range(len(layers))),
            "ticktext": [_text(layer)[:24] for layer in layers],
            "automargin": True,
            "zeroline": False,
        },
        "yaxis": {"title": {"text": "share of ones"}, "tickformat": ".0%"},
    }


def _with_legend_above() -> dict[str, Any]:
    """For legends of several lines: above the axes they move them aside."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 58, "r": 12, "t": 12, "b": 48}
    return base_layout(True) | {"hovermode": "closest", "legend": legend, "margin": margin}


def _matrix(parts: Mapping[str, Floats], rows: int) -> Floats:
    """(rows, parts), NaN where a part has no such row."""
    found = np.full((rows, len(parts)), np.nan)
    for column, part in enumerate(parts.values()):
        found[: len(part), column] = part
    return found


def _plain(values: Floats) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


# What the page's script is given


def explorer(run: Run, most: int = 100) -> dict[str, Any]:
    """All that the page needs to look into one run's clients; at most `most` kept rounds."""
    cells, edges = binned(run.verdicts)
    kept = list(run.closeups)
    if len(kept) > most:
        kept = [kept[at * (len(kept) - 1) // max(most - 1, 1)] for at in range(most)]
    place = {client: at for at, client in enumerate(run.verdicts.clients)}
    single = sum(_rows(c) * len(c.ones) for c in kept) <= _MASK_CELLS
    return {
        "name": clean(run.name),
        "clients": [clean(client) for client in run.verdicts.clients],
        "labels": [clean(run.label(client)) for client in run.verdicts.clients],
        "told": list(map(_told, [run] * len(cells), run.verdicts.clients, run.verdicts.codes)),
        "cells": packed(cells, "u1"),
        "edges": edges,
        "rounds": run.rounds,
        "heat": heat_map(run),
        "kept": [_frame(run, closeup, place, single) for closeup in kept],
        "scatter": scatter_layout(),
        "ones": ones_layout(tuple(kept[-1].ones) if kept else ()),
        "single": single,
    }


def _frame(run: Run, closeup: CloseUp, place: Mapping[str, int], single: bool) -> dict[str, Any]:
    rows = _rows(closeup)
    reasons = list(dict.fromkeys(closeup.reasons.values()))
    at = {reason: index for index, reason in enumerate(reasons)}
    return {
        "round": closeup.round + 1,
        "clients": packed([place.get(client, -1) for client in closeup.clients], "i4"),
        "gain": closeup.gain,
        "points": points(run, closeup),
        "ones": shares(run, closeup),
        "apart": packed(closeup.apart, "u1"),
        "values": {
            clean(_VALUES.get(name, name)): packed(part, "f4")
            for name, part in closeup.values.items()
        },
        "reasons": [clean(reason) for reason in reasons],
        "why": packed([at.get(closeup.reasons.get(c, ""), -1) for c in closeup.clients], "i4"),
        "single": packed(np.nan_to_num(200 * _matrix(closeup.ones, rows)), "u1")
        if single and closeup.ones
        else None,
    }


_VALUES = {
    "score": "score (above 0 is trusted)",
    "alignment": "alignment with the root's labels, averaged",
    "descent": "descent of the root's loss, averaged",
    "error": "standard deviation of the alignment",
    "raised": "alignment of what it raises, averaged",
    "raised_error": "standard deviation of that",
    "resistance": "resistance to the model's steps, in standard deviations",
    "turning": "cosine of its last updates with those before",
    "length": "length beside the median one, averaged (logarithm)",
    "shift": "shift of batch norm's statistics, averaged",
}
"""What the evidence is called on the page."""


def _told(run: Run, client: str, codes: Bytes) -> str:
    """A client's story in a sentence or two; `codes` (rounds,) are its verdicts."""
    story = ""
    if run.malicious is not None:
        story = "malicious; " if client in run.malicious else "honest; "
    out, asked = int((codes == REJECTED).sum()), int((codes != ABSENT).sum())
    excluded = int((codes == EXCLUDED).sum())
    story += f"left out in {out} of {asked - excluded} rounds in which it was judged"
    if excluded:
        story += f"; not asked in {excluded}"
    if asked < len(codes):
        story += f"; not there in {len(codes) - asked}"
    reasons = run.rejections.get(client)
    if reasons:
        story += ": " + "; ".join(f"{why} ({times})" for why, times in reasons.most_common(3))
    return clean(story)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:5]}\u2026{name[-6:]}"


def _text(text: str) -> str:
    """`text` as plotly.js may show it, which reads a subset of HTML."""
    return escape(clean(text), quote=False)
