"""What is drawn, as plotly.js takes it."""

from collections.abc import Sequence
from html import escape
from typing import Any

from skymask.report.read import Run, mean
from skymask.report.summary import clean

SMOOTHING = 10
"""Rounds in the rolling mean of the error rates."""
_FEW = 3 * SMOOTHING  # up to so many rounds the points themselves are the clearest line

# Okabe and Ito's colours for all kinds of colour vision, without the two that vanish on a white or
# on a dark page; the dashes tell runs apart where the colours come round again, or are not seen.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot")


def accuracy(runs: Sequence[Run]) -> dict[str, Any]:
    """Accuracy over the rounds, a line each run."""
    traces = []
    for index, run in enumerate(runs):
        points = [(x, y) for x, y in enumerate(run.series["accuracy"], 1) if y is not None]
        mode = "lines+markers" if len(points) <= _FEW else "lines"
        traces.append(_trace(run, index, *map(list, zip(*points, strict=True)), mode=mode))
    return {"data": traces, "layout": _layout(runs, {"yaxis": _share_axis("accuracy")})}


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
            points = _trace(run, index, rounds, values, mode="markers", **own | hidden)
            line = _trace(run, index, rounds, _rolling(values), mode="lines", **own)
            traces += [points, line]
        if all(value is None for run in runs for value in run.series[rate]):
            text = {"text": f"undefined: no {who} client took part", "showarrow": False}
            place = {"x": 0.5, "y": 0.5, "xref": "x domain", "yref": f"{axis} domain"}
            layout["annotations"].append(text | place)
    layout["xaxis"] = _rounds_axis(runs) | {"anchor": "y2"}
    return {"data": traces, "layout": _layout(runs, layout)}


def smooth(runs: Sequence[Run]) -> bool:
    """Whether the error rates are drawn as rolling means, for there are many rounds."""
    return max(run.rounds for run in runs) > _FEW


def colour(index: int) -> str:
    """The colour of the run at `index`."""
    return _COLOURS[index % len(_COLOURS)]


def _trace(run: Run, index: int, x: Any = (), y: Any = (), **more: Any) -> dict[str, Any]:
    line = colour(index)
    name = clean(run.name)
    return {
        "type": "scatter",
        # plotly.js reads a subset of HTML in names.
        "name": escape(name if len(name) <= 32 else "\u2026" + name[-31:], quote=False),
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


def _layout(runs: Sequence[Run], own: dict[str, Any]) -> dict[str, Any]:
    return {
        "autosize": True,
        "margin": {"l": 58, "r": 12, "t": 32, "b": 48 if len(runs) == 1 else 84},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hovermode": "x unified",
        "showlegend": len(runs) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
        "xaxis": _rounds_axis(runs),
    } | own


def _rolling(values: Sequence[float | None]) -> list[float | None]:
    """Mean of each value and those before it, `SMOOTHING` in all, over those that are defined."""
    return [mean(values[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(values))]
