"""What is read off a record, and what several seeds say together."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skymask.tables.cell import Cell
from skymask.tables.record import Rates, Record

SAMPLED = 10
"""The paper looks at the verdicts of every tenth round (section IV-C)."""
EARLY = 20
"""The first rounds, in which an inverted verdict is looked for."""
CAUGHT = 0.1
"""Late attackers are caught in the first round whose FNR is at most this."""


@dataclass(frozen=True)
class Statistic:
    """A measure over the seeds."""

    value: float
    """The mean, or the largest (`Measure.largest`)."""
    spread: float | None
    """Sample standard deviation; None for one seed, and beside a largest value."""
    seeds: int


@dataclass(frozen=True)
class Measure:
    """One number of a record."""

    meaning: str
    kind: Literal["accuracy", "rate", "count"]
    of: Callable[[Record, Cell], float | None]
    """None where the record does not say."""
    largest: bool = False
    """Over seeds the largest value is told, not the mean."""

    def over(self, records: Sequence[Record], cell: Cell) -> Statistic | None:
        """The measure over seeds; None if no record has it."""
        values = [v for record in records if (v := self.of(record, cell)) is not None]
        if not values:
            return None
        if self.largest or len(values) == 1:
            return Statistic(max(values), None, len(values))
        return Statistic(statistics.fmean(values), statistics.stdev(values), len(values))


MEASURES: Mapping[str, Measure] = {
    "accuracy": Measure(
        "testing accuracy, mean of the last five evaluations",
        "accuracy",
        lambda record, cell: record.summary["accuracy_last5"],
    ),
    "attack_success": Measure(
        "share of all test samples with the trigger that are put in its class, at the end",
        "accuracy",
        lambda record, cell: record.summary["attack_success"],
    ),
    "fpr": Measure(
        "share of honest clients rejected, mean over all rounds",
        "rate",
        lambda record, cell: mean(record.fpr),
    ),
    "fnr": Measure(
        "share of malicious clients accepted, mean over all rounds",
        "rate",
        lambda record, cell: mean(record.fnr),
    ),
    "fpr_first_third": Measure(
        "FPR of the first third of the rounds",
        "rate",
        lambda record, cell: mean(_first_third(record.fpr)),
    ),
    "fnr_first_third": Measure(
        "FNR of the first third of the rounds",
        "rate",
        lambda record, cell: mean(_first_third(record.fnr)),
    ),
    "fpr_last_third": Measure(
        "FPR of the last third of the rounds",
        "rate",
        lambda record, cell: mean(_first_third(record.fpr[::-1])),
    ),
    "fnr_last_third": Measure(
        "FNR of the last third of the rounds",
        "rate",
        lambda record, cell: mean(_first_third(record.fnr[::-1])),
    ),
    "fpr_sampled": Measure(
        "FPR of every tenth round, as in the paper",
        "rate",
        lambda record, cell: mean(record.fpr[SAMPLED - 1 :: SAMPLED]),
    ),
    "fnr_sampled": Measure(
        "FNR of every tenth round, as in the paper",
        "rate",
        lambda record, cell: mean(record.fnr[SAMPLED - 1 :: SAMPLED]),
    ),
    "fnr_since": Measure(
        "FNR from a round on: 20 unless the row says otherwise, or the attack's first",
        "rate",
        lambda record, cell: None if cell.since is None else mean(record.fnr[cell.since :]),
    ),
    "worst": Measure(
        "largest FPR of a single round, in any seed",
        "rate",
        lambda record, cell: max((v for v in record.fpr if v is not None), default=None),
        largest=True,
    ),
    "inverted": Measure(
        "rounds among the first twenty with FPR and FNR of one half or more, in any seed",
        "count",
        lambda record, cell: _inverted(record),
        largest=True,
    ),
    "caught": Measure(
        "rounds from the attack's first on until at least 90 % of the attackers are rejected, "
        "1 if at once, in the slowest seed",
        "count",
        lambda record, cell: None if cell.starts is None else _caught(record, cell.starts),
        largest=True,
    ),
}


def mean(rates: Rates) -> float | None:
    """Mean over the rounds in which there is a value; None without any."""
    values = [rate for rate in rates if rate is not None]
    return statistics.fmean(values) if values else None


def difference(some: Statistic, other: Statistic) -> tuple[float, float | None]:
    """The difference of two means over seeds, and its standard error.

    The seeds' samples are taken as independent: the square root of the sum of both variances of
    the mean. None where one of them has a single seed.
    """
    gap = some.value - other.value
    if some.spread is None or other.spread is None:
        return gap, None
    return gap, math.sqrt(some.spread**2 / some.seeds + other.spread**2 / other.seeds)


def _first_third(rates: Rates) -> Rates:
    return rates[: max(1, len(rates) // 3)]


def _inverted(record: Record) -> float | None:
    pairs = zip(record.fpr[:EARLY], record.fnr[:EARLY], strict=True)
    judged = [(fpr, fnr) for fpr, fnr in pairs if fpr is not None and fnr is not None]
    return sum(fpr >= 0.5 and fnr >= 0.5 for fpr, fnr in judged) if judged else None


def _caught(record: Record, starts: int) -> float | None:
    after = record.fnr[starts:]
    if not after:
        return None
    return next(
        (i for i, fnr in enumerate(after, 1) if fnr is not None and fnr <= CAUGHT), math.inf
    )
