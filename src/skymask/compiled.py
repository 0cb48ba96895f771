"""Loops in machine code, and the one that is most of the work: a mask step on a CPU.

`masks.PlainState` is the same in torch operations, which take fifteen passes over memory, in blocks
that stay in the cache, and have to keep the masks' slope. Loops are compiled when they are first
called, by numba (`pip install 'skymask[fast]'`), and kept beside their file or in the user's cache.
"""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skymask.threads import rest_openmp

Array = npt.NDArray[np.float32]

_COLUMNS = 2048
"""Columns of a block: what is summed up for them stays in the nearest cache."""
_ALONE = 1 << 20
"""So few mask entries take a thread a millisecond, and waking others a tenth of that."""


def compiles(updates: Tensor) -> bool:
    """Whether there is a compiled step for `updates`: for single precision on a CPU, with numba."""
    suits = updates.device.type == "cpu" and updates.dtype == torch.float32
    return suits and _numba() is not None


class CompiledState:
    """`masks.State` in one pass over the masks, shared out by columns among threads.

    It keeps the masks' sigmoids beside them, so that a step computes them once. Every column is
    summed up by one thread in the order of the rows: results do not depend on how many there are.
    """

    copies: ClassVar[int] = 2  # the masks' values and their sigmoids

    def __init__(self, updates: Tensor, tau: float, server: Tensor | None = None) -> None:
        self.updates, self.tau = updates.detach().contiguous(), tau
        own = [] if server is None else [server]
        self.last = torch.cat([self.updates[:0].view(-1), *own])
        n, d = len(updates) + len(own), updates.shape[1]
        self.values = _empty(n, d).fill_(1.0)
        self.sigmoids = _empty(n, d).fill_(1 / (1 + math.exp(-1.0)))
        self.mean, self.total, self.spread = updates.new_ones(3, d)
        torch.mean(updates, 0, out=self.mean)
        workers = 1 if n * d <= _ALONE else min(torch.get_num_threads(), -(-d // _COLUMNS))
        self.shares = list(pairwise(d * i // workers for i in range(workers + 1)))
        self.threads = ThreadPoolExecutor(workers) if workers > 1 else None

    @property
    def bits(self) -> Tensor:
        """See `masks.State`."""
        return self.sigmoids > self.tau

    def square(self, gradient: Tensor) -> Tensor:
        """See `masks.State.square`."""
        pull = gradient / self.total
        total: Tensor = (self.spread * pull.square()).sum(dtype=torch.float64)
        return total

    def advance(self, gradient: Tensor, square: Tensor, gamma: float, relative: bool) -> Tensor:
        """See `masks.State.advance`."""
        rms = float(square.sqrt())
        usable = math.isfinite(rms) and rms > 0
        force = torch.zeros_like(self.total)
        if usable:
            torch.div(gradient, self.total, out=force).mul_(-gamma / rms if relative else -gamma)
        tensors = (
            self.values, self.sigmoids, self.updates, self.last, force,
            self.mean, self.total, self.spread,
        )  # fmt: skip
        arrays = [tensor.numpy() for tensor in tensors]
        compiled = machine_code(_advance, _moved)
        assert compiled is not None
        step = partial(compiled, *arrays, np.float32(self.tau), _COLUMNS)
        if self.threads is None:
            changed = step(*self.shares[0])
        else:
            rest_openmp()  # they would wait for work on the cores that these threads need
            changed = sum(self.threads.map(lambda share: step(*share), self.shares))
        return torch.tensor([usable, changed])


def _empty(n: int, d: int) -> Tensor:
    """(n, d) without values, in large pages, which numpy asks for: a third of the time to get."""
    return torch.from_numpy(np.empty((n, d), np.float32))


@cache
def machine_code(
    function: Callable[..., Any], *helpers: Callable[..., Any]
) -> Callable[..., Any] | None:
    """The same `function` of arrays and numbers in machine code, or None without numba.

    It may call `helpers`, and is compiled when it is first called.
    """
    if _numba() is None:
        return None
    # `contract` lets it multiply and add in one instruction; no sum is put into another order.
    options = {"error_model": "numpy", "fastmath": {"contract"}}
    for helper in helpers:
        import_module("numba.extending").register_jitable(**options)(helper)
    compiled: Callable[..., Any]
    try:
        compiled = _numba().njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # there is no folder that it may write to
        compiled = _numba().njit(nogil=True, **options)(function)
    return compiled


@cache
def _numba() -> Any:
    """The module, or None where it is not to be had."""
    if find_spec("numba") is None:
        return None
    try:
        return import_module("numba")
    except ImportError as error:  # it takes some versions of numpy alone
        warnings.warn(f"SkyMask computes without numba: {error}", stacklevel=2)
        return None


def _advance(
    values: Array, sigmoids: Array, updates: Array, last: Array, force: Array,
    mean: Array, total: Array, spread: Array, tau: np.float32, width: int, first: int, end: int,
) -> int:  # fmt: skip
    """Move the masks of the columns from `first` to `end` and sum them up, `width` at a time.

    Returns how many bits changed.

    An entry moves by `force` (d,) times s (1 - s) w, with w = U - the mean before. Of n rows
    `updates` has the first ones, and `last` the one beyond, if there is one. See `masks.State` and,
    for the spread around the new mean, `kernels._advance`.

    Two rows are taken at once where there are two, so that sums are read and written half as often.
    """
    n, given, one = len(values), len(updates), np.float32(1)
    sums = np.empty((5, width), np.float32)
    flips = np.empty(width, np.int32)
    changed = 0
    for start in range(first, end, width):
        stop = min(end, start + width)
        moved, old = force[start:stop], mean[start:stop]
        sums[:], flips[:] = 0, 0
        weights, weighted, square_0, square_1, square_2 = sums
        for i in range(0, n - 1, 2):
            m, s, u = values[i, start:stop], sigmoids[i, start:stop], updates[i, start:stop]
            other_m, other_s = values[i + 1, start:stop], sigmoids[i + 1, start:stop]
            other_u = updates[i + 1, start:stop] if i + 1 < given else last[start:stop]
            for j in range(stop - start):
                w, v = u[j] - old[j], other_u[j] - old[j]
                m[j], a, flip_a = _moved(m[j], s[j], moved[j] * w, tau)
                other_m[j], b, flip_b = _moved(other_m[j], other_s[j], moved[j] * v, tau)
                s[j], other_s[j] = a, b
                t, z = a * (one - a), b * (one - b)
                weights[j] += a + b
                weighted[j] += a * w + b * v
                square_0[j] += t * t + z * z
                square_1[j] += t * t * w + z * z * v
                square_2[j] += t * t * w * w + z * z * v * v
                flips[j] += flip_a + flip_b
        if n % 2:
            m, s = values[n - 1, start:stop], sigmoids[n - 1, start:stop]
            u = updates[n - 1, start:stop] if n - 1 < given else last[start:stop]
            for j in range(stop - start):
                w = u[j] - old[j]
                m[j], a, flip_a = _moved(m[j], s[j], moved[j] * w, tau)
                s[j] = a
                t = a * (one - a)
                weights[j] += a
                weighted[j] += a * w
                square_0[j] += t * t
                square_1[j] += t * t * w
                square_2[j] += t * t * w * w
                flips[j] += flip_a
        for j in range(stop - start):
            shift = weighted[j] / weights[j]
            around = square_2[j] + shift * (shift * square_0[j] - 2 * square_1[j])
            mean[start + j] = old[j] + shift
            total[start + j] = weights[j]
            spread[start + j] = max(around, np.float32(0))
            changed += flips[j]
    return changed


def _moved(m: Any, s: Any, force: Any, tau: Any) -> tuple[Any, Any, Any]:
    """A mask entry and its sigmoid after `force` s (1 - s), and whether its bit changed."""
    one, half, flat = np.float32(1), np.float32(0.5), np.float32(16)
    p0, p1, p2 = np.float32(0.25), np.float32(8.11203e-3), np.float32(4.6654513e-5)
    p3, p4, p5 = np.float32(3.8589462e-8), np.float32(-1.436029507e-11), np.float32(5.73986e-15)
    q1, q2, q3 = np.float32(0.1157814115), np.float32(1.50175218e-3), np.float32(3.706358257e-6)
    m += s * (one - s) * force
    # sigmoid(x) - 1/2 = x p(x^2) / q(x^2) up to 2e-8 of itself where |x| <= 16, fitted by weighted
    # least squares; rounding adds less than 2e-7. Beyond it is 0 or 1.
    x = min(max(m, -flat), flat)
    y = x * x
    p = p0 + y * (p1 + y * (p2 + y * (p3 + y * (p4 + y * p5))))
    q = one + y * (q1 + y * (q2 + y * q3))
    after = half + x * p / q
    return m, after, (s > tau) != (after > tau)
