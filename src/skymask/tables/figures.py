"""The figures of the paper as cells, and as pages of panels: Figures 1 and 3 to 8.

Figure 2 is a diagram. The settings are those of the tables (`paper`). What the paper leaves open,
and what is done here:

- Figures 1 and 3 are of one round; which is not said. Here it is the 40th, with SkyMask.
- Figure 4: rules that ask for the number of malicious clients are told the true one. Trim and
  Multi-Krum take part at 40 % only, as in the paper.
- Figure 6: the biases 0.1, 0.2, 0.4, 0.6, 0.8, 0.9 and 0.95, in the five settings of the tables.
- Figure 8: 2, 3, 5, 7, 9, 11, 13 and 15 dimensions; `dims` of both rules.

UCI HAR, and the digits where one round is looked at or many clients are malicious, are beside the
paper's data sets: they take minutes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from skymask.data import Groups
from skymask.defences import FedAvg, FLTrust, Krum, MultiKrum, SkyMask, TrimmedMean
from skymask.experiment import Experiment
from skymask.tables.cell import Cell, Sheet
from skymask.tables.paper import ATTACKS, MALICIOUS, OURS, PRINTED, SETTINGS, printed, table_2
from skymask.types import Attack, Defence

ROUND = 40
"""The round of Figures 1 and 3."""
SHARES = (0.4, 0.6, 0.8)
"""Malicious clients in Figure 4."""
BIASES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
"""The root data set's p in Figures 6 and 7."""
DIMENSIONS = (2, 3, 5, 7, 9, 11, 13, 15)
"""Of the masks, in Figure 8."""

NAMES: Mapping[str, str] = {
    "none": "no attack",
    "label-flip": "label flip",
    "fang-trim": "Fang-Trim",
    "fang-krum": "Fang-Krum",
    "min-max": "Min-Max",
    "min-sum": "Min-Sum",
    "scaling": "Scaling",
}
"""The attacks as figures name them, in the paper's order."""
DATA: Mapping[str, str] = {
    "fashion-mnist": "Fashion-MNIST",
    "cifar-10": "CIFAR-10",
    "har": "UCI HAR",
    "digits": "digits",
}
"""The data sets likewise."""
_ATTACKING = [attack for attack in NAMES if attack != "none"]
_DIGITS: dict[str, Mapping[str, Any]] = {
    "digits q=0.5": {"data": "digits", "partition": Groups(0.5)}
}

Place = tuple[str, str]
"""A cell's row and column."""
Shows = Literal["curve", "failures", "trend", "updates", "masks", "ones"]


@dataclass(frozen=True)
class Line:
    """One line of a panel, and the cells that it is drawn from."""

    label: str
    places: tuple[Place, ...]
    at: tuple[float, ...] = ()
    """Where on the horizontal axis each cell is, in a "trend"."""


@dataclass(frozen=True)
class Panel:
    """A pair of axes."""

    shows: Shows
    """What is drawn of each line's cells (`series`)."""
    lines: tuple[Line, ...]
    title: str = ""
    across: str = "round"
    """What the horizontal axis is,"""
    up: str = "testing accuracy"
    """and the vertical one; panels of a page that have the same share its range."""
    of: str = ""
    """Of a "trend" the measure, of "ones" the module."""


@dataclass(frozen=True)
class Page:
    """What is drawn as one file: panels in rows of `columns`."""

    name: str
    title: str
    columns: int
    panels: tuple[Panel, ...]

    @property
    def places(self) -> list[Place]:
        """The cells that it shows, each once."""
        found = (p for panel in self.panels for line in panel.lines for p in line.places)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Figure(Sheet):
    """A figure by name: its cells, and how they are drawn."""

    kind: ClassVar[str] = "figure"
    pages: tuple[Page, ...]
    seeds: int = 3
    """Unless a person says otherwise."""


def figure_1() -> Figure:
    """The first two principal components of the updates, and of their masks."""
    cells, pages = [], []
    for setting, fields in _looked_at().items():
        place = (f"{setting} min-sum", OURS)
        cells.append(_look(place, fields, ATTACKS["min-sum"]))
        lines = (Line("", (place,)),)
        panels = (
            _scatter("updates", lines),
            _scatter("masks", lines),
        )
        pages.append(
            Page(_file(setting), f"Updates and masks, {_said(setting)}, Min-Sum", 2, panels)
        )
    title = "Updates and masks in the plane (Figure 1 of the paper)"
    return Figure("1", title, tuple(cells), tuple(pages), 1)


def figure_3() -> Figure:
    """The share of ones in the masks of each layer while they are trained."""
    cells, pages = [], []
    cnn = {"convolution 1": "0", "convolution 2": "3", "hidden layer": "7", "output layer": "9"}
    for setting, fields in _looked_at().items():
        modules = {"hidden layer": "1", "output layer": "3"} if fields["data"] == "digits" else cnn
        place = (f"{setting} fang-trim", OURS)
        cells.append(_look(place, fields, ATTACKS["fang-trim"]))
        panels = tuple(
            Panel("ones", (Line("", (place,)),), name, "mask step", "share of ones", module)
            for name, module in modules.items()
        )
        title = f"Ones in the masks, {_said(setting)}, Fang-Trim"
        pages.append(Page(_file(setting), title, len(panels), panels))
    title = "Masks in training (Figure 3 of the paper)"
    return Figure("3", title, tuple(cells), tuple(pages), 1)


def figure_4() -> Figure:
    """Accuracy over the rounds with 40, 60 and 80 % malicious clients."""

    def rules(data: str, share: float) -> dict[str, Defence]:
        found: dict[str, Defence] = {"FedAvg": FedAvg(), "Krum": Krum(share)}
        if share < 0.5:
            found |= {"Trim": TrimmedMean(share), "Multi-Krum": MultiKrum(share)}
        return found | {"FLTrust": FLTrust(), OURS: SkyMask(), PRINTED: printed(data)}

    cells, pages = [], []
    for setting, fields in (_only("fashion-mnist q=0.5", "har") | _DIGITS).items():
        panels = []
        for attack in _ATTACKING:
            for share in SHARES:
                row, lines = f"{setting} {share:.0%} {attack}", []
                for column, rule in rules(fields["data"], share).items():
                    made = Experiment(
                        attack=ATTACKS[attack], defence=rule, malicious=share, **fields
                    )
                    cells.append(Cell(row, column, made))
                    lines.append(Line(column, ((row, column),)))
                panels.append(Panel("curve", tuple(lines), f"{NAMES[attack]}, {share:.0%}"))
        title = f"40, 60 and 80 % malicious clients, {_said(setting)}"
        pages.append(Page(_file(setting), title, len(SHARES), tuple(panels)))
    title = "Many malicious clients (Figure 4 of the paper)"
    return Figure("4", title, tuple(cells), tuple(pages))


def figure_5() -> Figure:
    """Accuracy, and rounds in which malicious clients were missed: cells of Table II."""
    fashion = ["fashion-mnist q=0.5 fang-krum", "fashion-mnist q=0.5 min-sum"]
    shown = {
        "paper": [*fashion, "cifar-10 q=0.5 label-flip"],
        "har": ["har fang-krum", "har min-sum", "har label-flip"],
    }
    known = table_2()
    pages = []
    for name, rows in shown.items():
        lines = [tuple(Line(column, ((row, column),)) for column in known.columns) for row in rows]
        titles = [f"{NAMES[row.split()[-1]]}, {DATA[row.split()[0]]}" for row in rows]
        curves = (Panel("curve", *each) for each in zip(lines, titles, strict=True))
        failures = (Panel("failures", each, "detection failures", up="FNR") for each in lines)
        title = "Detection failures, " + ("as in the paper" if name == "paper" else _said(name))
        pages.append(Page(name, title, len(rows), (*curves, *failures)))
    wanted = {place for page in pages for place in page.places}
    cells = tuple(cell for cell in known.cells if (cell.row, cell.column) in wanted)
    return Figure("5", "Detection failures (Figure 5 of the paper)", cells, tuple(pages))


def figure_6() -> Figure:
    """Accuracy, FPR and FNR at the end against the root data set's bias."""
    title = "The root data set's bias (Figure 6 of the paper)"
    across = "root bias p"
    return Figure("6", title, tuple(_biased(SETTINGS)), tuple(_trends("p", BIASES, across)))


def figure_7() -> Figure:
    """Accuracy over the rounds for each bias of the root data set: cells of Figure 6."""
    settings = _only("fashion-mnist q=0.5", "har")
    pages = []
    for setting in settings:
        for rule in (OURS, PRINTED):
            panels = tuple(
                Panel(
                    "curve",
                    tuple(
                        Line(f"p={p:g}", ((f"{setting} {attack}", f"{rule} p={p:g}"),))
                        for p in BIASES
                    ),
                    name,
                )
                for attack, name in NAMES.items()
            )
            title = f"Biased root data sets, {rule}, {_said(setting)}"
            pages.append(Page(f"{_file(setting)}-{_file(rule)}", title, 2, panels))
    title = "Convergence with a biased root data set (Figure 7 of the paper)"
    return Figure("7", title, tuple(_biased(settings)), tuple(pages))


def figure_8() -> Figure:
    """Accuracy, FPR and FNR at the end against the number of the masks' dimensions."""
    cells = []
    for setting, fields in SETTINGS.items():
        for attack in NAMES:
            for dims in DIMENSIONS:
                own, paper = SkyMask(dims=dims), printed(fields["data"], dims=dims)
                rules: dict[str, Defence] = {OURS: own, PRINTED: paper}
                for column, rule in rules.items():
                    made = Experiment(
                        attack=ATTACKS[attack], defence=rule, malicious=MALICIOUS, **fields
                    )
                    cells.append(Cell(f"{setting} {attack}", f"{column} dims={dims}", made))
    pages = tuple(_trends("dims", DIMENSIONS, "dimensions of the masks"))
    return Figure("8", "Dimensions of the masks (Figure 8 of the paper)", tuple(cells), pages)


def _only(*settings: str) -> dict[str, Mapping[str, Any]]:
    return {setting: SETTINGS[setting] for setting in settings}


def _looked_at() -> dict[str, Mapping[str, Any]]:
    return _only("fashion-mnist q=0.5") | _DIGITS


def _look(place: Place, fields: Mapping[str, Any], attack: Attack) -> Cell:
    made = Experiment(
        attack=attack, defence=SkyMask(), malicious=MALICIOUS, rounds=ROUND, **fields
    )  # fmt: skip
    return Cell(*place, made, closeup=True)


def _scatter(of: Literal["updates", "masks"], lines: tuple[Line, ...]) -> Panel:
    return Panel(of, lines, of, "first component", f"second component of the {of}")


def _biased(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
    for setting, fields in settings.items():
        rules: dict[str, Defence] = {OURS: SkyMask(), PRINTED: printed(fields["data"])}
        for attack in NAMES:
            for p in BIASES:
                for column, rule in rules.items():
                    made = Experiment(
                        attack=ATTACKS[attack],
                        defence=rule,
                        malicious=MALICIOUS,
                        root_bias=p,
                        **fields,
                    )
                    yield Cell(f"{setting} {attack}", f"{column} p={p:g}", made)


def _trends(name: str, values: Sequence[float], across: str) -> Iterator[Page]:
    """A page a setting: accuracy, FPR and FNR below one another, a column for each rule."""
    measures = {"accuracy": "testing accuracy", "fpr": "FPR", "fnr": "FNR"}
    for setting in SETTINGS:
        panels = []
        for measure, up in measures.items():
            for rule in (OURS, PRINTED):
                lines = tuple(
                    Line(
                        shown,
                        tuple((f"{setting} {attack}", f"{rule} {name}={x:g}") for x in values),
                        tuple(values),
                    )
                    for attack, shown in NAMES.items()
                    if measure != "fnr" or attack != "none"
                )
                title = rule if measure == "accuracy" else ""
                panels.append(Panel("trend", lines, title, across, up, measure))
        title = f"{across.capitalize()}, {_said(setting)}"
        yield Page(_file(setting), title, 2, tuple(panels))


def _said(setting: str) -> str:
    """A setting as a title has it."""
    data, _, rest = setting.partition(" ")
    return DATA[data] + (f", {rest.replace('=', ' = ')}" if rest else "")


def _file(label: str) -> str:
    """`label` as part of a file's name."""
    return label.lower().replace(" ", "-").replace("=", "")


FIGURES: Mapping[str, Callable[[], Figure]] = {
    "1": figure_1,
    "3": figure_3,
    "4": figure_4,
    "5": figure_5,
    "6": figure_6,
    "7": figure_7,
    "8": figure_8,
}
"""Name -> what makes the figure."""
