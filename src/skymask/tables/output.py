"""A figure's files: a picture and a CSV file for each page, and what they must be read with.

figure-4-har.svg      the picture
figure-4-har.csv      every number that is drawn
figure-4.json         captions, what is missing, and the conditions of the records
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skymask.records import json_text, replace_file, writing
from skymask.report.pictures import Row, csv_text, renderer
from skymask.tables.cell import identity, seedless
from skymask.tables.drawing import drawing
from skymask.tables.figures import Figure, Page, Place
from skymask.tables.record import Record
from skymask.tables.render import conditions
from skymask.tables.series import Found, Series, find, pages

FORMATS = ("svg", "png", "csv")
HEADER = ("panel", "measure", "line", "seeds", "x", "y", "low", "high")

_READ: Mapping[str, str] = {
    "failures": "Bars are the rounds in which a malicious client was accepted, side by side for "
    "each seed.",
    "trend": "Accuracy is the mean of the last five evaluations, FPR and FNR are means over all "
    "rounds.",
    "updates": "The first two principal components, a point each client; those of clients that "
    "sent the same lie on one another.",
    "ones": "Lines are means over clients and seeds, bands reach from the least client to the "
    "largest.",
}
"""What is shown -> how it is to be read."""
_SEEDS = "Lines are means over seeds, bands reach from the least to the largest."


@dataclass(frozen=True)
class Written:
    """What was written of a figure."""

    files: Mapping[str, list[Path]]
    """By what they are: "json", and of `FORMATS`."""
    lacks: Mapping[str, Any]
    """Cells, each seed counted, how many of them are missing, and pages that are not drawn."""


def write_figure(
    figure: Figure,
    records: Mapping[str, Record],
    folder: Path,
    seeds: int,
    formats: Sequence[str] = ("svg", "csv"),
) -> Written:
    """Draw the figure as far as there are records; `seeds` are wanted of each cell.

    Pages without a record are not drawn. Raises `InputError` where pictures cannot be drawn
    (`pictures.renderer`) or files not be written.
    """
    found = find(figure, records)
    files: dict[str, list[Path]] = {kind: [] for kind in ("json", *formats)}
    made = [
        (page, drawn, caption(figure, page, found, seeds)) for page, drawn in pages(figure, found)
    ]

    def write(name: str, kind: str, content: bytes) -> None:
        path = folder / f"{name}.{kind}"
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        files[kind].append(path)

    for page, drawn, _ in made:
        if "csv" in formats:
            write(f"{figure.stem}-{page.name}", "csv", csv_text(HEADER, rows(page, drawn)))
    painted = [kind for kind in formats if kind != "csv"]
    if painted and made:
        with renderer() as draw:
            for page, drawn, text in made:
                for kind in painted:
                    picture = draw(drawing(page, drawn, text), kind)
                    write(f"{figure.stem}-{page.name}", kind, picture)
    lacks = _lacks(figure, found, seeds)
    used = {id(record): record for each in found.records.values() for record in each}
    told = {
        "figure": figure.name,
        "title": figure.title,
        "rounds": figure.rounds,
        "seeds": seeds,
        "pages": [
            {
                "name": page.name,
                "title": page.title,
                "caption": text,
                "records": _identities(page, found),
            }
            for page, _, text in made
        ],
        "lacks": lacks,
        "conditions": conditions([*used.values()]),
    }
    write(figure.stem, "json", (json_text(told, indent=2) + "\n").encode())
    return Written(files, lacks)


def rows(page: Page, drawn: Sequence[Sequence[Series]]) -> Iterator[Row]:
    """What is drawn, a row a point (`HEADER`); a panel is told by its title and its axis."""
    above: dict[int, str] = {}
    for index, (panel, series) in enumerate(zip(page.panels, drawn, strict=True)):
        column = index % page.columns
        title = above[column] = panel.title or above.get(column, "")
        for each in series:
            of = " ".join(map(str, each.seeds))
            for at, (x, y) in enumerate(zip(each.x, each.y, strict=True)):
                beside = (each.low[at], each.high[at]) if each.low else (None, None)
                values = (None if v is None else f"{v:.6g}" for v in (x, y, *beside))
                yield title, panel.up, each.label, of, *values


def caption(figure: Figure, page: Page, found: Found, seeds: int) -> str:
    """How the page is to be read, of which seeds it is, and what is missing."""
    shown = dict.fromkeys(panel.shows for panel in page.panels)
    parts = [_READ[kind] for kind in shown if kind in _READ]
    there = found.seeds(page.places)
    if len(there) > 1 and {"curve", "trend"} & shown.keys():
        parts.append(_SEEDS)
    looked = {r.closeup.round for p in page.places for r in found.records[p] if r.closeup}
    if looked:
        parts.append(f"Round {', '.join(map(str, sorted(looked)))}.")
        if "updates" in shown:
            there = there[:1]
    parts.append(f"Seed{'s' if len(there) > 1 else ''} {', '.join(map(str, there))}.")
    if figure.rounds:
        parts.append(f"Cut to {figure.rounds:,} rounds a cell.")
    cells, missing = _count(found, page.places, seeds)
    if missing:
        parts.append(f"{missing:,} of {cells:,} cells are missing, each seed counted.")
    return " ".join(parts)


def _count(found: Found, places: Sequence[Place], seeds: int) -> tuple[int, int]:
    """How many cells there are at `places`, each seed counted, and how many have no record."""
    cells = {place: found.cells[place] for place in places}
    once = {(seedless(cell.experiment), cell.closeup): at for at, cell in cells.items()}
    there = sum(min(len(found.records[place]), seeds) for place in once.values())
    return seeds * len(once), seeds * len(once) - there


def _lacks(figure: Figure, found: Found, seeds: int) -> dict[str, Any]:
    cells, missing = _count(found, [*found.cells], seeds)
    empty = [
        page.name for page in figure.pages if not any(found.records[place] for place in page.places)
    ]
    return {"cells": cells, "missing": missing, "empty_pages": empty}


def _identities(page: Page, found: Found) -> list[str]:
    used = (record for place in page.places for record in found.records[place])
    return list(dict.fromkeys(identity(record.told["experiment"]) for record in used))
