"""What the root data set says of each client: does its update go with the labels or against them?

The updates are looked at as functions: a small step along an update changes the scores of all
classes for each root sample. Two numbers are made of these changes.

The alignment: where an honest client raises the score of a class, it raises it more for the root
samples of that class than for the others. That comparison is a rank sum, so it does not depend on
how long the update is, on the scale of the scores, or on which classes the client has data of: what
it raises for every sample alike, which is its own mix of classes, cancels. It says much in a single
round, but a model that is off for whole classes is moved back by changes that cancel.

It is made twice. A client also lowers scores, and of a class that it has no data of it lowers the
score most for what looks like that class, which is against the labels of honest clients, too, once
the model has learned them. So one alignment counts all changes of a score and the other only where
it is raised. While the model is new the first sees more, later the second.

The descent: do the changes lower the loss of the root samples? That is so of honest clients in the
average over rounds, though in one round what they want for their own classes may be stronger.

Besides, clients are compared with each other: who changes the scores in the same way? For that the
root's samples are so many inputs, whatever their labels are. A hundred inputs say more of who is
alike than the ten samples of a class say of who is right.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skymask.geometry import ALL, lengths
from skymask.layerwise import Steps
from skymask.recording import Function
from skymask.root_loss import RootLoss
from skymask.shards import Shard
from skymask.types import Batch

_ENTRIES = 1 << 28
"""Entries of steps that are copied at once."""
_STEP = 0.01
"""Length of the step along an update, in lengths of the server's own.

Short enough to be linear: with a tenth honest clients go against the labels in the first 50 rounds
(docs/detection.md). Long enough to leave digits in single precision.
"""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the root data set says of n clients in one round, on the CPU."""

    alignment: Tensor
    """(n,) float64 between -1 and 1: above 0 the update agrees with the root's labels."""
    error: Tensor
    """(n,) float64, the standard deviation of `alignment` if labels had nothing to do with it."""
    raised: Tensor
    """(n,) float64, as `alignment`, of the scores that the update raises alone."""
    raised_error: Tensor
    """(n,) float64, the standard deviation of `raised`, likewise."""
    descent: Tensor
    """(n,) float64 between -1 and 1: above 0 the update lowers the root data set's loss."""
    classes: tuple[int, ...]
    """The K classes that the root has samples of."""
    shares: Tensor
    """(n, K) float64, each class's share in the squares of what is raised, with sum 1 (or 0)."""
    contrasts: Tensor
    """(n, K) float64 from -1 to 1: how much more the class's samples are raised than the others."""
    alike: Tensor
    """(n, n) float64 between -1 and 1: how much two updates change the scores in the same way."""

    def numbers(self) -> dict[str, Tensor]:
        """What is one number for each client, by name."""
        names = "alignment", "error", "raised", "raised_error", "descent"
        return {name: getattr(self, name) for name in names}


def root_evidence(
    loss: RootLoss,
    params: Tensor,
    updates: Tensor,
    root: Batch,
    length: float | Tensor,
    server: Tensor | None = None,
    shard: Shard = ALL,
) -> Evidence | None:
    """The alignment of `updates` (n, d) with the labels of `root` at the global model (d,).

    With D (n, N, C) the change of the scores, each centred over classes and each client's divided
    by its own root mean square, and r_isc the rank of D_isc / sigma_s among the root's samples s,
    from 0 to 1 (sigma_s, the clients' median change of sample s, makes samples comparable that the
    model reacts to more or less strongly):

        alignment_i = sum_c w_ic (mean of r_isc over samples of class c - mean over the others),

    where w_ic is class c's share of the client's squared changes; and for `raised` its share of the
    squared changes above 0, the ranks being the same (`shares` and, the difference of the means,
    `contrasts`). `length` is the server's own update's norm: where changes are taken as differences
    (`RootLoss.changes`), a hundredth of it is the step. The errors are the standard deviations over
    all ways to permute the labels.

    The descent is the cosine of D_i and R, R_sc = ([c is the label of s] - p_sc) / N_s with p the
    softmax of the scores before and N_s how many root samples have the label of s: R is minus the
    gradient of the cross-entropy, each class of the root data set with the same say.

    How alike clients i and j are is the mean over all C scores c of the correlation, over the
    root's samples s, of D_isc and D_jsc; 0 where one does not change a score.

    A `server` update (d,) counts as one more client, the last. Of the clients' updates, but not of
    that one, this process holds the columns `shard` alone.

    None where the model's outputs are not one score for each of two or more classes, or the root
    has samples of a single class.
    """
    if root.labels.dim() != 1:
        return None

    def make() -> Function:
        classes = root.labels.unique()
        by_layers = loss.goes_by_layers(params, root.inputs, len(updates))
        if shard.ranks > 1:  # all go the same way: they are to wait for each other
            agree = shard.sum(torch.tensor([float(by_layers)], device=params.device))
            by_layers = int(agree) == shard.ranks
        at_once = 1 if by_layers else loss.fitting(params, root.inputs)
        largest = int(classes.max())

        def numbers(
            updates: Tensor, params: Tensor, buffers: Tensor, length: Tensor, *own: Tensor
        ) -> tuple[Tensor, ...]:
            at = loss.at(buffers)
            before = at.outputs(params, root.inputs)
            if not isinstance(before, Tensor) or before.dim() != 2:
                return ()
            if not 2 <= len(classes) <= before.shape[1] > largest:
                return ()

            servers = [row[None] for row in own]
            if by_layers:
                change = _by_layers(at, params, root.inputs, updates, servers, length, shard)
            else:
                given = (params, root.inputs, before, at_once, updates, servers, length, shard)
                change = _by_steps(at, *given)
            return (judged(change, before, root.labels, classes),)

        return numbers

    length = torch.as_tensor(length, dtype=params.dtype, device=params.device)
    inputs = updates, params, loss.buffers, length, *(() if server is None else (server,))
    same = root.identity, shard.rank, shard.ranks, shard.group
    found = loss.repeat("evidence", same, make, *inputs, record=shard.ranks == 1)
    if not found:
        return None
    rows = found[0].cpu()
    n, classes = rows.shape[1], tuple(root.labels.unique().tolist())
    alignment, error, raised, raised_error, descent = rows[:5]
    shares, contrasts = rows[5:-n].T.split(len(classes), 1)
    return Evidence(
        alignment, error, raised, raised_error, descent, classes, shares, contrasts, alike=rows[-n:]
    )


def _by_layers(
    loss: RootLoss,
    params: Tensor,
    inputs: Tensor,
    updates: Tensor,
    servers: list[Tensor],
    length: Tensor,
    shard: Shard,
) -> Tensor:
    """The changes (n, N, C) of the scores along `updates` and `servers`, layer by layer."""
    if shard.ranks == 1 and updates.numel() <= _ENTRIES:  # a copy takes less time
        given = [Steps(torch.cat([updates, *servers]))]
    else:
        given = [Steps(updates, shard.at.start or 0), *map(Steps, servers)]
    along, *others = loss.slopes(params, inputs, *given)
    sizes = [_factors(updates, length, shard), *(_factors(each, length) for each in servers)]
    return torch.cat([shard.sum(along), *others]) * torch.cat(sizes)[:, None, None]


def _by_steps(
    loss: RootLoss,
    params: Tensor,
    inputs: Tensor,
    before: Tensor,
    at_once: int,
    updates: Tensor,
    servers: list[Tensor],
    length: Tensor,
    shard: Shard,
) -> Tensor:
    """The same from short steps along them, some at once; `before` (N, C) are the scores here."""

    def change(*parts: Tensor) -> Tensor:
        steps = params.new_empty(sum(map(len, parts)), len(params))
        for part, into in zip(parts, steps.split([*map(len, parts)]), strict=True):
            torch.mul(_factors(part, length)[:, None], part, out=into)
        return loss.changes(params, steps, inputs, before, at_once)

    if shard.ranks > 1:
        found = [shard.each_row(updates, lambda row: change(row[None])[0])]
        return torch.cat([*found, *map(change, servers)])
    *rest, last = updates.split(max(1, _ENTRIES // len(params)))  # beside all updates
    return torch.cat([*map(change, rest), change(last, *servers)])


def _factors(rows: Tensor, length: Tensor, shard: Shard = ALL) -> Tensor:
    """What makes short steps of `rows` (n, ...), (n,); 0 of nothing, which says nothing."""
    each = _STEP * length / lengths(rows, shard)
    return torch.where(each.isfinite(), each, 0.0)


def judged(change: Tensor, before: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """What `Evidence` holds, of the clients' changes (n, N, C) of scores `before` (N, C).

    One below the other, (5 + 2 K + n, n): it leaves the device at once.
    `labels` (N,) are the root's and `classes` (K,) those among them.
    """
    change = change.to(torch.float64)
    change = change - change.mean(2, keepdim=True)
    samples = change.shape[1]
    tiny = torch.finfo(torch.float64).tiny
    change = change / change.square().mean((1, 2), keepdim=True).sqrt().clamp_min(tiny)
    reaction = change.square().mean(2).median(0).values.sqrt().clamp_min(1e-12)  # (N,)
    order = (change / reaction[:, None]).argsort(1)
    ranks = torch.linspace(0, 1, samples, dtype=torch.float64, device=order.device)
    placed = torch.empty_like(change).scatter_(1, order, ranks[None, :, None].expand_as(order))
    inside = (labels[:, None] == classes).to(torch.float64)  # (N, K)
    sizes = inside.sum(0)
    own, moved = placed[:, :, classes], change[:, :, classes]
    squares = [of.square().sum(1) for of in (moved, moved.clamp_min(0))]  # (n, K)
    shares = [each / each.sum(1, keepdim=True).clamp_min(tiny) for each in squares]
    contrast = inside / sizes - (1 - inside) / (samples - sizes).clamp_min(1)  # (N, K)
    contrasts = (own * contrast).sum(1)
    wanted = torch.zeros_like(change[0]).scatter_(1, labels[:, None], 1.0)
    wanted = wanted - before.to(torch.float64).softmax(1)
    wanted = wanted * (inside / sizes).sum(1, keepdim=True)
    # Each client's changes have the squared sum N C, or are all 0.
    descent = (change * wanted).sum((1, 2)) / (
        wanted.norm().clamp_min(tiny) * math.sqrt(wanted.numel())
    )
    found = [
        of for each in shares for of in ((each * contrasts).sum(1), _error(own, contrast, each))
    ]
    told = torch.cat([torch.stack([*found, descent]), shares[1].T, contrasts.T])
    return torch.cat([told, _correlations(change)])


def _correlations(change: Tensor) -> Tensor:
    """Of n clients' changes (n, N, C) of the scores, over samples, the mean over scores: (n, n)."""
    apart = change - change.mean(1, keepdim=True)
    apart = apart / apart.norm(dim=1, keepdim=True).clamp_min(torch.finfo(apart.dtype).tiny)
    rows = apart.flatten(1)
    found: Tensor = rows @ rows.T / change.shape[2]
    return found


def _error(ranks: Tensor, contrast: Tensor, shares: Tensor) -> Tensor:
    """The standard deviation (n,) of the alignment over all ways to permute the labels.

    Of `ranks` (n, N, K), what is taken of them for each class, `contrast` (N, K), and the classes'
    `shares` (n, K) (Hoeffding 1951, with the ranks of all classes together).
    """
    weighted = (ranks - ranks.mean(1, keepdim=True)) * shares[:, None]
    products = weighted.transpose(1, 2) @ weighted  # (n, K, K)
    variance = (products * (contrast.T @ contrast)).sum((1, 2)) / (len(contrast) - 1)
    return variance.sqrt()
