"""The cases are those that detection is held to."""

import skymask as sm
from skymask.models import MODELS
from skymask.tables.detection import ALONE, CIFAR, FASHION, LATE, table_detection
from skymask.tables.paper import OURS, PRINTED

TABLE = table_detection()


def cell(row: str, column: str = OURS):
    (found,) = TABLE.select([row], [column])
    return found


def test_every_row_has_the_yardstick_and_both_rules():
    for row in TABLE.rows:
        columns = {c.column for c in TABLE.cells if c.row == row}
        assert {ALONE, OURS, PRINTED} <= columns
        assert columns - {ALONE, OURS, PRINTED} in (set(), {"FLTrust", "FedAvg"})
        (own,) = (c for c in TABLE.cells if c.row == row and c.column == OURS)
        assert own.target is not None


def test_the_yardstick_is_fedavg_on_the_honest_clients_alone():
    for each in TABLE.cells:
        if each.column == ALONE:
            e = each.experiment
            assert type(e.attack) is sm.NoAttack
            assert type(e.defence) is sm.FedAvg
            assert e.honest_only == (not each.row.endswith(" none"))
        else:
            held_to, e = each.yardstick, each.experiment
            assert (held_to.rounds, held_to.clients, held_to.malicious, held_to.partition) == (
                e.rounds,
                e.clients,
                e.malicious,
                e.partition,
            )


def test_each_layer_is_poisoned_in_turn():
    for setting, model in ((FASHION, "cnn"), (CIFAR, "resnet-20")):
        module = MODELS[model]((3, 32, 32) if setting is CIFAR else (1, 28, 28), 10)
        holders = [n for n, m in module.named_modules() if list(m.parameters(recurse=False))]
        rows = [row for row in TABLE.rows if row.startswith(f"{setting.label} single-layer ")]
        assert [row.rpartition(" ")[2] for row in rows] == holders
    assert cell("har single-layer 1.bias").experiment.attack == sm.SingleLayer("1.bias")


def test_shares_participation_and_root_are_as_the_rows_say():
    assert cell("har 60% min-max").experiment.malicious == 0.6
    some = cell("fashion-mnist q=0.5 100 of 1000 min-max").experiment
    assert (some.clients, some.participation) == (1000, 0.1)
    assert cell("har root p=0.95 none").experiment.root_bias == 0.95
    assert cell("har root noise 10% none").experiment.root_noise == 0.1
    assert cell("har root of 20 none").experiment.root_size == 20
    assert cell("fashion-mnist dirichlet 0.3 none").experiment.partition == sm.Dirichlet(0.3)


def test_fedavg_beside_a_bad_root_is_one_cell_whatever_the_root():
    rows = ["har root p=0.2 min-sum", "har root noise 10% min-sum"]
    first, second = (cell(row, "FedAvg").experiment for row in rows)
    assert first == second
    assert cell(rows[0], "FLTrust").experiment != cell(rows[1], "FLTrust").experiment


def test_attackers_that_adapt_are_given_the_rule_that_they_meet():
    for column in (OURS, PRINTED, "FLTrust", "FedAvg"):
        e = cell("har adaptive alie", column).experiment
        assert e.attack == sm.Adaptive(e.defence, family="alie")
    white = {c: cell("har white-box", c).experiment for c in (OURS, PRINTED, "FLTrust")}
    assert white[PRINTED].attack == sm.WhiteBox(white[PRINTED].defence)
    assert white["FLTrust"].attack == white[OURS].attack == sm.WhiteBox(sm.SkyMask())


def test_late_attackers_are_looked_at_from_their_first_round_on():
    late = cell("har min-sum from 150")
    assert (late.since, late.starts, late.target.caught) == (LATE, LATE, 5)
    assert late.experiment.attack == sm.StartsAt(LATE, sm.MinSum())
    once = cell("har one shot at 150")
    assert (once.since, once.starts) == (None, LATE)
    assert cell("cifar-10 q=0.5 label-flip").since == 40
    assert cell("har label-flip").since == 20


def test_rows_with_a_backdoor_bound_its_success():
    assert cell("har 40% scaling").target.success == 0.25
    assert cell("har one shot at 150").target.success == 0.25
    assert cell("har mixed four").target.success == 0.25
    assert cell("har min-max").target.success is None
