"""What layers of one model and of many models at once have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class OfManyModels(torch.autograd.Function):
    """A function of one model's tensors, which `vmap` computes for all models together.

    `compute` has every tensor with the models as its first dimension, of length one where all
    share it. Its gradient is one of these functions again, because `vmap` sees that one, too.
    """

    compute: Callable[..., tuple[Tensor, ...]]

    @classmethod
    def forward(cls, *given: Any) -> tuple[Tensor, ...]:
        """Of one model."""
        stacked = (each[None] if isinstance(each, Tensor) else each for each in given)
        return tuple(found[0] for found in cls.compute(*stacked))

    @classmethod
    def vmap(
        cls, info: Any, in_dims: Sequence[int | None], *given: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Of all models; `in_dims` says which dimension of each tensor is theirs, if any is."""
        stacked = (_first(each, at) for each, at in zip(given, in_dims, strict=True))
        found = cls.compute(*stacked)
        return found, (0,) * len(found)

    @classmethod
    def of(cls, *given: Any) -> tuple[Tensor, ...]:
        """The function, to be called."""
        found: tuple[Tensor, ...] = cls.apply(*given)  # type: ignore[no-untyped-call]
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept of a function that is itself a derivative."""

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Not of a function that is itself a derivative."""
        raise NotImplementedError("a layer with kernels has no second derivative")


def _first(given: Any, at: int | None) -> Any:
    if not isinstance(given, Tensor):
        return given
    return given[None] if at is None else given.movedim(at, 0)


def for_each(n: int, shared: Tensor) -> Tensor:
    """A tensor for each of n models, also where all of them share one."""
    return shared.expand(n, *shared.shape[1:])


def is_usual(part: nn.Conv2d) -> bool:
    """Whether a convolution is without groups, dilation and unusual padding."""
    usual = part.groups == 1 and part.dilation == (1, 1) and part.padding_mode == "zeros"
    if not usual or part.stride[0] != part.stride[1] or isinstance(part.padding, str):
        return False
    return part.padding[0] < part.kernel_size[0] and part.padding[1] < part.kernel_size[1]


def keep_statistics(part: nn.BatchNorm2d, mean: Tensor, variance: Tensor, samples: int) -> None:
    """Update the running statistics of `part` as torch's batch norm does in training."""
    if part.running_mean is not None and part.running_var is not None:
        assert part.momentum is not None
        unbiased = variance * (samples / max(samples - 1, 1))
        part.running_mean.mul_(1 - part.momentum).add_(mean, alpha=part.momentum)
        part.running_var.mul_(1 - part.momentum).add_(unbiased, alpha=part.momentum)
    if part.num_batches_tracked is not None:
        part.num_batches_tracked.add_(1)
