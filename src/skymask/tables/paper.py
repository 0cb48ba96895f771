"""Tables I to IV of the paper as experiments, its settings in section IV-A, its numbers beside.

What section IV-A fixes is in `experiment.DEFAULTS` and in the defaults of `Experiment`: 100 clients
(HAR: 30) of which 20 % are malicious, alpha = beta = 0.5, p = 0.1, 100 root samples, tau = 0.5,
gamma 1e7 (CIFAR-10: 1e8); 2,500 rounds of one step, 500 of five, 1,000 of one. What it leaves open,
and what is done here:

- Batch sizes: 32, and 64 on CIFAR-10, where clients compute in bfloat16: a third of the time, with
  the same accuracy within the noise of seeds (`results/bench/precision.md`).
- Malicious clients replace honest ones, so that 20 % of 100 are 20. Rules that need their number
  are told the true share, also where nobody attacks.
- Accuracy is the mean of the last five evaluations, one every ten rounds.
- Verdicts are sampled in rounds 10, 20, ...; FPR is counted in rows without attack too, where the
  paper prints a slash, and both rates over all rounds besides.
- "SkyMask" is this library's rule, "SkyMask.paper" the rule as printed; the paper's SKYMASK is
  beside both. SKYMASK-NR is printed with the same fixed gamma; here its step is relative to the
  gradient (`SkyMaskNR`), because a fixed one fits a single model and stage of training.
- Table IV names no q: 0.5. Its first line, FedAvg without attack, is the column FedAvg of "none".
- HAR's official files are merged and split 70 to 30 within each person, as the paper says.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from skymask.attacks import FangKrum, FangTrim, LabelFlip, MinMax, MinSum, NoAttack, Scaling
from skymask.data import Groups
from skymask.defences import (
    Bulyan,
    FedAvg,
    FLDetector,
    FLTrust,
    Krum,
    MultiKrum,
    SkyMask,
    SkyMaskNR,
    Tolpegin,
    TrimmedMean,
)
from skymask.defences.paper import PaperSkyMask
from skymask.experiment import DEFAULTS, Experiment
from skymask.tables import published
from skymask.tables.cell import Cell, Entry, Table, View
from skymask.types import Attack, Defence

MALICIOUS = 0.2
"""The share of malicious clients, which rules that ask for it are told."""

ATTACKS: Mapping[str, Attack] = {
    "none": NoAttack(),
    "label-flip": LabelFlip(),
    "min-max": MinMax(),
    "min-sum": MinSum(),
    "fang-trim": FangTrim(),
    "fang-krum": FangKrum(),
    "scaling": Scaling(),
}
"""The attacks of Tables I to IV."""

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "fashion-mnist": {"data": "fashion-mnist"},
    "cifar-10": {
        "data": "cifar-10",
        "local": replace(DEFAULTS["cifar-10"].local, precision="bfloat16"),
    },
    "har": {"data": "har"},
}
"""What is the same in all experiments with a data set."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "fashion-mnist q=0.5": {**FIELDS["fashion-mnist"], "partition": Groups(0.5)},
    "fashion-mnist q=0.1": {**FIELDS["fashion-mnist"], "partition": Groups(0.1)},
    "cifar-10 q=0.5": {**FIELDS["cifar-10"], "partition": Groups(0.5)},
    "cifar-10 q=0.1": {**FIELDS["cifar-10"], "partition": Groups(0.1)},
    "har": FIELDS["har"],
}
"""The data sets of Tables I to III, non-IID and IID."""

OURS, PRINTED = "SkyMask", "SkyMask.paper"
"""The columns of this library's rule and of the paper's own."""


def printed(data: str, **settings: Any) -> PaperSkyMask:
    """The paper's rule with its gamma for the data set."""
    return PaperSkyMask(gamma=DEFAULTS[data].gamma, **settings)


def table_1() -> Table:
    """Accuracy under seven attacks, nine rules, five settings."""
    numbers = published.table_1()

    def rules(data: str) -> dict[str, Defence]:
        return {
            "FedAvg": FedAvg(),
            "FLTrust": FLTrust(),
            "Trim": TrimmedMean(MALICIOUS),
            "Krum": Krum(MALICIOUS),
            "Multi-Krum": MultiKrum(MALICIOUS),
            "Bulyan": Bulyan(MALICIOUS),
            "SkyMask-NR": SkyMaskNR(),
            OURS: SkyMask(),
            PRINTED: printed(data),
        }

    cells = _grid(rules, lambda *place: numbers.get(place, {}), yardstick=True)
    columns = [*rules("har")]
    views = (
        View("Testing accuracy", _entries(columns, "accuracy")),
        View("Attack success rate", _entries(columns, "attack_success"), "*scaling"),
        View(
            "Testing accuracy less that of FedAvg without attack, points",
            _entries(["SkyMask-NR", OURS, PRINTED], "difference"),
        ),
    )
    return Table("1", "Accuracy under attack (Table I of the paper)", cells, views)


def table_2() -> Table:
    """Accuracy, FPR and FNR of four rules that name malicious clients."""
    numbers = published.table_2()

    def rules(data: str) -> dict[str, Defence]:
        return {
            "Tolpegin": Tolpegin(),
            "FLDetector": FLDetector(),
            OURS: SkyMask(),
            PRINTED: printed(data),
        }

    cells = _grid(rules, lambda *place: numbers.get(place, {}))
    title = "Detection of malicious clients (Table II of the paper)"
    return Table("2", title, cells, _detection_views([*rules("har")]))


def table_3() -> Table:
    """The binarisation threshold tau from 0.3 to 0.7, in both rules."""
    numbers = published.table_3()
    taus = {tau: f" tau={tau}" for tau in published.THRESHOLDS}

    def rules(data: str) -> dict[str, Defence]:
        ours = {OURS + said: SkyMask(tau=float(tau)) for tau, said in taus.items()}
        return ours | {PRINTED + said: printed(data, tau=float(tau)) for tau, said in taus.items()}

    cells = _grid(
        rules,
        lambda setting, attack, column: numbers.get(
            (setting, attack, column.rpartition("=")[2]), {}
        ),
    )
    title = "The threshold tau (Table III of the paper)"
    return Table("3", title, cells, _detection_views([*rules("har")]))


def table_4() -> Table:
    """Many clients: 500 and 1,000 on Fashion-MNIST, 200 and 500 on CIFAR-10."""
    numbers = published.table_4()
    cells = []
    for data, sizes in published.CLIENTS.items():
        for size in sizes:
            fields = {**FIELDS[data], "partition": Groups(0.5), "clients": int(size)}
            setting = f"{data} q=0.5 n={size}"
            yardstick = Experiment(malicious=MALICIOUS, **fields)
            for attack in ATTACKS:
                rules: dict[str, Defence] = {OURS: SkyMask(), PRINTED: printed(data)}
                if attack == "none":
                    rules = {"FedAvg": FedAvg()} | rules
                for column, defence in rules.items():
                    line = "fedavg" if column == "FedAvg" else attack
                    cells.append(
                        _cell(
                            setting,
                            attack,
                            column,
                            defence,
                            fields,
                            numbers[data, line, size],
                            yardstick,
                        )
                    )
    columns = ["FedAvg", OURS, PRINTED]
    views = (
        *_detection_views(columns),
        View(
            "Testing accuracy less that of FedAvg without attack, points",
            _entries(columns[1:], "difference"),
        ),
    )
    return Table("4", "Many clients (Table IV of the paper)", tuple(cells), views)


def _grid(
    rules: Callable[[str], Mapping[str, Defence]],
    numbers: Callable[[str, str, str], published.Published],
    yardstick: bool = False,
) -> tuple[Cell, ...]:
    """Every setting and attack with every rule; the yardstick is FedAvg without attack."""
    cells = []
    for setting, fields in SETTINGS.items():
        held_to = Experiment(malicious=MALICIOUS, **fields) if yardstick else None
        for attack in ATTACKS:
            for column, defence in rules(fields["data"]).items():
                line = numbers(setting, attack, OURS if column == PRINTED else column)
                cells.append(_cell(setting, attack, column, defence, fields, line, held_to))
    return tuple(cells)


def _cell(
    setting: str,
    attack: str,
    column: str,
    defence: Defence,
    fields: Mapping[str, Any],
    numbers: published.Published,
    yardstick: Experiment | None,
) -> Cell:
    experiment = Experiment(attack=ATTACKS[attack], defence=defence, malicious=MALICIOUS, **fields)
    return Cell(f"{setting} {attack}", column, experiment, yardstick, numbers)


def _entries(columns: list[str], measure: str) -> tuple[Entry, ...]:
    return tuple(Entry(column, column, measure) for column in columns)


def _detection_views(columns: list[str]) -> tuple[View, ...]:
    judging = [column for column in columns if column != "FedAvg"]
    return (
        View("Testing accuracy", _entries(columns, "accuracy")),
        View("Attack success rate", _entries(columns, "attack_success"), "*scaling"),
        View("FPR, every tenth round", _entries(judging, "fpr_sampled")),
        View("FNR, every tenth round", _entries(judging, "fnr_sampled")),
        View("FPR, all rounds", _entries(judging, "fpr")),
        View("FNR, all rounds", _entries(judging, "fnr")),
    )
