"""What no rule should ever see: updates that are no numbers, or have the wrong shape.

`screened` wraps the `__call__` of every rule of this package, so that one client's bad update never
stops a round: it is rejected with the reason, and the rule decides on the others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

from skymask.defences.assumed import TooFew
from skymask.errors import InputError, require
from skymask.geometry import lengths, weighted_mean
from skymask.shards import Shard
from skymask.types import Decision, Round

Rule = TypeVar("Rule")

_MOST_EXAMPLES = 2**53
"""Beyond this a double cannot count, and a sum of counts may overflow."""


def screened(
    rule: Callable[[Rule, Tensor, Round], Decision], mean: bool = False, sharded: bool = False
) -> Callable[[Rule, Tensor | Sequence[Tensor], Round], Decision]:
    """Give `rule` only usable updates, and answer for all clients.

    Rejected before the rule is asked: an update with NaN or infinite entries, one so long that its
    squared norm overflows its dtype, one of the wrong shape (where the updates come as a sequence
    of vectors), one whose buffers are not finite or have a negative variance, and one with an
    example count that is not a positive number (up to 2^53). If nothing is left the global model
    stays as it is and `evidence["fallback"]` says so. What else the rule's evidence holds is about
    the usable clients alone; `evidence["usable"]` (n,) bool tells which those are, if not all.
    Where the rule itself leaves the buffers alone, they become the accepted clients' mean, weighted
    by example counts.

    With `mean` the rule's update is a mean of all rows with positive weights. One that is ordinary
    then shows that every entry is finite, which saves a pass over the updates. (Updates that are
    too long are found but where they cancel exactly, and then they do nothing.)

    `sharded` says that the rule can do with a part of the columns (`Round.shard`).

    Raises `InputError` where the updates as a whole cannot be used: no clients, not (n, d), another
    d than the global parameters', or `round` fields of another length than n; where there is but a
    part of the columns and the rule needs all; and whatever the rule itself raises, but for
    `TooFew` where clients were left out: then the model stays as it is.
    """

    @wraps(rule)
    def decide(self: Rule, updates: Tensor | Sequence[Tensor], round: Round) -> Decision:
        rows, reasons = _stack(updates, round)
        rows = rows.detach()
        n, d = rows.shape
        if round.shard.ranks > 1:
            _check_columns(d, round.shard, type(self).__name__ if not sharded else None)
        _check_lengths(n, round.shard.size or d, round)
        _add(reasons, _unusable_messages(round))
        if mean and not any(reasons):
            decision = rule(self, rows, round)
            # A larger mean may hold an update whose squared norm overflows.
            if decision.update.abs().amax() < torch.finfo(rows.dtype).max ** 0.5 / (n * d):
                return _with_buffers(decision, round)
        _add(reasons, _unusable_rows(rows, round.shard))
        usable = torch.tensor([reason is None for reason in reasons], device=rows.device)
        if not usable.any():
            return stay(rows, round, reasons, "no client sent a usable update")
        everybody = bool(usable.all())
        if everybody:
            return _with_buffers(rule(self, rows, round), round)
        inner_round = only(round, usable)
        try:
            decision = rule(self, rows[usable], inner_round)
        except TooFew as few:  # the unusable ones did it: they must not stop the round
            return stay(rows, round, reasons, f"too few clients sent a usable update: {few}")
        return _for_all(_with_buffers(decision, inner_round), usable, reasons)

    return decide


def stay(updates: Tensor, round: Round, reasons: Sequence[str | None], why: str) -> Decision:
    """The decision that leaves the global model as it is, and says why."""
    return Decision(
        updates.new_zeros(updates.shape[1]),
        torch.zeros(len(updates), dtype=torch.bool, device=updates.device),
        memory=round.memory,
        reasons=tuple(reasons),
        evidence={"fallback": f"{why}; the global model stays as it is"},
    )


def _stack(updates: Tensor | Sequence[Tensor], round: Round) -> tuple[Tensor, list[str | None]]:
    """The updates as one (n, d) tensor; rows of the wrong shape become zeros with a reason."""
    if not isinstance(updates, Tensor):
        vectors = list(updates)
        if not vectors:
            raise InputError("updates holds 0 clients; a round needs at least 1")
        like = _expected(vectors, round)
        found = [_misfit(v, like) for v in vectors]
        usable = [
            v if r is None else torch.zeros_like(like) for v, r in zip(vectors, found, strict=True)
        ]
        return _stack(torch.stack(usable), round)[0], found
    if updates.dim() != 2 or 0 in updates.shape:
        raise InputError(
            f"updates has shape {tuple(updates.shape)}; it must be (n, d), n and d at least 1"
        )
    if not updates.is_floating_point():
        raise InputError(f"updates has dtype {updates.dtype}; it must be floating-point")
    if round.params is not None and updates.dtype != round.params.dtype:
        raise InputError(
            f"updates has dtype {updates.dtype} but round.params has {round.params.dtype}"
        )
    return updates, [None] * len(updates)


def _expected(vectors: list[Tensor], round: Round) -> Tensor:
    """What an update should look like: the global parameters, else the most common one."""
    if round.params is not None:
        return round.shard.part(round.params)
    tensors = [v for v in vectors if isinstance(v, Tensor)]
    if not tensors:
        raise InputError(
            f"updates holds {len(vectors)} clients but no tensor; a round needs at least 1"
        )
    kinds = [(v.shape, v.dtype) for v in tensors]
    return tensors[kinds.index(max(kinds, key=kinds.count))]


def _misfit(sent: object, like: Tensor) -> str | None:
    """Why what a client sent cannot be a row of the updates, or None."""
    if not isinstance(sent, Tensor):
        return f"its update is a {type(sent).__name__}, not a tensor"
    if sent.shape != like.shape:
        return f"its update has shape {tuple(sent.shape)}, not {tuple(like.shape)}"
    if sent.dtype != like.dtype:
        return f"its update has dtype {sent.dtype}, not {like.dtype}"
    return None


def _check_lengths(n: int, d: int, round: Round) -> None:
    for name, width in (
        ("params", d),
        ("server_update", d),
        ("clients", n),
        ("counts", n),
        ("buffers", n),
    ):
        value = getattr(round, name)
        if value is not None and len(value) != width:
            raise InputError(
                f"round.{name} has length {len(value)} but must have {width}: updates is ({n}, {d})"
            )
    if round.buffers is not None and round.server_buffers is not None:
        wide, own = round.buffers.shape[1], tuple(round.server_buffers.shape)
        require(own == (wide,), "round.server_buffers' shape", own, f"({wide},), as clients have")


def _add(reasons: list[str | None], more: Mapping[int, str]) -> None:
    for i, reason in more.items():
        reasons[i] = reasons[i] or reason


def _unusable_rows(rows: Tensor, shard: Shard) -> dict[int, str]:
    """Whose update cannot be used, and why."""
    unusable = (~lengths(rows, shard).square().isfinite()).nonzero().flatten().tolist()
    finite = {i: shard.sum((~rows[i].isfinite()).sum()) == 0 for i in unusable}
    return {
        i: "its update is too long for its dtype" if finite[i] else "its update is not finite"
        for i in unusable
    }


def _check_columns(d: int, shard: Shard, refused: str | None) -> None:
    if refused:
        raise InputError(
            f"{refused} needs all columns of the updates, but round.shard is a part of them; "
            "SkyMask, PaperSkyMask and SkyMaskNR do with a part"
        )
    width = shard.at.stop - shard.at.start
    require(d == width, "updates' columns", d, f"{width}, this process's part of {shard.size}")


def _unusable_messages(round: Round) -> dict[int, str]:
    """Whose example count or buffers cannot be used, and why."""
    reasons: dict[int, str] = {}
    if round.counts is not None:
        counts = round.counts.to(torch.float64)
        for i in (~((counts > 0) & (counts <= _MOST_EXAMPLES))).nonzero().flatten().tolist():
            reasons[i] = f"its example count {counts[i].item():g} is not between 0 and 2^53"
    if round.buffers is not None and round.buffers.numel():
        for i in (~round.buffers.isfinite().all(1)).nonzero().flatten().tolist():
            reasons.setdefault(i, "its buffers are not finite")
        for name, at in round.buffer_layers.items():
            if name.endswith("running_var"):
                for i in (round.buffers[:, at] < 0).any(1).nonzero().flatten().tolist():
                    reasons.setdefault(i, f"its {name} is negative")
    return reasons


def only(round: Round, usable: Tensor) -> Round:
    """The round of the clients marked in `usable` (n,) alone; the others count as `removed`.

    Clients without ids are their rows in the whole round, so that nobody is taken for another.
    """

    def pick(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[usable.to(value.device)]

    ids = torch.arange(len(usable)) if round.clients is None else round.clients
    return dataclasses.replace(
        round,
        clients=pick(ids),
        counts=pick(round.counts),
        buffers=pick(round.buffers),
        removed=round.removed + int((~usable).sum()),
    )


def _with_buffers(decision: Decision, round: Round) -> Decision:
    if round.buffers is None or decision.buffers is not None or not decision.accepted.any():
        return decision
    rows = round.buffers[decision.accepted]
    return dataclasses.replace(
        decision, buffers=weighted_mean(rows, example_counts(round, decision.accepted))
    )


def checked(decision: object, rule: object, round: Round) -> Decision:
    """The decision of any rule, a user's own too, made ready to be acted on.

    Where there are buffers and the rule left them alone they become the accepted clients' mean.
    Raises `InputError` where it is no `Decision`, or `update` or `accepted` have the wrong shape,
    or the update is not finite.
    """
    name = type(rule).__name__
    if not isinstance(decision, Decision):
        raise InputError(f"defence {name} returned a {type(decision).__name__}, not a Decision")
    n = 0 if round.clients is None else len(round.clients)
    d = 0 if round.params is None else len(round.params)
    for field, shape, value in (
        ("update", (d,), decision.update),
        ("accepted", (n,), decision.accepted),
    ):
        if not isinstance(value, Tensor) or value.shape != shape:
            told = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"defence {name} returned {field} {told}; it must be a tensor {shape}")
    if decision.accepted.dtype != torch.bool:
        raise InputError(
            f"defence {name} returned accepted as {decision.accepted.dtype}; it must be bool"
        )
    if not decision.update.isfinite().all():
        raise InputError(f"defence {name} returned an update that is not finite")
    return _with_buffers(decision, round)


def _for_all(decision: Decision, usable: Tensor, reasons: list[str | None]) -> Decision:
    accepted = torch.zeros_like(usable)
    accepted[usable] = decision.accepted
    scores = decision.scores
    if scores is not None:
        every = torch.full(usable.shape, float("nan"), dtype=scores.dtype, device=scores.device)
        every[usable] = scores
        scores = every
    own = iter(decision.reasons or [None] * int(usable.sum()))
    merged = tuple(next(own) if reason is None else reason for reason in reasons)
    evidence = {**decision.evidence, "usable": usable}
    return dataclasses.replace(
        decision, accepted=accepted, scores=scores, reasons=merged, evidence=evidence
    )


def example_counts(round: Round, accepted: Tensor) -> Tensor:
    """The accepted clients' example counts, which weight their mean (|D_i| in Eq. 7)."""
    if round.counts is None:
        return torch.ones(int(accepted.sum()), device=accepted.device)
    return round.counts.to(accepted.device)[accepted]
