"""A small figure of every kind, with records, for the tests of what is drawn."""

from dataclasses import replace

import skymask as sm
from skymask.tables.cell import Cell
from skymask.tables.figures import Figure, Line, Page, Panel
from skymask.tables.record import Record
from tests.tables.small import experiment, made_up

ROUNDS = 4
RULES = {"FedAvg": sm.FedAvg(), "SkyMask": sm.SkyMask(), "Krum": sm.Krum()}
CELLS = tuple(
    Cell("row", name, experiment(attack=sm.MinSum(), defence=rule, rounds=ROUNDS, eval_every=2))
    for name, rule in RULES.items()
)
LOOKED = replace(CELLS[1], row="looked at", closeup=True)
LINES = tuple(Line(name, (("row", name),)) for name in RULES)
CLOSE = (Line("", (("looked at", "SkyMask"),)),)
TREND = (Line("Min-Sum", (("row", "FedAvg"), ("row", "SkyMask")), (0.1, 0.9)),)

CURVES = Page(
    "curves",
    "Curves <b>",
    2,
    (
        Panel("curve", LINES, "left"),
        Panel("curve", LINES[2:], "right"),
        Panel("failures", LINES, up="missed"),
        Panel("trend", TREND, across="p", up="FPR", of="fpr"),
    ),
)
LOOK = Page(
    "look",
    "Look",
    2,
    (Panel("updates", CLOSE, up="second"), Panel("ones", CLOSE, up="ones", of="0")),
)
FIGURE = Figure("x", "A figure", (*CELLS, LOOKED), (CURVES, LOOK))

CLOSEUP = {
    "round": 4,
    "malicious": [True, False],
    "updates": [[1, 2], [3, 4], [5, 6]],
    "masks": [[0, 0], [0, 1], [1, 1]],
    "ones": {
        "0": {"honest": [[1, 1, 1], [0.5, 0.4, 0.6]], "malicious": [[1, 1, 1], [0.2, 0, 0.4]]}
    },
}


def record(
    place: int, seed: int, accuracy: list[float], positives: list[int], negatives: list[int]
) -> Record:
    """A record of a cell of the figure; 10 honest and 4 malicious clients."""
    return made_up(
        CELLS[place].seeded(seed),
        accuracy[-1],
        (positives, negatives),
        evaluations={"accuracy": accuracy},
    )


def looked(seed: int) -> Record:
    """A record with a close-up."""
    plain = record(1, seed, [0.1, 0.2], [0] * 4, [0] * 4)
    return Record({**plain.told, "closeup": CLOSEUP})


RECORDS = {
    found.key: found
    for found in (
        record(0, 1, [0.2, 0.4], [0, 0, 0, 0], [4, 4, 0, 4]),
        record(0, 2, [0.4, 0.8], [10, 10, 10, 10], [0, 0, 0, 0]),
        record(1, 1, [0.5, 0.9], [5, 5, 5, 5], [0, 1, 0, 0]),
        looked(1),
    )
}
