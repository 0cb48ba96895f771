"""The curves over rounds, and the times, as plotly.js takes them."""

from collections.abc import Sequence
from html import escape
from typing import Any

from skymask.report.run import Run, mean
from skymask.report.summary import clean

SMOOTHING = 10
"""Rounds in the rolling mean of the error rates."""
_POINTS = 400
"""Points of single rounds in a figure, at most: each takes a browser its time."""
_FEW = 3 * SMOOTHING  # up to so many rounds the points themselves are the clearest line

# Okabe and Ito's colours for all kinds of colour vision, without the two that vanish on a white or
# on a dark page; the dashes tell runs apart where the colours come round again, or are not seen.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot")
_PATTERNS = ("", "/", ".", "x")


def accuracy(runs: Sequence[Run]) -> dict[str, Any]:
    """Accuracy over the rounds, a line each run."""
    traces = []
    for index, run in enumerate(runs):
        points = [(x, y) for x, y in enumerate(run.series["accuracy"], 1) if y is not None]
        mode = "lines+markers" if len(points) <= _FEW else "lines"
        traces.append(_trace(run, index, *map(list, zip(*points, strict=True)), mode=mode))
        success = [(x, y) for x, y in enumerate(run.series["attack_success"], 1) if y is not None]
        if success:
            rounds, shares = map(list, zip(*success, strict=True))
            mode = "lines+markers" if len(success) <= _FEW else "lines"
            trace = _trace(run, index, rounds, shares, mode=mode)
            trace["name"] += ", attack success"
            trace["marker"] = trace["marker"] | {"symbol": "x", "size": 7}
            trace["line"] = trace["line"] | {"width": 1, "dash": "dot"}
            traces.append(trace)
    several = len(traces) > 1
    return {"data": traces, "layout": _layout(runs, {"yaxis": _share_axis("share")}, several)}


def rates(runs: Sequence[Run]) -> dict[str, Any]:
    """FPR above FNR, over the same rounds, a line each run."""
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "yaxis": _share_axis("FPR") | {"domain": [0.54, 1]},
        "yaxis2": _share_axis("FNR") | {"domain": [0, 0.46]},
        "annotations": [],
    }
    for rate, axis, who in (("fpr", "y", "honest"), ("fnr", "y2", "malicious")):
        for index, run in enumerate(runs):
            values, own = run.series[rate], {"yaxis": axis, "showlegend": rate == "fpr"}
            rounds = list(range(1, run.rounds + 1))
            if not smooth(runs):
                traces.append(_trace(run, index, rounds, values, mode="lines+markers", **own))
                continue
            hidden = {"hoverinfo": "skip", "showlegend": False, "opacity": 0.25}
            points = _trace(run, index, *_worst(values), mode="markers", **own | hidden)
            line = _trace(run, index, rounds, _rolling(values), mode="lines", **own)
            traces += [points, line]
        if all(value is None for run in runs for value in run.series[rate]):
            text = {"text": f"undefined: no {who} client took part", "showarrow": False}
            place = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": f"{axis} domain"}
            layout["annotations"].append(text | place)
    layout["xaxis"] = _rounds_axis(runs) | {"anchor": "y2"}
    return {"data": traces, "layout": _layout(runs, layout)}


def left_out(runs: Sequence[Run]) -> dict[str, Any]:
    """Share of the clients left out, over the rounds: all that is known where the truth is not."""
    traces = []
    for index, run in enumerate(runs):
        values = run.series["left_out"]
        values = _rolling(values) if smooth(runs) else values
        rounds = list(range(1, run.rounds + 1))
        traces.append(_trace(run, index, rounds, values, mode="lines"))
    return {"data": traces, "layout": _layout(runs, {"yaxis": _share_axis("left out")})}


def stages(runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds of a round's parts, a bar for each run."""
    parts = dict.fromkeys(part for run in runs for part in run.stages)
    names = [_name(run) for run in runs]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escape(clean(part), quote=False),
            "y": names,
            "x": [run.stages.get(part) for run in runs],
            "marker": {"color": colour(index), "pattern": {"shape": _PATTERNS[index % 4]}},
            "hovertemplate": "%{x:.4f} s",
        }
        for index, part in enumerate(parts)
    ]
    layout = {
        "barmode": "stack",
        "hovermode": "closest",
        "xaxis": {"title": {"text": "seconds a round"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "showticklabels": len(runs) > 1, "autorange": "reversed"},
        "height": 190 + 36 * len(runs),
    }
    return {"data": traces, "layout": _layout(runs, layout, several=True)}


def smooth(runs: Sequence[Run]) -> bool:
    """Whether the error rates are drawn as rolling means, for there are many rounds."""
    return max(run.rounds for run in runs) > _FEW


def colour(index: int) -> str:
    """The colour of the run at `index`."""
    return COLOURS[index % len(COLOURS)]


def _name(run: Run) -> str:
    name = clean(run.name)
    # plotly.js reads a subset of HTML in names.
    return escape(name if len(name) <= 32 else "\u2026" + name[-31:], quote=False)


def _trace(run: Run, index: int, x: Any = (), y: Any = (), **more: Any) -> dict[str, Any]:
    line = colour(index)
    return {
        "type": "scatter",
        "name": _name(run),
        "legendgroup": str(index),
        "x": x,
        "y": y,
        "line": {"color": line, "width": 2, "dash": _DASHES[index % len(_DASHES)]},
        "marker": {"color": line, "size": 5},
        "hovertemplate": "%{y:.1%}",
    } | more


def _share_axis(title: str) -> dict[str, Any]:
    # A little beyond 0 and 1, where most lines of a good run lie.
    return {"title": {"text": title}, "range": [-0.03, 1.03], "tickformat": ".0%"}


def _rounds_axis(runs: Sequence[Run]) -> dict[str, Any]:
    longest = max(run.rounds for run in runs)
    return {"title": {"text": "rounds"}, "range": [0, 1.02 * longest], "hoverformat": "d"}


def _layout(
    runs: Sequence[Run], own: dict[str, Any], several: bool | None = None
) -> dict[str, Any]:
    """A layout with `own` parts; with `several` lines, or runs, there is a legend."""
    several = len(runs) > 1 if several is None else several
    return base_layout(several) | {"hovermode": "x unified", "xaxis": _rounds_axis(runs)} | own


def base_layout(legend: bool) -> dict[str, Any]:
    """What all figures have in common; colours of the page are put in by its script."""
    return {
        "autosize": True,
        "margin": {"l": 58, "r": 12, "t": 32, "b": 84 if legend else 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
    }


def _worst(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Rounds, counted from 1, and their rates: all of them, or of many the worst of some each."""
    size = -(-len(values) // _POINTS)
    rounds = []
    for start in range(0, len(values), size):
        defined = [i for i in range(start, min(start + size, len(values))) if values[i] is not None]
        if defined:
            rounds.append(max(defined, key=lambda i: values[i] or 0.0))
    return [i + 1 for i in rounds], [values[i] or 0.0 for i in rounds]


def _rolling(values: Sequence[float | None]) -> list[float | None]:
    """Mean of each value and those before it, `SMOOTHING` in all, over those that are defined."""
    return [mean(values[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(values))]
