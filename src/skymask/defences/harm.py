"""Harm: whose updates go against the root data set."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from skymask.defences.known import Known, Reasons
from skymask.defences.memory import ClientAverages, recalled
from skymask.defences.outliers import below, outlier, spread, stouffer

HARM = {
    "alignment": "move the model against the labels of the root data set",
    "descent": "raise the loss of the root data set",
}
_BACK = {"alignment": -1.0, "descent": 0.0}
"""The standard deviations above which, in both, a client that was harmful is back."""
_SPREADS = {"alignment": 1.0, "descent": 0.125}
"""By how many standard deviations good clients vary at least."""
_FEW_GOOD = 3
"""Of fewer clients nobody can say how good ones vary."""


def harmful(
    known: Known,
    sure: float,
    ids: Tensor,
    past: Any,
    out: Iterable[int] = (),
    resistance: Sequence[Tensor] = (),
) -> tuple[Reasons, dict[str, Any]]:
    """Whose updates go against the root data set, and what to remember of it.

    By more than `sure` standard deviations in the slow averages or the late ones; or in the slow
    ones by more than one, if that is an outlier beside the good clients as well; or by being an
    outlier beside them in both measures (`_useless`). Likewise by descent and `resistance` (n,)
    together, where it is given, of slow averages and late ones, until they are above 0 together
    (`stouffer`). `past` is what was remembered of the clients `ids` (n,), of which those in `out`
    are out for another reason.

    Two things follow from what happens to a client that is out. One that corrects a confusion of
    two classes moves samples of both, which is against the labels of one; if it is alone with its
    class it is the more so the longer it is out. So nobody is out for the alignment who lowers the
    loss more than others do (`Known.corrects`). And one that is let in as soon as it is less sure
    to do harm does just as much harm as it is let. So who was harmful in its last round is back
    when its descent is above 0 and its alignment above -1: that of honest clients is about 0 where
    a model has nothing left to learn of the root's samples. Where many of the others are lower
    themselves (those of whose classes it has least to learn) it is back among them (`_back`).
    """
    deviations = known.deviations
    if not deviations:
        return {}, ClientAverages.of(past, ids, {}, 0.0).stored()
    was, pushed = (recalled(past, ids, name) > 0 for name in ("harmful", "pushed"))
    others = ~(was | pushed)
    others[list(out)] = False
    against, raises = (
        below(slow[:-1], lately[:-1], sure, others=others)
        | was & (slow[:-1] < _back(slow[:-1][others], _BACK[measure]))
        for measure, (slow, lately) in deviations.items()
    )
    pushes = torch.zeros_like(raises)
    if resistance:
        slow, lately = map(stouffer, (each[:-1] for each in deviations["descent"]), resistance)
        pushes = below(slow, lately, sure, others=others) | pushed & (slow < 0)
    seen = {
        name: torch.cat([found, found.new_zeros(1)]).to(torch.float64)
        for name, found in (("harmful", against | raises), ("pushed", pushes))
    }
    against &= ~known.corrects
    reasons: Reasons = {}
    for found, (measure, both) in zip((against, raises), deviations.items(), strict=True):
        for i in found.nonzero().flatten().tolist():
            told = f"{measure} {-min(float(part[i]) for part in both):.1f}"
            reasons[i] = f"its updates {HARM[measure]} ({told} standard deviations below 0)"
    alignment, descent = (both[0][:-1] for both in deviations.values())
    for i in pushes.nonzero().flatten().tolist():
        told = f"descent {float(descent[i]):.1f} and resistance {float(resistance[0][i]):.1f}"
        why = "raise the loss of the root data set and push the model on the way it went"
        reasons.setdefault(i, f"its updates {why} ({told} standard deviations)")
    for i in _useless(alignment, descent).nonzero().flatten().tolist():
        told = f"alignment {float(alignment[i]):.1f} and descent {float(descent[i]):.1f}"
        reasons.setdefault(i, f"its updates do not teach what the others' do ({told})")
    return reasons, ClientAverages.of(past, ids, seen, 0.0).stored()


def _back(others: Tensor, usual: float) -> float:
    """Above which a client that was harmful is back: `usual`, or as low as `others` (k,) often are.

    That is less than their standard deviation below their median.
    """
    return min(usual, float(others.median()) - spread(others)) if len(others) else usual


def _useless(alignment: Tensor, descent: Tensor) -> Tensor:
    """Who of n clients is an outlier beside the good ones in both measures, (n,) bool.

    While a model is new, flipped labels look like noise to the root data set: they neither go with
    its labels nor against them by much, and descents are too uncertain for a bound of their own.
    But the good ones, which go with the labels and lower the loss, are all alike in both.

    That takes good ones that noise is an outlier beside: an alignment of 0 is below the limit that
    they give. Once a model has learned the root's samples alignments are noise, of honest clients
    too, and those above 1 are no more than the upper end of it, narrower and higher than the whole.
    """
    good = (alignment > 1) & (descent > 0)
    nobody = torch.zeros_like(good)
    if int(good.sum()) < _FEW_GOOD:
        return nobody
    limit = outlier(alignment[good], _SPREADS["alignment"])
    if limit <= 0:
        return nobody
    return (alignment < limit) & (descent < outlier(descent[good], _SPREADS["descent"]))
