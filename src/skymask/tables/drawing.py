"""A page of a figure as plotly.js takes it: panels in rows, for print and for every kind of eye.

Lines differ in colour (Okabe and Ito's), in dashes and in symbols. The layout is in pixels: 720 of
them are as wide as the text of an A4 page, where the smallest letters are then 7 points high.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from skymask.report.figures import COLOURS
from skymask.report.pictures import INK
from skymask.tables.figures import Page, Panel
from skymask.tables.paper import OURS, PRINTED
from skymask.tables.series import Series

WIDTH = 720
_RIGHT, _GAP = 20, 26
_NAMES = 98
"""Left of the axes where rules are named there, else"""
_LEFT = 62
_SMALL, _USUAL = 11, 12
_LANE = 36
"""Height of a rule's lane of detection failures."""
_GREY = "#5a6068"


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"
    width: float = 1.5


_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY = COLOURS
_RULES = {
    OURS: Style(_BLUE, width=2.4),
    PRINTED: Style(_RED, "6px,2px", "square"),
    "FLTrust": Style(_GREEN, "8px,2px,2px,2px", "diamond"),
    "FedAvg": Style("#000000", "2px,2px", "x"),
    "Krum": Style(_PURPLE, "4px,3px", "triangle-up"),
    "Trim": Style(_ORANGE, "10px,3px", "star"),
    "Multi-Krum": Style(_SKY, "8px,2px,2px,2px,2px,2px", "triangle-down"),
    "Tolpegin": Style(_ORANGE, "4px,3px", "triangle-up"),
    "FLDetector": Style(_GREEN, "8px,2px,2px,2px", "diamond"),
    "honest": Style(_BLUE),
    "malicious": Style(_RED, "6px,2px", "x"),
    "the server's own": Style(_GREEN, symbol="star"),
}
_OTHERS = (
    Style("#000000", "2px,2px", "x"),
    Style(_RED, "6px,2px", "square"),
    Style(_GREEN, "8px,2px,2px,2px", "diamond"),
    Style(_PURPLE, "4px,3px", "triangle-up"),
    Style(_ORANGE, "10px,3px", "star"),
    Style(_SKY, "8px,2px,2px,2px,2px,2px", "triangle-down"),
    Style(_BLUE),
)


def drawing(page: Page, drawn: Sequence[Sequence[Series]], caption: str) -> dict[str, Any]:
    """The page with the series of each of its panels, and what must be read with it below."""
    styles = _styles(drawn)
    grid = _Grid.of(page, drawn, len(styles), caption)
    data = [_legend(label, style, page) for label, style in styles.items()]
    layout = _blank(grid.height, grid.left) | {"annotations": [*grid.frame()]}
    for index, (panel, series) in enumerate(zip(page.panels, drawn, strict=True)):
        axes = {"xaxis": f"x{_number(index)}", "yaxis": f"y{_number(index)}"}
        if panel.shows not in ("updates", "masks", "failures"):  # below all lines
            data += [band | axes for each in series for band in _band(each, styles[each.label])]
        data += [
            trace | axes
            for place, each in enumerate(series)
            for trace in _traces(panel, each, styles, place, series)
        ]
        data += [] if series else [_trace([None], [None], "lines") | axes]  # else no axes are drawn
        layout |= grid.axes(index)
        layout["annotations"] += grid.notes(index)
    return {"data": data, "layout": layout}


def _styles(drawn: Sequence[Sequence[Series]]) -> dict[str, Style]:
    """Each label's style, in the order in which they come."""
    labels = list(dict.fromkeys(series.label for panel in drawn for series in panel))
    plain = [label for label in labels if label not in _RULES]
    rest = {label: _OTHERS[place % len(_OTHERS)] for place, label in enumerate(plain)}
    return {label: _RULES.get(label) or rest[label] for label in labels}


# What is drawn of a series


def _traces(
    panel: Panel, series: Series, styles: Mapping[str, Style], place: int, beside: Sequence[Series]
) -> Iterator[dict[str, Any]]:
    style = styles[series.label]
    if panel.shows in ("updates", "masks"):
        yield _marks(series.x, series.y, style, 13 if style.symbol == "star" else 7)
    elif panel.shows == "failures":
        yield _bars(series, style, beside)
    else:
        yield _trace(series.x, series.y, "lines", line=_line(style))
        shown = range(len(series.x)) if panel.shows == "trend" else _few(len(series.x), place)
        yield _marks([series.x[i] for i in shown], [series.y[i] for i in shown], style, 6)


def _trace(x: Sequence[Any], y: Sequence[Any], mode: str, **more: Any) -> dict[str, Any]:
    usual = {"type": "scatter", "mode": mode, "showlegend": False, "cliponaxis": False}
    return usual | {"x": list(x), "y": list(y)} | more


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "dash": style.dash, "width": style.width}


def _marker(style: Style, size: float) -> dict[str, Any]:
    return {"color": style.colour, "symbol": style.symbol, "size": size}


def _marks(x: Sequence[float], y: Sequence[float], style: Style, size: float) -> dict[str, Any]:
    return _trace(x, y, "markers", marker=_marker(style, size))


def _few(points: int, place: int) -> range:
    """Some points of a line to be marked, others than of its neighbours."""
    step = max(1, points // 4)
    return range(min(points - 1, (2 * place + 1) * step // 14), points, step)


def _band(series: Series, style: Style) -> Iterator[dict[str, Any]]:
    if any(low < high for low, high in zip(series.low, series.high, strict=True)):
        x, y = [*series.x, *reversed(series.x)], [*series.high, *reversed(series.low)]
        yield _trace(x, y, "none", fill="toself", fillcolor=_pale(style.colour), hoverinfo="skip")


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"


def _bars(series: Series, style: Style, beside: Sequence[Series]) -> dict[str, Any]:
    """A bar for each run of rounds with a failure, in the part of the lane that is the seed's."""
    labels = list(dict.fromkeys(each.label for each in beside))
    own = [each for each in beside if each.label == series.label]
    lane, size = labels.index(series.label), 0.58 / len(own)
    top = lane - 0.14 + size * own.index(series)
    x: list[float | None] = []
    y: list[float | None] = []
    for first, last in _stretches(series.x):
        x += [first - 0.5, last + 0.5, last + 0.5, first - 0.5, first - 0.5, None]
        y += [top, top, top + 0.85 * size, top + 0.85 * size, top, None]
    # The outline keeps a single round visible among thousands.
    line = {"color": style.colour, "width": 0.6}
    return _trace(x, y, "lines", line=line, fill="toself", fillcolor=style.colour)


def _stretches(rounds: Sequence[float]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for each in rounds:
        if found and found[-1][1] == each - 1:
            found[-1] = found[-1][0], each
        else:
            found.append((each, each))
    return found


def _legend(label: str, style: Style, page: Page) -> dict[str, Any]:
    points = page.panels[0].shows in ("updates", "masks")
    return _trace(
        [None],
        [None],
        "markers" if points else "lines+markers",
        name=escape(label, quote=False),
        showlegend=True,
        line=_line(style),
        marker=_marker(style, 7),
    )


# Where it is drawn


@dataclass(frozen=True)
class _Grid:
    """Where the panels of a page are, in pixels from the top left."""

    page: Page
    drawn: Sequence[Sequence[Series]]
    note: str
    left: int
    tops: tuple[int, ...]
    """Of each row of panels, without its title."""
    sizes: tuple[int, ...]
    """Each row's height."""
    height: int

    @classmethod
    def of(
        cls, page: Page, drawn: Sequence[Sequence[Series]], labels: int, caption: str
    ) -> "_Grid":
        """Lay out the rows one below another."""
        tops, sizes, at = [], [], 34 + 20 * -(-labels // 4)
        rows = [page.panels[i : i + page.columns] for i in range(0, len(page.panels), page.columns)]
        for row in rows:
            at += 20 if any(panel.title for panel in row) else 4
            tops.append(at)
            sizes.append(_row_height(row[0], page, drawn))
            at += sizes[-1] + 10
        note = "<br>".join(textwrap.wrap(escape(caption, quote=False), 130))
        below = 40 if page.panels[0].shows not in ("updates", "masks") else 24
        height = at + below + 15 * (note.count("<br>") + 1) + 8
        shown = {panel.shows for panel in page.panels}
        left = _NAMES if "failures" in shown else 36 if "masks" in shown else _LEFT
        return cls(page, drawn, note, left, tuple(tops), tuple(sizes), height)

    def frame(self) -> Iterator[dict[str, Any]]:
        """What stands above and below the panels."""
        yield _heading(self.page, self.left)
        yield _foot(self.note, self.left)

    def axes(self, index: int) -> dict[str, Any]:
        """The two axes of a panel."""
        panel, (row, column) = self.page.panels[index], divmod(index, self.page.columns)
        points = panel.shows in ("updates", "masks")
        whole, gap = WIDTH - self.left - _RIGHT, 44 if points else _GAP
        width = (whole - gap * (self.page.columns - 1)) / self.page.columns
        left = (width + gap) * column / whole
        lowest = index + self.page.columns >= len(self.page.panels)
        x = _axis(f"y{_number(index)}", [left, left + width / whole], panel.across)
        bottom = self.tops[row] + self.sizes[row]
        y = _axis(
            f"x{_number(index)}", [1 - bottom / self.height, 1 - self.tops[row] / self.height], ""
        )
        if points:
            for axis in (x, y):
                axis |= {"showticklabels": False, "ticks": "", "showgrid": False, "nticks": 0}
            y["title"] = _title(panel.up) | {"standoff": 4}
        else:
            told = lowest and any(self.drawn[column :: self.page.columns])
            x |= {"range": self._across(column), "showticklabels": told, **self._ticks(index)}
            y |= self._up(index, column == 0)
        if not lowest:
            x.pop("title")
        return {f"xaxis{_number(index)}": x, f"yaxis{_number(index)}": y}

    def _across(self, column: int) -> list[float]:
        """What the panels of a column have in common: their rounds, or settings."""
        here = [s for series in self.drawn[column :: self.page.columns] for s in series]
        at = [x for line in self.page.panels[column].lines for x in line.at]
        if at:
            pad = 0.03 * (max(at) - min(at))
            return [min(at) - pad, max(at) + pad]
        return [0.0, max((max([*s.x, float(s.rounds)]) for s in here), default=1.0)]

    def _ticks(self, index: int) -> dict[str, Any]:
        """At the settings of a trend, with a label where there is room; else as plotly.js likes."""
        at = sorted({x for line in self.page.panels[index].lines for x in line.at})
        told: list[float] = []
        for x in reversed(at):
            if not told or told[-1] - x > 0.065 * (at[-1] - at[0]):
                told.append(x)
        return (
            {"tickvals": at, "ticktext": [f"{x:g}" if x in told else "" for x in at]} if at else {}
        )

    def _up(self, index: int, first: bool) -> dict[str, Any]:
        panel = self.page.panels[index]
        alike = [
            series
            for other, group in zip(self.page.panels, self.drawn, strict=True)
            for series in group
            if other.up == panel.up
        ]
        if panel.shows == "failures":
            labels = list(dict.fromkeys(series.label for series in alike))
            lanes = {"tickvals": [lane + 0.15 for lane in range(len(labels))], "ticktext": labels}
            own = {"range": [len(labels) - 0.5, -0.58], "showgrid": False, **lanes}
            return own | {"showticklabels": first, "ticks": ""}
        values = [v for series in alike for v in (*series.y, *series.low, *series.high)]
        title = {"title": _title(panel.up)} if first else {}
        return title | {
            "range": _range(values, panel.up in ("FPR", "FNR")),
            "tickformat": ".0%",
            "nticks": 6,
            "showticklabels": first,
        }

    def notes(self, index: int) -> list[dict[str, Any]]:
        """The panel's title, and what is to be read in it."""
        panel, series = self.page.panels[index], self.drawn[index]
        here: dict[str, Any] = {
            "xref": f"x{_number(index)} domain",
            "yref": f"y{_number(index)} domain",
        }
        found = []
        if panel.title:
            at: dict[str, Any] = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
            found.append(_text(f"<b>{escape(panel.title, quote=False)}</b>", **here, **at))
        if not series:
            found.append(_text("not run yet", **here, x=0.5, y=0.5, colour=_GREY))
        elif panel.shows == "failures":
            lanes: dict[str, list[Series]] = {}
            for each in series:
                lanes.setdefault(each.label, []).append(each)
            for lane, group in enumerate(lanes.values()):
                share = sum(len(s.x) for s in group) / max(1, sum(s.rounds for s in group))
                text = f"{100 * share:.1f} % of rounds"
                place = here | {"yref": f"y{_number(index)}", "x": 0.01, "y": lane - 0.17}
                place |= {"xanchor": "left", "yanchor": "bottom"}
                found.append(_text(text, **place, size=10))
        return found


def _number(index: int) -> str:
    """What plotly.js calls the axes of a panel, after x or y."""
    return str(index + 1) if index else ""


def _row_height(panel: Panel, page: Page, drawn: Sequence[Sequence[Series]]) -> int:
    if panel.shows in ("updates", "masks"):
        return 290
    if panel.shows == "failures":
        return _LANE * max(1, max(len({s.label for s in series}) for series in drawn))
    return {2: 150, 3: 112}.get(page.columns, 170)


def _range(values: Sequence[float], rate: bool) -> list[float]:
    """From one round number to another; rates begin at 0, where most of them are."""
    if rate:
        most = max([0.05, *values])
        most = math.ceil(20 * most - 1e-9) / 20
        return [-0.03 * most, 1.03 * most]
    low, high = min(values, default=0.0), max(values, default=1.0)
    least, most = math.floor(10 * low - 1e-9) / 10, math.ceil(10 * high + 1e-9) / 10
    return [max(least, -0.02), min(most, 1.02)]


def _axis(anchor: str, domain: list[float], title: str) -> dict[str, Any]:
    return {
        "anchor": anchor,
        "domain": domain,
        "title": _title(title),
        "zeroline": False,
        "showline": True,
        "mirror": True,
        "linecolor": INK,
        "gridcolor": "#e2e4e7",
        "ticks": "outside",
        "ticklen": 3,
        "tickfont": {"size": _SMALL},
        "nticks": 6,
    }


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": _USUAL}, "standoff": 8}


def _text(text: str, *, size: float = _USUAL, colour: str = INK, **where: Any) -> dict[str, Any]:
    font = {"size": size, "color": colour}
    return {"text": text, "showarrow": False, "font": font, "align": "left", "borderpad": 1} | where


def _heading(page: Page, left: int) -> dict[str, Any]:
    text = f"<b>{escape(page.title, quote=False)}</b>"
    place: dict[str, Any] = {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xshift": 2 - left,
        "yshift": -2,
    }
    return _text(text, **place, xanchor="left", yanchor="top", size=14)


def _foot(note: str, left: int) -> dict[str, Any]:
    place: dict[str, Any] = {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 0,
        "xshift": 2 - left,
        "yshift": 4,
    }
    return _text(note, **place, xanchor="left", yanchor="bottom", size=_SMALL, colour=_GREY)


def _blank(height: int, left: int) -> dict[str, Any]:
    legend = {"orientation": "h", "x": 0, "y": 1 - 26 / height, "yanchor": "top"}
    return {
        "width": WIDTH,
        "height": height,
        "margin": {"l": left, "r": _RIGHT, "t": 0, "b": 0},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "Arial, Helvetica, sans-serif", "size": _USUAL, "color": INK},
        "showlegend": True,
        "legend": legend | {"entrywidth": 96, "itemwidth": 32, "font": {"size": _USUAL}},
    }
