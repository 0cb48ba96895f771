"""SkyMask, first half: learn one mask per client on the root data set.

Each of n models (the clients', and the server's root model) has a mask m_i of d entries, all 1 at
the start. With s_i = sigmoid(m_i) the masked models' weighted mean is, entry by entry (Eq. 2),

    Wbar = sum_i s_i W_i / S,   S = sum_i s_i,

and gradient descent on the masks lowers the root loss f(Wbar) (Eq. 3 and 4). Nothing has to be
differentiated through the n x d masks: with g = df/dWbar, one backward pass of one model,

    df/dm_i = g * s_i (1 - s_i) (W_i - Wbar) / S        (tests hold it equal to autograd).

Since W_i = W_t + U_i, the updates U_i can stand for the models W_i in all of this, with
Wbar = W_t + Ubar; that also loses fewer digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from skymask.compiled import CompiledState, compiles
from skymask.environment import require_room
from skymask.kernels import FusedState, fuses
from skymask.recording import may_wait
from skymask.shards import Shard

_BLOCK_ENTRIES = {"cpu": 1 << 18}
"""Mask entries worked on at once: on a CPU, so few that a block's temporaries stay in the cache."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Trained masks."""

    bits: Tensor
    """The binary masks of Eq. 5, (n, d) bool."""
    steps: int
    """Mask steps taken."""
    flipped: float
    """Share of the bits that the last step changed."""
    moved: bool
    """Whether any step changed a bit; if not the masks tell nothing apart."""

    @classmethod
    def of(cls, bits: Tensor, told: Sequence[float]) -> "Masks":
        """From what `MaskTraining.trained` gives, the numbers on the host."""
        steps, flipped, moves = told
        return cls(bits, int(steps), flipped, moves > 0)


@dataclass(frozen=True)
class MaskTraining:
    """How masks are trained: the step size, when to stop and the threshold of Eq. 5.

    gamma: the mask learning rate. With `relative` the gradient is first divided by its own root
        mean square over all n x d entries, so that a typical mask entry moves by `gamma` a step
        whatever the model, the data and the stage of training. The paper's gamma (1e7, 1e8)
        multiplies the gradient itself, which ties it to one model and one root set.
    steps: at most this many steps (t_m in section III-E).
    tolerance: once bits have begun to change, the masks have converged when a step changes no
        more than this share of them. The paper asks for convergence but names no criterion.
    tau: a bit is 1 where sigmoid(m) > tau.
    """

    gamma: float = 1.0
    relative: bool = True
    steps: int = 20
    tolerance: float = 1e-3
    tau: float = 0.5

    def __call__(
        self,
        updates: Tensor,
        gradient: Callable[[Tensor], Tensor],
        watch: Callable[[int, Tensor], None] | None = None,
        *,
        server: Tensor | None = None,
        shard: Shard = Shard(),  # noqa: B008 -- frozen
    ) -> Masks:
        """Train the masks of `updates`.

        Args:
            updates: (n, d) deltas W_i - W_t; finite.
            gradient: df/dWbar, (d,), at W_t + the (d,) vector it is given.
            watch: called with the step and the mask values m (n, d) after each step.
            server: one more delta (d,), whose mask comes last. To be given by itself saves a copy
                of all the others where they are large.
            shard: which columns of all d `updates`, `server` and the masks are; `gradient` is
                given and gives all of them.

        Where the gradient is not finite or vanishes the masks have nothing to learn from and
        training stops there. Raises `InputError` where there is too little memory (`memory`).
        """
        bits, told = self.trained(updates, gradient, watch, server=server, shard=shard)
        return Masks.of(bits, told.tolist())

    def trained(
        self,
        updates: Tensor,
        gradient: Callable[[Tensor], Tensor],
        watch: Callable[[int, Tensor], None] | None = None,
        *,
        server: Tensor | None = None,
        shard: Shard = Shard(),  # noqa: B008 -- frozen
    ) -> tuple[Tensor, Tensor]:
        """As the call itself, in tensors alone: the bits, and (3,) that `Masks.of` reads.

        While a CUDA graph is being recorded it does not wait for the device: no step is left out,
        but masks that have converged do not move any more.
        """
        waits = may_wait(updates.device)
        if waits:
            _require_room(updates, server, shard)
        state = kind_of_state(updates)(updates, self.tau, server)
        n, d = state.values.shape
        entries = n * (shard.size or d)

        def advance(slope: Tensor, running: Tensor) -> Tensor:
            square = shard.sum(state.square(slope)) / entries
            square = torch.where(running, square, torch.nan)  # which nothing is moved by
            return shard.sum(state.advance(slope, square, self.gamma, self.relative))

        running = torch.ones((), dtype=torch.bool, device=updates.device)
        advance(torch.zeros_like(updates[0]), running)  # sums up, moves nothing
        steps, flipped, moved = torch.zeros(3, dtype=torch.float64, device=updates.device)
        for step in range(1, self.steps + 1):
            slope = shard.part(gradient(shard.whole(state.mean)))
            usable, changed = advance(slope, running)
            running = usable > 0
            steps = steps + running
            flipped = torch.where(running, changed / entries, flipped)
            moved = moved + (changed > 0)
            if watch is not None and running:
                watch(step, state.values)
            running = running & ~((moved > 0) & (flipped <= self.tolerance))
            if waits and not running:
                break
        return state.bits, torch.stack([steps, flipped, moved])


def memory(n: int, d: int, whole: int, *, copies: int, itemsize: int = 4) -> int:
    """Bytes that training the masks of n models takes at most, beside their updates.

    The models have `whole` parameters of `itemsize` bytes, of which this process holds `d` columns:
    a bit of each mask entry, a few vectors, and as many `copies` (n, d) as `State` says. What the
    model puts out on its way to the root loss, which a training step of one client takes as well,
    comes on top.
    """
    entries, vectors = n * d, 8 * d + 6 * whole
    return entries * (copies * itemsize + 1) + vectors * itemsize


def _require_room(updates: Tensor, server: Tensor | None, shard: Shard) -> None:
    n, d = updates.shape
    n += server is not None
    copies, itemsize = kind_of_state(updates).copies, updates.element_size()
    whole = shard.size or d
    needed = memory(n, d, whole, copies=copies, itemsize=itemsize)
    require_room(
        needed,
        updates.device,
        f"training the masks of {n:,} models of {whole:,} parameters, {d:,} of them here,",
        "what would do: fewer clients a round, or the parameters shared out among more processes "
        "(skymask.shard)",
    )


class State(Protocol):
    """Masks in training: what one pass over all of them reads and writes."""

    copies: ClassVar[int]
    """How many tensors (n, d) of the updates' precision it keeps."""
    values: Tensor
    """The masks m, (n, d)."""
    mean: Tensor
    """Ubar, (d,)."""
    total: Tensor
    """S, (d,)."""
    spread: Tensor
    """sum_i (s_i (1 - s_i) (U_i - Ubar))^2, (d,): with g / S it gives the gradient's square."""

    def __init__(self, updates: Tensor, tau: float, server: Tensor | None = None) -> None:
        """Masks of `updates` (n, d) and, last, of `server` (d,); all 1, nothing summed up yet."""
        ...

    @property
    def bits(self) -> Tensor:
        """The binary masks sigmoid(m) > tau, (n, d) bool."""
        ...

    def square(self, gradient: Tensor) -> Tensor:
        """The mask gradient's squared length, where `gradient` is df/dWbar (d,) at the mean."""
        ...

    def advance(self, gradient: Tensor, square: Tensor, gamma: float, relative: bool) -> Tensor:
        """One step of Eq. 4 with `gradient` df/dWbar (d,) at the mean, then the sums anew.

        `square` is the mean square of the mask gradient's entries. Returns two numbers on the
        device: above 0 if the mask gradient could be used (it is finite and not all zero; if not
        nothing moves), and how many bits changed.
        """
        ...


def kind_of_state(updates: Tensor) -> type[State]:
    """The fastest `State` that there is for `updates`."""
    if fuses(updates):
        return FusedState
    return CompiledState if compiles(updates) else PlainState


class PlainState:
    """`State` in torch operations, in blocks of columns that stay in the cache.

    Every block's temporaries live in the same few buffers: fresh ones would cost more in page
    faults than the arithmetic.
    """

    copies: ClassVar[int] = 3  # the masks' values and slopes, and the updates with the server's
    bits: Tensor

    def __init__(self, updates: Tensor, tau: float, server: Tensor | None = None) -> None:
        if server is not None:
            updates = torch.cat([updates, server[None]])
        n, d = updates.shape
        self.updates, self.tau = updates, tau
        self.values, self.slope = torch.ones_like(updates), torch.zeros_like(updates)
        first = bool(torch.sigmoid(self.values[0, 0]) > tau)  # of all of them
        self.bits = torch.full_like(self.values, first, dtype=torch.bool)
        self.mean, self.total, self.spread = updates.new_ones(3, d)
        self.width = max(1, min(d, _BLOCK_ENTRIES.get(updates.device.type, n * d) // n))
        self.scratch = updates.new_empty(2, n, self.width)
        self.marks = torch.empty(n, self.width, dtype=torch.bool, device=updates.device)

    def square(self, gradient: Tensor) -> Tensor:
        """See `State.square`."""
        pull = gradient / self.total  # g / S
        # Sums per column in single precision are short (n terms); the long sum over columns is
        # taken in double, where 14 million terms lose nothing.
        total: Tensor = (self.spread * pull.square()).sum(dtype=torch.float64)
        return total

    def advance(self, gradient: Tensor, square: Tensor, gamma: float, relative: bool) -> Tensor:
        """See `State.advance`."""
        d = self.values.shape[1]
        pull, rms = gradient / self.total, square.sqrt()
        usable = rms.isfinite() & (rms > 0)
        size = gamma / rms if relative else torch.full_like(rms, gamma)
        pull = torch.where(usable, -size * pull, 0.0).to(pull.dtype)
        changed = torch.zeros((), dtype=torch.int64, device=pull.device)
        for start in range(0, d, self.width):
            at = slice(start, min(start + self.width, d))
            u, slope = self.updates[:, at], self.slope[:, at]
            s, part = self.scratch[:, :, : at.stop - start]
            bits = self.marks[:, : at.stop - start]
            m = self.values[:, at].addcmul_(slope, pull[at])
            torch.sigmoid(m, out=s)
            torch.gt(s, self.tau, out=bits).logical_xor_(self.bits[:, at])
            changed += bits.count_nonzero()
            self.bits[:, at].logical_xor_(bits)
            torch.sum(s, 0, out=self.total[at])
            torch.sum(torch.mul(s, u, out=part), 0, out=self.mean[at]).div_(self.total[at])
            torch.addcmul(s, s, s, value=-1, out=part)
            torch.sub(u, self.mean[at], out=slope).mul_(part)
            torch.sum(torch.mul(slope, slope, out=part), 0, out=self.spread[at])
        return torch.stack([usable.to(changed), changed])
