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

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ENTRIES = {"cpu": 1 << 20}
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


@dataclass(frozen=True)
class MaskTraining:
    """How masks are trained: the step size, when to stop and the threshold of Eq. 5.

    gamma: the mask learning rate. With `relative` the gradient is first divided by its own root
        mean square over all n x d entries, so that a typical mask entry moves by `gamma` a step
        whatever the model, the data and the stage of training. The paper's gamma (1e7, 1e8)
        multiplies the gradient itself, which ties it to one model and one root set.
    steps: at most this many steps (t_m in section III-E).
    tolerance: the masks have converged when a step changes no more than this share of the bits.
        The paper asks for convergence but names no criterion.
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
    ) -> Masks:
        """Train the masks of `updates`.

        Args:
            updates: (n, d) deltas W_i - W_t, the root model's among them; finite.
            gradient: df/dWbar, (d,), at W_t + the (d,) vector it is given.
            watch: called with the step and the mask values m (n, d) after each step.

        Where the gradient is not finite or vanishes the masks have nothing to learn from and
        training stops there.
        """
        n, d = updates.shape
        values = torch.ones_like(updates)
        threshold = math.log(self.tau / (1 - self.tau))  # sigmoid(m) > tau is m > logit(tau)
        blocks = _blocks(n, d, updates.device)
        mean = updates.mean(0)  # all masks are equal at the start
        total = torch.full_like(mean, n / (1 + math.exp(-1)))  # S, (d,)
        steps, flipped = 0, 0.0
        slope = torch.empty_like(
            updates
        )  # s (1 - s) (U - Ubar), the part of the gradient per client
        while steps < self.steps:
            pull = gradient(mean) / total  # g / S, (d,)
            square = torch.zeros((), dtype=torch.float64, device=updates.device)
            for at in blocks:
                s = torch.sigmoid(values[:, at])
                part = torch.addcmul(s, s, s, value=-1, out=slope[:, at])
                part.mul_(updates[:, at] - mean[at])
                # Sums per column in single precision are short (n terms); the long sum over
                # columns is taken in double, where 14 million terms lose nothing.
                square += (part.square().sum(0) * pull[at].square()).sum(dtype=torch.float64)
            rms = (square / (n * d)).sqrt()
            if not (0 < rms.item() < math.inf):
                break
            pull *= -(self.gamma / rms if self.relative else self.gamma)
            changed = torch.zeros((), dtype=torch.int64, device=updates.device)
            for at in blocks:
                before = values[:, at] > threshold
                m = values[:, at].addcmul_(slope[:, at], pull[at])
                changed += (before != (m > threshold)).sum()
                s = torch.sigmoid(m)
                total[at] = s.sum(0)
                mean[at] = torch.mul(s, updates[:, at]).sum(0) / total[at]
            steps += 1
            flipped = changed.item() / (n * d)
            if watch is not None:
                watch(steps, values)
            if flipped <= self.tolerance:
                break
        return Masks(values > threshold, steps, flipped)


def _blocks(n: int, d: int, device: torch.device) -> list[slice]:
    """Column ranges that cover d, each small enough for the device's cache."""
    width = max(1, _BLOCK_ENTRIES.get(device.type, n * d) // n)
    return [slice(start, min(start + width, d)) for start in range(0, d, width)]
