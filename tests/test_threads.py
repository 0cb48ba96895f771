"""Work shared out among threads: the same results in the same order, and nothing left changed."""

import threading
import time

import pytest
import torch

from skymask.threads import each_in_threads, in_one_thread, rest_openmp


@pytest.mark.parametrize("tools", [[0], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(tools, count):
    assert each_in_threads(lambda _, i: i * i, range(count), tools) == [i * i for i in range(count)]


def test_each_tool_is_used_by_one_thread_which_computes_with_one_core():
    seen: dict[str, set[tuple[int, int]]] = {"a": set(), "b": set()}
    before, together = torch.get_num_threads(), threading.Barrier(2, timeout=30)

    def note(tool, item):
        if item < 2:  # the first of each: neither goes on without the other
            together.wait()
        seen[tool].add((threading.get_ident(), torch.get_num_threads()))

    each_in_threads(note, range(10), ["a", "b"])
    (first,), (second,) = seen["a"], seen["b"]
    assert first[0] != second[0]
    assert (first[1], second[1]) == (1, 1)
    assert torch.get_num_threads() == before
    others: list[int] = []
    later = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert others == [before]


def test_an_error_comes_out_and_threads_are_as_before():
    before = torch.get_num_threads()

    def fail(_, item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        each_in_threads(fail, range(4), ["a", "b"])
    assert torch.get_num_threads() == before


def test_small_work_is_done_by_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with in_one_thread(101):
            assert torch.get_num_threads() == 1
        with in_one_thread(1000):  # that is no small work
            assert torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="why"), in_one_thread(101):
            raise ValueError("why")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_one_thread_after_the_other_does_small_work():
    before, inside, most = torch.get_num_threads(), [], []

    def work():
        torch.get_num_threads()
        with in_one_thread(101):
            inside.append(1)
            time.sleep(0.02)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert torch.get_num_threads() == before


def test_torch_computes_as_before_after_a_rest():
    matrix = torch.rand(300, 300)
    expected = matrix @ matrix
    rest_openmp()
    assert (matrix @ matrix).equal(expected)
