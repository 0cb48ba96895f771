"""Computations on a GPU that are recorded once and replayed.

A small model's training is hundreds of small kernels, and launching them one by one takes longer
than running them. A CUDA graph launches all of them at once; what it computes is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded function of tensors: what it reads, what it writes, and how to run it again."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    graph: torch.cuda.CUDAGraph
    function: Callable[..., Sequence[Tensor]]
    """What was recorded. It is kept because the graph reads memory that it holds."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function of `inputs`, of the shapes, dtypes and device it was recorded with."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        with torch.cuda.device(self.inputs[0].device):
            self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def recorded(
    function: Callable[..., Sequence[Tensor]], *inputs: Tensor, warm_ups: int = 3
) -> Recorded | None:
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
            with torch.cuda.graph(graph):
                outputs = tuple(function(*own))
        except RuntimeError:
            return None
    return Recorded(own, outputs, graph, function)
