"""Parameters shared out among processes: each holds its own columns of the (n, d) updates.

A model of 250 million parameters and a hundred clients have updates of 100 GB, and masks of as much
again: more than one GPU has. A mask depends on its own column alone but for two sums over all
of them (the length of the mask gradient, the products of masks), so that d is shared out: process
r of R holds columns r w to (r + 1) w - 1 with w = ceil(d / R). What a rule then needs of
the other processes are sums and the mean model (d,) once a mask step; and with batch norm, or where
layers are not the usual ones, each client's whole update once, to see what the root data set says
of it.

torch.distributed does the talking, over any number of processes and machines, with whatever backend
they have started it (NCCL between GPUs, gloo between CPUs). All of them come to the same decision,
because all that decides is summed up before and comes out alike everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skymask.errors import InputError, require_count


@dataclass(frozen=True, eq=False)
class Shard:
    """The columns of one process, and its line to the others. Made by `shard`.

    `Shard()` is what a process that holds everything has: nothing is asked of anybody.
    """

    size: int = 0
    """d, of all processes together; 0 where one process holds everything, whatever d is."""
    rank: int = 0
    ranks: int = 1
    group: Any = None
    """The `torch.distributed.ProcessGroup`; None is the default one."""

    @property
    def width(self) -> int:
        """Columns of each process but the last."""
        return -(-self.size // self.ranks)

    @property
    def at(self) -> slice:
        """This process's columns of a (d,) vector."""
        if not self.size:
            return slice(None)
        return slice(self.rank * self.width, min(self.size, (self.rank + 1) * self.width))

    def part(self, vector: Tensor) -> Tensor:
        """This process's columns of `vector` (..., d): a view."""
        return vector[..., self.at]

    def layers(self, layers: Mapping[str, slice]) -> dict[str, slice]:
        """Where the named slices of a (d,) vector lie in this process's columns, if empty."""
        if self.ranks == 1:
            return dict(layers)
        begin, end = self.at.start, self.at.stop
        inside = {name: (max(at.start, begin), min(at.stop, end)) for name, at in layers.items()}
        return {
            name: slice(start - begin, max(start, stop) - begin) if start < end else slice(0, 0)
            for name, (start, stop) in inside.items()
        }

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' `value`, the same bits in each of them."""
        if self.ranks == 1:
            return value
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def whole(self, part: Tensor) -> Tensor:
        """The (d,) vector of which each process gives its `part`."""
        return part if self.ranks == 1 else self._gathered(self._padded(part)).view(-1)[: self.size]

    def scatter(self, vector: Tensor | None, into: Tensor, source: int = 0) -> None:
        """Hand out the (d,) `vector` of process `source`: each writes its part `into` a tensor.

        So the one that a client's update came to gives all of them their columns of it. The others
        have no `vector` to give.
        """
        if self.ranks == 1:
            assert vector is not None
            into.copy_(vector)
            return
        mine, parts = into.new_zeros(self.width), None
        if self.rank == source:
            assert vector is not None
            parts = mine.new_zeros(self.ranks, self.width)
            parts.view(-1)[: self.size] = vector
        at = source if self.group is None else dist.get_global_rank(self.group, source)
        dist.scatter(mine, None if parts is None else list(parts.unbind()), at, self.group)
        into.copy_(mine[: len(into)])

    def each_row(self, rows: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        """What `look` makes of each row in whole, (n, ...), of the `rows` (n, width) held here.

        Each process looks at every R-th row, so that none ever holds more than one in whole.
        `look` is given (d,), zeros where no row is left for this process.
        """
        seen = torch.stack([look(row) for row in self._mine(rows)])
        every = self._gathered(seen).transpose(0, 1)  # (turns, R, ...)
        return every.reshape(-1, *seen.shape[1:])[: len(rows)]

    def _mine(self, rows: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(rows), self.ranks):
            turn = rows[start : start + self.ranks]
            sent = rows.new_zeros(self.ranks, self.width)
            sent[: len(turn), : turn.shape[1]] = turn
            came = torch.empty_like(sent)
            dist.all_to_all_single(came, sent, group=self.group)
            yield came.view(-1)[: self.size]

    def _padded(self, part: Tensor) -> Tensor:
        padded = part.new_zeros(self.width)
        padded[: len(part)] = part
        return padded

    def _gathered(self, value: Tensor) -> Tensor:
        """All processes' `value`, one after another: (R, ...)."""
        every = value.new_empty(self.ranks, *value.shape)
        dist.all_gather(list(every.unbind()), value.contiguous(), group=self.group)
        return every


def shard(size: int, group: Any = None) -> Shard:
    """This process's share of models with `size` parameters, among the processes of `group`.

    Every process of the group (default: all) has to call this, and then each `server_round` and
    each rule, in the same order and with the same settings.

    Raises `InputError` where torch.distributed was not started, or is left without columns for a
    process.
    """
    require_count("size", size)
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "torch.distributed was not started: start the program with torchrun and call "
            "torch.distributed.init_process_group() first"
        )
    found = Shard(size, dist.get_rank(group), dist.get_world_size(group), group)
    if (found.ranks - 1) * found.width >= size:
        raise InputError(
            f"{size} parameters leave nothing for some of {found.ranks} processes; take fewer"
        )
    return found
