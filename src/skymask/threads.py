"""With how many threads a CPU computes: work that is too little to be shared out within itself.

One core on each of two pieces is faster than two cores on one after the other, where a piece is as
little as one client's mini-batch; and where there is a single small piece, one core is.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TypeVar

import torch

_FEW = 256
"""Matrices of so few rows are worked on by a single thread."""
_ALONE = Lock()

Item = TypeVar("Item")
Tool = TypeVar("Tool")
Found = TypeVar("Found")


def each_in_threads(
    function: Callable[[Tool, Item], Found], items: Sequence[Item], tools: Sequence[Tool]
) -> list[Found]:
    """`function` of a tool and each of `items`, in their order; a thread for each of the `tools`.

    A tool is used by one thread at a time: what is no tool must be safe to share. With one tool
    everything happens in the calling thread, which computes with all its cores.
    """
    if len(tools) == 1 or len(items) < 2:
        return [function(tools[0], item) for item in items]

    def some(which: int) -> list[Found]:
        return [function(tools[which], item) for item in items[which :: len(tools)]]

    cores = torch.get_num_threads()
    rest_openmp()
    try:
        with ThreadPoolExecutor(len(tools), initializer=torch.set_num_threads, initargs=(1,)) as by:
            parts = list(by.map(some, range(len(tools))))
    finally:
        torch.set_num_threads(cores)  # what threads of others start with, too
    return [parts[i % len(tools)][i // len(tools)] for i in range(len(items))]


@contextmanager
def in_one_thread(rows: int) -> Iterator[None]:
    """Meanwhile torch computes with one core, where matrices have few `rows`.

    The eigenvectors of five matrices of 101 rows took 2 ms so, 5 with the 32 threads of a large
    server, and 770 beside a second process with as many. One Python thread at a time is in here. A
    thread that asks torch for something for the first time meanwhile stays with one core.
    """
    if rows > _FEW:
        yield
        return
    with _ALONE:
        cores = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(cores)


def rest_openmp() -> None:
    """End the threads that torch computes with, until it needs them again.

    When they are done with an operation they wait for the next one for a while without leaving
    their cores: a compiled mask step of 14 million entries took 14.8 ms beside them on two cores
    and 10.8 without. To start them again takes about a tenth of a millisecond. Where OpenMP 5 is
    not to be had nothing happens.
    """
    pause = _openmp_pause()
    if pause is not None:
        pause(1)  # omp_pause_soft: all settings stay


@cache
def _openmp_pause() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
