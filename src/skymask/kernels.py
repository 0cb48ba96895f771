"""A mask step in two GPU kernels; `masks.PlainState` is the same in torch operations.

Written in Triton, which comes with torch on CUDA. A step moves 12 bytes of memory for each mask
entry: m and U are read once and m is written once, in a program for each block of columns.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    constexpr = tl.constexpr
except ModuleNotFoundError:  # torch on a CPU
    triton, constexpr = None, None

_COLUMNS = 128
"""A program's columns."""
_ROWS_AND_WARPS, _OF_LARGE = (4, 4), (1, 2)
"""The rows a program has in flight, and its warps: the fastest of 60 on an H200.

Of large masks many small programs fill the GPU: 12.7 ms against 14.5 with 2.5 billion entries, and
0.11 against 0.09 with 14 million.
"""
_LARGE = 1 << 30
"""Entries of masks that are large: between the two that were measured."""

_WIDE = 1024
"""Columns of a program that reads vectors only."""
_BITS = 1 << 26
"""Mask entries whose bits are told at once."""


def fuses(updates: Tensor) -> bool:
    """Whether there is a kernel for `updates`: for single precision on CUDA."""
    cuda = triton is not None and updates.device.type == "cuda"
    return cuda and updates.dtype == torch.float32


class FusedState:
    """`masks.State` in two kernels: the gradient's length, then one pass over all masks."""

    copies: ClassVar[int] = 1  # the masks' values

    def __init__(self, updates: Tensor, tau: float, server: Tensor | None = None) -> None:
        self.updates, self.tau = updates.contiguous(), tau
        own = [] if server is None else [server]
        self.last = torch.cat([self.updates[:0].view(-1), *own])  # contiguous, too
        n, d = len(updates) + len(own), updates.shape[1]
        self.values = updates.new_ones(n, d)
        self.mean, self.total, self.spread = updates.new_ones(3, d)
        self.mean.copy_(updates.mean(0))

    @property
    def bits(self) -> Tensor:
        """See `masks.State`."""
        bits = torch.empty_like(self.values, dtype=torch.bool)
        rows = max(1, _BITS // self.values.shape[1])
        for some, told in zip(self.values.split(rows), bits.split(rows), strict=True):
            torch.gt(torch.sigmoid(some), self.tau, out=told)
        return bits

    def square(self, gradient: Tensor) -> Tensor:
        """See `masks.State.square`."""
        # Triton launches on the current device, whatever device its arguments are on.
        with torch.cuda.device(self.updates.device):
            d = self.values.shape[1]
            parts = torch.empty(triton.cdiv(d, _WIDE), dtype=torch.float64, device=gradient.device)
            _squares[(len(parts),)](gradient.contiguous(), self.total, self.spread, parts, d, _WIDE)
        return parts.sum()

    def advance(self, gradient: Tensor, square: Tensor, gamma: float, relative: bool) -> Tensor:
        """See `masks.State.advance`."""
        with torch.cuda.device(self.updates.device):
            n, d = self.values.shape
            programs = triton.cdiv(d, _COLUMNS)
            told = torch.empty(programs, 2, dtype=torch.int32, device=gradient.device)
            rows, warps = _OF_LARGE if n * d > _LARGE else _ROWS_AND_WARPS
            _advance[(programs,)](
                self.values, self.updates, self.last, gradient.contiguous(), square,
                self.mean, self.total, self.spread, told,
                n, len(self.updates), d, gamma, self.tau, relative, rows, _COLUMNS,
                num_warps=warps,
            )  # fmt: skip
        return told.sum(0)


def _kernel(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_kernel
def _squares(gradient, total, spread, parts, d, columns: constexpr):
    """Each program's part of the sum of (g / S)^2 times the spread."""
    column = tl.program_id(0).to(tl.int64) * columns + tl.arange(0, columns)
    inside = column < d
    pull = tl.load(gradient + column, inside, 0.0) / tl.load(total + column, inside, 1.0)
    squares = tl.load(spread + column, inside, 0.0) * pull * pull
    tl.store(parts + tl.program_id(0), tl.sum(squares.to(tl.float64), 0))


@_kernel
def _advance(
    values, updates, last, gradient, square, mean, total, spread, told,
    n, given, d, gamma, tau, relative: constexpr, rows: constexpr, columns: constexpr,
):  # fmt: skip
    """Move the masks of a block of columns and sum them up; see `masks.State`.

    Of n rows `updates` has the `given` first ones, and `last` the one beyond, if there is one.
    """
    column = tl.program_id(0).to(tl.int64) * columns + tl.arange(0, columns)
    inside = column < d
    rms = tl.sqrt(tl.load(square)).to(tl.float32)
    usable = (rms > 0) & (rms < float("inf"))
    size = gamma / rms if relative else gamma
    pull = tl.load(gradient + column, inside, 0.0) / tl.load(total + column, inside, 1.0)
    force = tl.where(usable, -size * pull, 0.0)[None, :]
    old_mean = tl.load(mean + column, inside, 0.0)[None, :]
    sums = tl.zeros((rows, columns), tl.float32)
    weighted = tl.zeros((rows, columns), tl.float32)
    # With t = s (1 - s) and w = U - the old mean, the spread around the new mean is
    # sum t^2 (w - shift)^2, which needs no second pass; the mean moves little in a step, so that
    # nothing cancels.
    square_0 = tl.zeros((rows, columns), tl.float32)
    square_1 = tl.zeros((rows, columns), tl.float32)
    square_2 = tl.zeros((rows, columns), tl.float32)
    flips = tl.zeros((rows, columns), tl.int32)
    for start in range(0, n, rows):
        row = start + tl.arange(0, rows).to(tl.int64)
        there = (row < n)[:, None] & inside[None, :]
        at = row[:, None] * d + column[None, :]
        m = tl.load(values + at, there, 0.0)
        w = tl.load(updates + at, there & (row < given)[:, None], 0.0)
        beyond = (row - given)[:, None] * d + column[None, :]
        w += tl.load(last + beyond, there & (row >= given)[:, None], 0.0)
        w -= old_mean
        before = tl.sigmoid(m)
        m += force * (before * (1 - before) * w)
        tl.store(values + at, m, there)
        s = tl.sigmoid(m)
        flips += tl.where(there & ((before > tau) != (s > tau)), 1, 0)
        s = tl.where(there, s, 0.0)
        sums += s
        weighted += s * w
        t = s * (1 - s)
        square_0 += t * t
        square_1 += t * t * w
        square_2 += t * t * w * w
    new_total = tl.sum(sums, 0)
    shift = tl.sum(weighted, 0) / tl.where(inside, new_total, 1.0)
    around = tl.sum(square_2, 0) + shift * (shift * tl.sum(square_0, 0) - 2 * tl.sum(square_1, 0))
    tl.store(mean + column, tl.load(mean + column, inside, 0.0) + shift, inside)
    tl.store(total + column, new_total, inside)
    tl.store(spread + column, tl.maximum(around, 0.0), inside)
    tl.store(told + 2 * tl.program_id(0), tl.where(usable, 1, 0))
    tl.store(told + 2 * tl.program_id(0) + 1, tl.sum(tl.sum(flips, 0), 0))
