"""The numbers that a figure draws, read off records: one home for the picture and its CSV."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from skymask.tables.cell import Cell, seedless
from skymask.tables.closeup import KINDS
from skymask.tables.figures import Figure, Line, Page, Panel, Place, Shows
from skymask.tables.measures import MEASURES
from skymask.tables.record import Record, repeats


@dataclass(frozen=True)
class Series:
    """One line's numbers, or a group of points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """The least over seeds (of "ones": clients and seeds), beside each y; empty for points."""
    high: Sequence[float] = ()
    seeds: tuple[int, ...] = ()
    """Which seeds are in it."""
    rounds: int = 0
    """Of "failures": how many rounds there were in all."""


@dataclass(frozen=True)
class Found:
    """The records of a figure's cells, by place."""

    cells: Mapping[Place, Cell]
    records: Mapping[Place, Sequence[Record]]
    """By seed; empty where a cell has none."""

    def seeds(self, places: Sequence[Place]) -> tuple[int, ...]:
        """The seeds that there is a record of, of any of the cells."""
        return tuple(sorted({r.seed for place in places for r in self.records[place]}))


def find(figure: Figure, records: Mapping[str, Record]) -> Found:
    """The records that belong to the figure's cells, of any seed."""
    plain = repeats(records)
    close = repeats({name: record for name, record in records.items() if record.closeup})
    cells = {(cell.row, cell.column): cell for cell in figure.cells}
    return Found(
        cells,
        {
            place: (close if cell.closeup else plain).get(seedless(cell.experiment), [])
            for place, cell in cells.items()
        },
    )


def series(panel: Panel, found: Found) -> list[Series]:
    """What a panel draws; lines without a record are not there."""
    return [made for line in panel.lines for made in _KINDS[panel.shows](line, found, panel.of)]


def pages(figure: Figure, found: Found) -> Iterator[tuple[Page, list[list[Series]]]]:
    """The pages that there is anything to draw on, with the series of each panel."""
    for page in figure.pages:
        drawn = [series(panel, found) for panel in page.panels]
        if any(drawn):
            yield page, drawn


def _curve(line: Line, found: Found, of: str) -> Iterator[Series]:
    """Testing accuracy after each evaluation: mean, least and largest over seeds."""
    (place,) = line.places
    records = found.records[place]
    if records:
        yield _over_seeds(
            line.label,
            [{float(x): y for x, y in r.accuracy} for r in records],
            found.seeds([place]),
        )


def _failures(line: Line, found: Found, of: str) -> Iterator[Series]:
    """The rounds in which a malicious client was accepted, and the FNR; a series each seed."""
    (place,) = line.places
    for record in found.records[place]:
        missed = [(i, fnr) for i, fnr in enumerate(record.fnr, 1) if fnr]
        x, y = [float(i) for i, _ in missed], [fnr for _, fnr in missed]
        yield Series(line.label, x, y, seeds=(record.seed,), rounds=len(record.fnr))


def _trend(line: Line, found: Found, of: str) -> Iterator[Series]:
    """A measure of each cell: mean, least and largest over seeds."""
    values: dict[int, dict[float, float]] = {}
    for place, x in zip(line.places, line.at, strict=True):
        for record in found.records[place]:
            value = MEASURES[of].of(record, found.cells[place])
            if value is not None:
                values.setdefault(record.seed, {})[x] = value
    if values:
        yield _over_seeds(line.label, [*values.values()], tuple(sorted(values)))


def _points(which: str) -> Callable[[Line, Found, str], Iterator[Series]]:
    def points(line: Line, found: Found, of: str) -> Iterator[Series]:
        """The clients' points of the first seed, and the server's own."""
        (place,) = line.places
        for record in found.records[place][:1]:
            seen = record.closeup
            assert seen is not None
            at = seen.updates if which == "updates" else seen.masks
            marks = {"the server's own": [False] * len(seen.malicious) + [True]}
            for kind in reversed(KINDS):
                bad = kind == "malicious"
                marks = {kind: [*(mark is bad for mark in seen.malicious), False]} | marks
            for label, mark in marks.items():
                some = [point for point, there in zip(at, mark, strict=True) if there]
                if some:
                    x, y = ([point[axis] for point in some] for axis in (0, 1))
                    yield Series(label, x, y, seeds=(record.seed,))

    return points


def _ones(line: Line, found: Found, of: str) -> Iterator[Series]:
    """The share of ones of each kind of client before and after each mask step."""
    (place,) = line.places
    seen = [record.closeup.ones.get(of, {}) for record in found.records[place] if record.closeup]
    for kind in KINDS:
        runs = [kinds[kind] for kinds in seen if kind in kinds]
        if runs:
            steps = min(map(len, runs))
            columns = [[run[step] for run in runs] for step in range(steps)]
            yield Series(
                kind,
                [float(step) for step in range(steps)],
                [statistics.fmean(mean for mean, _, _ in each) for each in columns],
                [min(low for _, low, _ in each) for each in columns],
                [max(high for _, _, high in each) for each in columns],
                found.seeds([place]),
            )


_KINDS: Mapping[Shows, Callable[[Line, Found, str], Iterator[Series]]] = {
    "curve": _curve,
    "failures": _failures,
    "trend": _trend,
    "updates": _points("updates"),
    "masks": _points("masks"),
    "ones": _ones,
}


def _over_seeds(
    label: str, runs: Sequence[Mapping[float, float]], seeds: tuple[int, ...]
) -> Series:
    """Mean, least and largest value at each place on the axis, of the runs that have one there."""
    at = sorted({x for run in runs for x in run})
    columns = [[run[x] for run in runs if x in run] for x in at]
    return Series(
        label,
        at,
        [statistics.fmean(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
        seeds,
    )
