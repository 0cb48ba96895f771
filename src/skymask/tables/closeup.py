"""What is known of every client after a run's last round: Figures 1 and 3 of the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skymask.defences.masking import trained_masks
from skymask.defences.selected import needed
from skymask.geometry import principal_components
from skymask.masks import MaskTraining
from skymask.types import Decision, Defence, Round

TRAINING = MaskTraining(gamma=100.0, relative=True, steps=20, tolerance=0.0, tau=0.5)
"""How the masks that are looked at are trained: as SkyMask's own, but to the last step."""
KINDS = ("honest", "malicious")

Points = list[tuple[float, float]]
Steps = list[tuple[float, float, float]]
"""Mean, least and largest share of ones of some clients, before the first step and after each."""


@dataclass(frozen=True)
class Closeup:
    """One round, client by client; the server's own update is the last of the points."""

    round: int
    """Counted from 1."""
    malicious: list[bool]
    updates: Points
    """The first two principal components of the updates."""
    masks: Points
    """And of their masks."""
    ones: dict[str, dict[str, Steps]]
    """Module -> kind of client -> share of ones in the masks, step by step."""

    @classmethod
    def of(cls, updates: Tensor, round: Round, malicious: Tensor) -> "Closeup":
        """Train the masks of `updates` (n, d), of which those in `malicious` (n,) are malicious.

        Raises `InputError` where the round lacks what masks are trained with.
        """
        bad = malicious.to(updates.device)
        modules: dict[str, list[slice]] = {}
        for name, at in round.layers.items():
            modules.setdefault(name.rpartition(".")[0], []).append(at)
        kinds = {kind: mark for kind, mark in zip(KINDS, (~bad, bad), strict=True) if mark.any()}
        ones = {name: {kind: [(1.0, 1.0, 1.0)] for kind in kinds} for name in modules}

        def watch(step: int, values: Tensor) -> None:
            bits = values[:-1].sigmoid() > TRAINING.tau
            for name, slices in modules.items():
                shares = torch.cat([bits[:, at] for at in slices], 1).float().mean(1)
                for kind, mark in kinds.items():
                    some = shares[mark]
                    ones[name][kind].append(_short(some.mean(), some.min(), some.max()))

        rows = torch.cat([updates, needed(round, "server_update", "a close-up")[None]])
        masks = trained_masks(TRAINING, updates, round, root=True, watch=watch).bits
        points = [[_short(*row) for row in principal_components(part, 2)] for part in (rows, masks)]
        return cls(round.index + 1, bad.tolist(), points[0], points[1], ones)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Closeup":
        """What a record holds. Raises `ValueError`, `LookupError` or `TypeError` for other things.

        More than nobody is asked to draw is not kept: what is not a number is refused.
        """
        malicious = [bool(mark) for mark in told["malicious"]]
        updates, masks = (
            [(float(x), float(y)) for x, y in told[name]] for name in ("updates", "masks")
        )
        if not len(updates) == len(masks) == len(malicious) + 1:
            raise ValueError("its close-up has not a point for each client and the server")
        ones = {
            str(module): {
                str(kind): [(float(a), float(b), float(c)) for a, b, c in steps]
                for kind, steps in dict(kinds).items()
            }
            for module, kinds in dict(told["ones"]).items()
        }
        return cls(int(told["round"]), malicious, updates, masks, ones)


class Watching:
    """A rule that keeps what it was given in one round, for a close-up."""

    def __init__(self, rule: Defence, last: int) -> None:
        self.rule, self.last = rule, last
        self.seen: tuple[Tensor, Round] | None = None

    def __call__(self, updates: Tensor | Sequence[Tensor], round: Round) -> Decision:
        """Decide as the rule does."""
        if round.index == self.last:
            self.seen = torch.stack([*updates]), round
        return self.rule(updates, round)


def _short(*numbers: Tensor) -> Any:
    """Five digits of each: what a figure can show."""
    return tuple(float(f"{float(number):.5g}") for number in numbers)
