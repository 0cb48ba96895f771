"""Computations on a GPU that are recorded once and replayed.

A small model's training is hundreds of small kernels, and launching them one by one takes longer
than running them. A CUDA graph launches all of them at once; what it computes is the same.
"""

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]

_ENTRIES = 1 << 25
"""Most entries of inputs that are worth copying, which a recording does with them at every call."""


@dataclass(eq=False)
class Repeated:
    """A computation on tensors that comes again and again: on CUDA it is recorded the second time.

    Elsewhere what prepares it is kept. It takes several times as long to record as to run, so that
    what is another one in every round (of other clients, say) is never recorded. Nor is what has
    large inputs, which would be copied: it keeps the device busy anyway. Only the latest recording
    is kept, because it holds on to its memory.
    """

    latest: Hashable = None
    calls: int = 0
    function: Function | None = None
    graph: "Recorded | None" = None

    def __call__(
        self, same: Hashable, make: Callable[[], Function], *inputs: Tensor, record: bool = True
    ) -> tuple[Tensor, ...]:
        """The function of `inputs` that `make` gives.

        It is the same function as long as `same` and the shapes of `inputs` are; `make` is called
        for another one alone. What talks to other processes is not to `record`.
        """
        latest = (same, *(tensor.shape for tensor in inputs), inputs[0].device)
        if self.latest != latest:
            self.latest, self.calls, self.function, self.graph = latest, 0, make(), None
        self.calls += 1
        if self.graph is not None:
            return self.graph(*inputs)
        assert self.function is not None
        small = sum(tensor.numel() for tensor in inputs) <= _ENTRIES
        if record and self.calls == 2 and small and inputs[0].device.type == "cuda":
            self.graph = recorded(self.function, *inputs)
            if self.graph is not None:
                return self.graph(*inputs)
        return tuple(self.function(*inputs))


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded function of tensors: what it reads, what it writes, and how to run it again."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    graph: torch.cuda.CUDAGraph
    function: Function
    """What was recorded. It is kept because the graph reads memory that it holds."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function of `inputs`, of the shapes, dtypes and device it was recorded with."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        with torch.cuda.device(self.inputs[0].device):
            self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def recorded(function: Function, *inputs: Tensor, warm_ups: int = 3) -> Recorded | None:
    """Record `function` of `inputs`, all on one CUDA device.

    None where that is not possible: a computation that waits for the device cannot be recorded.
    The function may draw no random numbers and must read the same memory at every call, but for
    its `inputs`.
    """
    own = tuple(tensor.detach().clone() for tensor in inputs)
    with torch.cuda.device(own[0].device):  # streams belong to the current device
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(warm_ups):  # libraries choose algorithms and allocate beforehand
                function(*own)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with _no_collection(), torch.cuda.graph(graph):
                outputs = tuple(function(*own))
        except RuntimeError:
            return None
    return Recorded(own, outputs, graph, function)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: an old recording among it cannot be let go of then."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def may_wait(device: torch.device) -> bool:
    """Whether the host may wait for `device`: not while a computation on it is being recorded."""
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
