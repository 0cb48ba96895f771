"""The numbers that the paper prints in its Tables I to IV, as it prints them.

Yan et al., *SkyMask: Attack-agnostic Robust Federated Learning with Fine-grained Learnable Masks*,
ECCV 2024. Accuracies and attack success rates are shares ("accuracy/success" under Scaling), FPR
and FNR are in percent; "-" where the paper prints a slash. The tables disagree among themselves
here and there: on CIFAR-10, q = 0.5, under label flip, Table II has an FPR of 4.72 %, Table III one
of 2.03 % for the same settings.
"""

from collections.abc import Callable, Mapping

Published = Mapping[str, float]
"""Name of a measure -> the value in the paper, rates as shares."""

_TABLE_1 = """
fashion-mnist q=0.5:
    none 0.89 0.89 0.88 0.83 0.88 0.87 0.89 0.89
    label-flip 0.84 0.86 0.84 0.83 0.89 0.87 0.89 0.89
    min-max 0.58 0.89 0.70 0.83 0.64 0.65 0.89 0.89
    min-sum 0.80 0.89 0.73 0.47 0.82 0.75 0.89 0.89
    fang-trim 0.42 0.89 0.67 0.82 0.75 0.85 0.89 0.89
    fang-krum 0.86 0.89 0.84 0.47 0.70 0.78 0.89 0.89
    scaling 0.80/0.21 0.89/0.08 0.87/0.13 0.82/0.09 0.88/0.10 0.87/0.10 0.89/0.10 0.89/0.10
fashion-mnist q=0.1:
    none 0.90 0.89 0.89 0.86 0.89 0.87 0.89 0.90
    label-flip 0.81 0.88 0.84 0.86 0.89 0.87 0.89 0.90
    min-max 0.63 0.89 0.76 0.86 0.59 0.72 0.90 0.90
    min-sum 0.85 0.89 0.78 0.55 0.84 0.68 0.90 0.90
    fang-trim 0.53 0.89 0.74 0.86 0.84 0.86 0.90 0.90
    fang-krum 0.88 0.89 0.86 0.26 0.71 0.78 0.90 0.90
    scaling 0.83/0.21 0.89/0.10 0.88/0.14 0.85/0.11 0.89/0.11 0.87/0.11 0.89/0.10 0.90/0.10
cifar-10 q=0.5:
    none 0.77 0.75 0.77 0.54 0.72 0.72 0.76 0.76
    label-flip 0.71 0.74 0.71 0.55 0.69 0.68 0.75 0.76
    min-max 0.58 0.68 0.70 0.52 0.63 0.55 0.77 0.77
    min-sum 0.66 0.72 0.74 0.32 0.66 0.68 0.75 0.77
    fang-trim 0.10 0.68 0.19 0.52 0.53 0.49 0.75 0.76
    fang-krum 0.58 0.75 0.48 0.19 0.36 0.40 0.77 0.77
    scaling 0.10/1.00 0.74/0.13 0.72/0.51 0.53/0.08 0.73/0.10 0.73/0.10 0.77/0.09 0.77/0.10
cifar-10 q=0.1:
    none 0.79 0.78 0.78 0.63 0.73 0.73 0.79 0.79
    label-flip 0.76 0.76 0.74 0.64 0.72 0.73 0.77 0.78
    min-max 0.68 0.61 0.58 0.56 0.65 0.69 0.79 0.79
    min-sum 0.73 0.75 0.62 0.30 0.66 0.70 0.79 0.79
    fang-trim 0.10 0.70 0.38 0.62 0.54 0.69 0.78 0.78
    fang-krum 0.68 0.77 0.60 0.42 0.34 0.34 0.79 0.79
    scaling 0.10/1.00 0.76/0.12 0.75/0.67 0.62/0.10 0.74/0.10 0.74/0.10 0.78/0.11 0.79/0.10
har:
    none 0.96 0.96 0.96 0.81 0.95 0.94 0.96 0.96
    label-flip 0.88 0.95 0.81 0.86 0.79 0.74 0.96 0.96
    min-max 0.89 0.95 0.93 0.76 0.83 0.66 0.96 0.96
    min-sum 0.96 0.95 0.94 0.30 0.86 0.83 0.96 0.96
    fang-trim 0.23 0.96 0.80 0.77 0.65 0.82 0.96 0.96
    fang-krum 0.96 0.96 0.93 0.15 0.75 0.71 0.96 0.96
    scaling 0.72/0.20 0.96/0.20 0.92/0.16 0.84/0.19 0.96/0.20 0.94/0.19 0.96/0.19 0.96/0.20
"""
_TABLE_2 = """
fashion-mnist q=0.5:
    none 0.89 0.86 0.89 - - - - - -
    label-flip 0.89 0.86 0.89 0.11 0.05 0 0.38 0 0.02
    min-max 0.88 0.08 0.89 0.38 96.94 0.27 0.8 100 0.4
    min-sum 0.64 0.38 0.89 41.1 100 0.26 84.8 100 0
    fang-trim 0.88 0.86 0.89 0 0 0 0 0 0
    fang-krum 0.85 0.10 0.89 28.2 99.46 0.2 60.4 100 0
    scaling 0.89/0.10 0.89/0.10 0.89/0.10 0 0 0 0.03 0 0
fashion-mnist q=0.1:
    none 0.90 0.88 0.90 - - - - - -
    label-flip 0.89 0.87 0.90 0.07 0.02 0 0 0 0
    min-max 0.89 0.87 0.90 0.06 0 0 0 0.81 0
    min-sum 0.88 0.49 0.90 15.34 100 0.01 7.6 100 0
    fang-trim 0.90 0.88 0.90 0 0 0 0 0 0
    fang-krum 0.89 0.13 0.90 8.04 99.6 0.19 6.4 100 0
    scaling 0.89/0.11 0.90/0.11 0.90/0.10 0 0 0 0.68 0 0
cifar-10 q=0.5:
    none 0.76 0.75 0.76 - - - - - -
    label-flip 0.70 0.72 0.76 13.1 0.03 4.72 19.9 25.53 2.6
    min-max 0.61 0.11 0.77 36.5 100 0 88 100 0
    min-sum 0.59 0.31 0.77 38.8 100 0 78 100 0
    fang-trim 0.76 0.74 0.76 0 0.03 0 0 0 0
    fang-krum 0.17 0.31 0.77 37.4 87.18 0 84 100 0
    scaling 0.76/0.10 0.74/0.10 0.77/0.11 0 0 0 0.1 0 0
cifar-10 q=0.1:
    none 0.75 0.79 0.79 - - - - - -
    label-flip 0.73 0.75 0.78 3.45 0 3.24 5.8 4.26 0
    min-max 0.74 0.25 0.79 0.05 100 0 0 100 0
    min-sum 0.74 0.31 0.79 0.14 100 0 1 100 0
    fang-trim 0.74 0.77 0.78 0.03 0 0 0 0.05 0
    fang-krum 0.74 0.18 0.79 4.04 94.6 0 10.6 100 0
    scaling 0.79/0.09 0.78/0.10 0.79/0.10 0 0 0 0 0 0
har:
    none 0.96 0.92 0.96 - - - - - -
    label-flip 0.96 0.68 0.96 0.22 13.27 0 0.13 100 0
    min-max 0.96 0.07 0.96 1.38 100 0.83 2 100 0
    min-sum 0.95 0.53 0.96 31.6 100 4.53 32 100 4
    fang-trim 0.95 0.96 0.96 0 0 0.96 0 0 0
    fang-krum 0.95 0.13 0.96 26.4 100 0.03 29.3 100 0
    scaling 0.96/0.20 0.95/0.19 0.96/0.20 0.25 0 0 12.58 0 0.08
"""
_TABLE_3 = """
fashion-mnist q=0.5:
    none 0.89 0.89 0.89 0.89 0.89 - - - - - - - - - -
    label-flip 0.88 0.88 0.89 0.89 0.88 0.01 0.02 0 0.03 0.32 0.08 0.02 0.02 0 0.04
    min-max 0.89 0.89 0.89 0.89 0.89 0 0 0.27 0 0 0 0 0.4 0 0
    min-sum 0.88 0.89 0.89 0.89 0.88 0.04 0.2 0.26 0.34 0.89 0 0.4 0 0 1.6
    fang-trim 0.88 0.89 0.89 0.88 0.88 0 0 0 0 0 0 0 0 0 0
    fang-krum 0.89 0.89 0.89 0.89 0.89 0.18 0.28 0.2 0.4 0.28 0.4 0 0 0.4 0
    scaling 0.89/0.10 0.89/0.12 0.89/0.10 0.89/0.10 0.89/0.11 0 0 0 0 0 0 0 0 0 0
fashion-mnist q=0.1:
    none 0.88 0.89 0.90 0.89 0.89 - - - - - - - - - -
    label-flip 0.89 0.89 0.90 0.90 0.89 0 0 0 0 0 0 0 0 0 0
    min-max 0.89 0.90 0.90 0.90 0.89 0.08 0 0 0 0.01 0 0 0 0 0
    min-sum 0.89 0.89 0.90 0.90 0.89 0.04 0.05 0.01 0.01 0.34 0.13 0 0 0 1
    fang-trim 0.89 0.90 0.90 0.90 0.90 0 0 0 0 0 0 0 0 0 0
    fang-krum 0.89 0.89 0.90 0.90 0.89 0.77 0.56 0.19 0.05 0.07 1 0.2 0 0 0.2
    scaling 0.89/0.12 0.90/0.11 0.90/0.10 0.90/0.11 0.90/0.10 0 0 0 0 0 0 0 0 0 0
cifar-10 q=0.5:
    none 0.76 0.76 0.76 0.76 0.76 - - - - - - - - - -
    label-flip 0.76 0.76 0.76 0.76 0.76 4.72 4.33 2.03 2.4 6.65 5.7 2.8 2.6 4 6.3
    min-max 0.77 0.77 0.77 0.77 0.77 0 0 0 0 0 0 0 0 0 0
    min-sum 0.77 0.77 0.77 0.77 0.77 0 0 0 0 0 0 0 0 0 0
    fang-trim 0.76 0.77 0.76 0.76 0.76 0 0 0 0 0 0 0 0 0 0
    fang-krum 0.77 0.77 0.77 0.77 0.77 0 0 0 0 0 0 0 0 0 0
    scaling 0.76/0.09 0.76/0.12 0.77/0.12 0.77/0.10 0.77/0.10 0 0 0 0 0 0 0 0 0 0
cifar-10 q=0.1:
    none 0.79 0.78 0.79 0.78 0.78 - - - - - - - - - -
    label-flip 0.76 0.78 0.78 0.79 0.78 5.31 3.4 3.24 1.25 8.04 5.45 1.75 0 4.45 8.45
    min-max 0.78 0.79 0.79 0.79 0.78 0 0 0 0 0 0 0 0 0 0
    min-sum 0.78 0.79 0.79 0.79 0.79 0 0 0 0 0 0 0 0 0 0
    fang-trim 0.78 0.79 0.78 0.78 0.78 0 0 0 0 0 0 0 0 0 0
    fang-krum 0.78 0.79 0.79 0.78 0.78 0 0 0 0 0 0 0 0 0 0
    scaling 0.79/0.11 0.79/0.10 0.79/0.10 0.79/0.09 0.79/0.11 0 0 0 0 0 0 0 0 0 0
har:
    none 0.96 0.96 0.96 0.96 0.96 - - - - - - - - - -
    label-flip 0.96 0.96 0.96 0.96 0.96 0 0 0 0 0 0 0 0 0 0
    min-max 0.96 0.96 0.96 0.96 0.96 1.7 1.57 0.97 2.5 0.43 1 0 1 1 1.4
    min-sum 0.96 0.96 0.96 0.96 0.96 2.17 2.63 0.87 3.6 5.7 2.5 2 0.7 1 3
    fang-trim 0.96 0.96 0.96 0.96 0.96 0.16 0 0 0 0 2.63 0 0 0 0
    fang-krum 0.96 0.96 0.96 0.96 0.96 0.7 0.6 0 0.07 0 0 0 0 0 0
    scaling 0.96/0.22 0.96/0.19 0.96/0.20 0.96/0.16 0.96/0.20 0 0 0 0 0 0 0 0 0 0
"""
_TABLE_4 = """
fashion-mnist:
    fedavg 0.89 0.89 - - - -
    none 0.89 0.89 - - - -
    label-flip 0.89 0.89 0.4 0.4 0.94 0.62
    min-max 0.89 0.89 0.4 0.3 0 0
    min-sum 0.89 0.89 0.4 1.6 0 0
    fang-trim 0.89 0.89 0 0 0 0
    fang-krum 0.89 0.89 0.6 1.2 0 0
    scaling 0.89/0.11 0.89/0.10 0 0 0 0
cifar-10:
    fedavg 0.75 0.73 - - - -
    none 0.75 0.73 - - - -
    label-flip 0.75 0.72 2.94 6.36 3.62 8.36
    min-max 0.75 0.74 0 0 0 0
    min-sum 0.74 0.73 0 0 0 0
    fang-trim 0.75 0.73 0 0 0 0
    fang-krum 0.75 0.72 0 0 0 0
    scaling 0.75/0.09 0.74/0.11 0 0 0 0
"""

RULES = ("FedAvg", "FLTrust", "Trim", "Krum", "Multi-Krum", "Bulyan", "SkyMask-NR", "SkyMask")
"""The columns of Table I."""
DETECTORS = ("Tolpegin", "FLDetector", "SkyMask")
"""The columns of Table II, under accuracy, FPR and FNR."""
THRESHOLDS = ("0.3", "0.4", "0.5", "0.6", "0.7")
"""The columns of Table III, likewise."""
CLIENTS: Mapping[str, tuple[str, ...]] = {
    "fashion-mnist": ("500", "1000"),
    "cifar-10": ("200", "500"),
}
"""The columns of Table IV, likewise."""


def table_1() -> dict[tuple[str, str, str], Published]:
    """(setting, attack, rule) -> what Table I has there."""
    return _read(_TABLE_1, ("accuracy",), lambda setting: RULES)


def table_2() -> dict[tuple[str, str, str], Published]:
    """(setting, attack, rule) -> what Table II has there; every tenth round was looked at."""
    return _read(_TABLE_2, _JUDGED, lambda setting: DETECTORS)


def table_3() -> dict[tuple[str, str, str], Published]:
    """(setting, attack, tau) -> what Table III has there."""
    return _read(_TABLE_3, _JUDGED, lambda setting: THRESHOLDS)


def table_4() -> dict[tuple[str, str, str], Published]:
    """(data set, attack, clients) -> what Table IV has there; "fedavg" is FedAvg, not attacked."""
    return _read(_TABLE_4, _JUDGED, lambda setting: CLIENTS[setting])


_JUDGED = ("accuracy", "fpr_sampled", "fnr_sampled")


def _read(
    text: str, measures: tuple[str, ...], columns: Callable[[str], tuple[str, ...]]
) -> dict[tuple[str, str, str], Published]:
    """A table's text: a setting and a colon, below it a line for each attack."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    setting = ""
    for line in text.strip().splitlines():
        if line.endswith(":"):
            setting = line.removesuffix(":")
            continue
        attack, *values = line.split()
        places = [(measure, column) for measure in measures for column in columns(setting)]
        for (measure, column), value in zip(places, values, strict=True):
            cell = found.setdefault((setting, attack, column), {})
            if value != "-":
                shown, _, success = value.partition("/")
                percent = measure != "accuracy"
                cell[measure] = round(float(shown) / 100, 6) if percent else float(shown)
                if success:
                    cell["attack_success"] = float(success)
    return dict(found)
