"""Places of each table that were looked up in the paper by hand."""

from skymask.tables import published
from skymask.tables.paper import ATTACKS, SETTINGS


def test_every_cell_of_the_papers_tables_is_there():
    places = {(setting, attack) for setting in SETTINGS for attack in ATTACKS}
    for numbers, columns in (
        (published.table_1(), published.RULES),
        (published.table_2(), published.DETECTORS),
        (published.table_3(), published.THRESHOLDS),
    ):
        assert {place[:2] for place in numbers} == places
        assert len(numbers) == len(places) * len(columns)
        assert all("accuracy" in cell for cell in numbers.values())
        success = [place[1] for place, cell in numbers.items() if "attack_success" in cell]
        assert success == ["scaling"] * 5 * len(columns)
    fourth = published.table_4()
    assert len(fourth) == 2 * 2 * (1 + len(ATTACKS))
    assert {place[2] for place in fourth if place[0] == "cifar-10"} == {"200", "500"}


def test_rates_are_there_where_somebody_attacks():
    for numbers in (published.table_2(), published.table_3(), published.table_4()):
        for (_, attack, _), cell in numbers.items():
            judged = {"fpr_sampled", "fnr_sampled"} <= cell.keys()
            assert judged == (attack not in ("none", "fedavg"))
            assert all(0 <= value <= 1 for value in cell.values())


def test_table_1():
    numbers = published.table_1()
    assert numbers["fashion-mnist q=0.5", "fang-trim", "FedAvg"] == {"accuracy": 0.42}
    assert numbers["fashion-mnist q=0.1", "fang-krum", "Krum"] == {"accuracy": 0.26}
    assert numbers["cifar-10 q=0.5", "min-max", "Bulyan"] == {"accuracy": 0.55}
    trim = numbers["cifar-10 q=0.1", "scaling", "Trim"]
    assert trim == {"accuracy": 0.75, "attack_success": 0.67}
    assert numbers["har", "none", "Krum"] == {"accuracy": 0.81}
    last = numbers["har", "scaling", "SkyMask"]
    assert last == {"accuracy": 0.96, "attack_success": 0.20}


def test_table_2():
    numbers = published.table_2()
    assert numbers["fashion-mnist q=0.5", "min-max", "FLDetector"] == {
        "accuracy": 0.08,
        "fpr_sampled": 0.9694,
        "fnr_sampled": 1.0,
    }
    flipped = numbers["cifar-10 q=0.5", "label-flip", "SkyMask"]
    assert flipped == {"accuracy": 0.76, "fpr_sampled": 0.0472, "fnr_sampled": 0.026}
    assert numbers["har", "scaling", "SkyMask"]["fnr_sampled"] == 0.0008
    assert numbers["cifar-10 q=0.1", "none", "Tolpegin"] == {"accuracy": 0.75}


def test_table_3():
    numbers = published.table_3()
    assert numbers["cifar-10 q=0.5", "label-flip", "0.5"]["fpr_sampled"] == 0.0203
    assert numbers["har", "min-sum", "0.7"] == {
        "accuracy": 0.96,
        "fpr_sampled": 0.057,
        "fnr_sampled": 0.03,
    }
    assert numbers["fashion-mnist q=0.5", "scaling", "0.4"]["attack_success"] == 0.12


def test_table_4():
    numbers = published.table_4()
    assert numbers["fashion-mnist", "min-sum", "1000"]["fpr_sampled"] == 0.016
    assert numbers["cifar-10", "label-flip", "500"] == {
        "accuracy": 0.72,
        "fpr_sampled": 0.0636,
        "fnr_sampled": 0.0836,
    }
    assert numbers["cifar-10", "fedavg", "200"] == {"accuracy": 0.75}
