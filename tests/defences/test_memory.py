"""What is remembered of clients equals a plain loop over rounds, whoever is away."""

import pytest
import torch

from skymask.defences.memory import ROOT, ClientAverages, PairAverages, recalled
from skymask.randomness import generator
from tests.test_laws import same_memory, saved

KEEP = 0.8
CLIENTS = 12


def drawn(index: int, n: int) -> dict[str, torch.Tensor]:
    values = torch.randn(2, n + 1, generator=generator("memory", index), dtype=torch.float64)
    return {"length": values[0], "alignment": values[1]}


def present(index: int) -> torch.Tensor:
    """Other clients in another order in every round; ids with gaps."""
    draw = generator("present", index)
    size = int(torch.randint(1, CLIENTS + 1, (), generator=draw))
    return 7 * torch.randperm(CLIENTS, generator=draw)[:size]


def test_averages_of_clients_are_those_of_a_loop():
    known: dict[int, list[float]] = {}
    past = None
    for index in range(25):
        ids = present(index)
        seen = drawn(index, len(ids))
        averages = ClientAverages.of(past, ids, seen, KEEP)
        past = averages.stored()
        for row, client in enumerate([*ids.tolist(), ROOT]):
            sums = known.setdefault(client, [0.0, 0.0, 0.0])
            observed = (1.0, float(seen["length"][row]), float(seen["alignment"][row]))
            for i, value in enumerate(observed):
                sums[i] = KEEP * sums[i] + (1 - KEEP) * value
            for i, name in ((1, "length"), (2, "alignment")):
                assert averages.values[name][row].item() == pytest.approx(sums[i] / sums[0])
    assert len(known) == CLIENTS + 1
    assert past["all"]["ids"].tolist() == sorted(known)[1:]


def test_averages_of_pairs_are_those_of_a_loop_over_the_last_rounds_clients():
    known: dict[tuple[int, int], tuple[float, float]] = {}
    past = None
    for index in range(25):
        ids = present(index)
        n = len(ids) + 1
        seen = torch.randn(n, n, generator=generator("pairs", index), dtype=torch.float64)
        averages = PairAverages.of(past, ids, seen, KEEP)
        past = averages.stored()
        rows = [*ids.tolist(), ROOT]
        before, known = known, {}
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                s, w = before.get((one, other), (0.0, 0.0))
                s, w = KEEP * s + (1 - KEEP) * float(seen[i, j]), KEEP * w + (1 - KEEP)
                known[one, other] = s, w
                # Sums are stored in single precision.
                assert averages.values[i, j].item() == pytest.approx(s / w, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_the_noise_of_an_average_is_the_sum_of_its_squared_weights(keep):
    past, shares = None, torch.zeros(0)
    for _ in range(6):
        seen = {"x": torch.zeros(2, dtype=torch.float64)}
        averages = ClientAverages.of(past, torch.tensor([4]), seen, keep)
        past = averages.stored()
        shares = torch.cat([keep * shares, torch.tensor([1.0 - keep])])
        expected = (shares / shares.sum()).square().sum()
        assert averages.noise.tolist() == pytest.approx([expected.item()] * 2)


def test_what_is_recalled_goes_by_client_id():
    seen = {"x": torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)}
    past = ClientAverages.of(None, torch.tensor([7, 3]), seen, 0.0).stored()
    assert recalled(past, torch.tensor([3, 5, 7, 9, 1]), "x").tolist() == [2, 0, 1, 0, 0]
    assert recalled(past, torch.tensor([3]), "y").tolist() == [0]
    assert recalled(None, torch.tensor([3]), "x").tolist() == [0]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_what_is_always_the_same_is_its_own_average_from_the_start(keep):
    ids, seen = torch.tensor([3, 1]), {"x": torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)}
    pair = torch.arange(9, dtype=torch.float64).view(3, 3)
    past = pairs = None
    for _ in range(6):
        averages = ClientAverages.of(past, ids, seen, keep)
        both = PairAverages.of(pairs, ids, pair, keep)
        torch.testing.assert_close(averages.values["x"], seen["x"])
        torch.testing.assert_close(both.values, pair, rtol=1e-6, atol=1e-6)
        past, pairs = averages.stored(), both.stored()


def test_without_memory_only_the_last_round_counts():
    ids = torch.arange(4)
    past = ClientAverages.of(None, ids, drawn(0, 4), 0.0).stored()
    later = drawn(1, 4)
    values = ClientAverages.of(past, ids, later, 0.0).values
    for name in later:
        assert values[name].equal(later[name])


def test_an_id_that_comes_twice_is_one_client():
    ids = torch.tensor([4, 2, 4])
    seen = {"x": torch.tensor([1.0, 7.0, 3.0, 0.0], dtype=torch.float64)}
    first = ClientAverages.of(None, ids, seen, KEEP)
    assert first.values["x"].tolist() == pytest.approx([2.0, 7.0, 2.0, 0.0])
    assert first.state["ids"].tolist() == [2, 4]
    once = ClientAverages.of(
        None, torch.tensor([4, 2]), {"x": torch.tensor([2.0, 7.0, 0.0], dtype=torch.float64)}, KEEP
    )
    assert same_memory(first.stored(), once.stored())


def test_pairs_with_an_id_that_comes_twice_are_those_of_the_round_alone():
    ids, past = torch.tensor([4, 2, 4]), None
    for index in range(3):
        seen = torch.randn(4, 4, generator=generator("twice", index), dtype=torch.float64)
        pairs = PairAverages.of(past, ids, seen, KEEP)
        torch.testing.assert_close(pairs.values, seen)
        past = pairs.stored()
    later = torch.tensor([4, 2, 9])
    assert PairAverages.of(past, later, torch.eye(4).double(), KEEP).values.isfinite().all()


def test_the_order_of_the_clients_does_not_matter():
    ids, order = present(3), None
    order = torch.randperm(len(ids), generator=generator("order"))
    rows = torch.cat([order, torch.tensor([len(ids)])])
    some = other = pairs = permuted = None
    for index in range(4):
        seen = drawn(index, len(ids))
        gram = torch.outer(seen["length"], seen["alignment"])
        one = ClientAverages.of(some, ids, seen, KEEP)
        two = ClientAverages.of(other, ids[order], {k: v[rows] for k, v in seen.items()}, KEEP)
        left = PairAverages.of(pairs, ids, gram, KEEP)
        right = PairAverages.of(permuted, ids[order], gram[rows][:, rows], KEEP)
        some, other = one.stored(), two.stored()
        pairs, permuted = left.stored(), right.stored()
        assert same_memory(some, other)
        for name in seen:
            assert two.values[name].equal(one.values[name][rows])
        assert right.values.equal(left.values[rows][:, rows])


def test_memories_survive_a_run_folder(tmp_path):
    ids, seen = present(3), drawn(1, len(present(3)))
    gram = torch.outer(seen["length"], seen["length"])
    memory = {
        "clients": ClientAverages.of(None, ids, seen, KEEP).stored(),
        "pairs": PairAverages.of(None, ids, gram, KEEP).stored(),
    }
    loaded = saved(memory, tmp_path)
    assert same_memory(loaded, memory)
    later, more = present(4), drawn(2, len(present(4)))
    again = [ClientAverages.of(m["clients"], later, more, KEEP).stored() for m in (memory, loaded)]
    assert same_memory(*again)
    gram = torch.outer(more["length"], more["length"])
    again = [PairAverages.of(m["pairs"], later, gram, KEEP).stored() for m in (memory, loaded)]
    assert same_memory(*again)


def test_what_was_remembered_is_not_changed():
    ids, seen = torch.arange(5), drawn(0, 5)
    first = ClientAverages.of(None, ids, seen, KEEP).stored()
    kept = {name: value.clone() for name, value in first["all"].items()}
    ClientAverages.of(first, ids[:3], drawn(1, 3), KEEP)
    assert same_memory(first["all"], kept)
