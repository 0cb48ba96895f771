"""What is known of clients from rounds gone by, which most reasons to reject one go by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skymask.defences.memory import ClientAverages

Reasons = dict[int, str]
"""Why clients are rejected, by their place in the round."""

OFTEN = 1 / 3
"""The share of a client's last rounds in which what happened to it is no coincidence."""
SHORTEST = 2.3
"""An update counts as at most a tenth as long as the median one (in logarithm)."""
SOONER = 3
"""How many times as fast the second average forgets, in which late attackers are found."""
_STAYS = 0.25
"""Of the variance that a descent has because the root has so few samples, what never averages out.

An honest client with unusual data may go a little against the root's few samples in every round.
"""
BETTER = 0.25
"""How much better than the median one a descent has to be, in standard deviations, to count."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of n clients and last of the root, this round's observations taken in."""

    slow: ClientAverages
    """Averages over rounds."""
    lately: ClientAverages
    """Averages that forget three times as fast."""
    length: Tensor
    """Logarithm of this round's relative length, (n + 1,)."""
    shares: ClientAverages
    """Slow averages of how large layers are in updates (`parts.shares`); the root's are 0."""
    shares_now: Mapping[str, Tensor]
    """This round's, (n,) by layer."""
    samples: float
    """Of the root data set, as many as an average over its classes is worth (`worth`)."""

    @classmethod
    def of(
        cls,
        past: Mapping[str, Any],
        ids: Tensor,
        seen: Mapping[str, Tensor],
        shares: Mapping[str, Tensor],
        keep: float,
        samples: float,
    ) -> "Known":
        """Take in what was `seen` (n + 1,) each of the clients `ids` (n,) and the root.

        `shares` (n,) of the clients are what `parts.shares` gives, `past` what `stored` gave, and
        `samples` how many the root data set has, in effect.
        """
        slow = ClientAverages.of(past.get("slow"), ids, seen, keep)
        lately = ClientAverages.of(past.get("lately"), ids, seen, keep**SOONER)
        root = torch.zeros(1, dtype=torch.float64)
        parts = {
            share_name(k): torch.cat([x.clamp_min(-SHORTEST), root]) for k, x in shares.items()
        }
        averaged = ClientAverages.of(past.get("shares"), ids, parts, keep)
        return cls(slow, lately, seen["length"], averaged, shares, samples)

    def stored(self) -> dict[str, Any]:
        """What goes into `Decision.memory`."""
        averages = {"slow": self.slow, "lately": self.lately, "shares": self.shares}
        return {name: each.stored() for name, each in averages.items()}

    @cached_property
    def deviations(self) -> dict[str, tuple[Tensor, Tensor]]:
        """How far above harm alignment and descent are, in standard deviations.

        Of the slow and of the late averages, (n + 1,) each. The alignment is the better one of the
        two, of all changes and of raised scores: who goes against the labels does so in both. Its
        standard deviation is its error, however many rounds there were, because what decides it
        stays from round to round: which samples the root has. That of a descent comes from how
        descents vary over rounds, in the median over the clients, which is at least that of a
        cosine of so many root samples (`worth`); and a quarter of the latter stays, however many
        rounds there were. After a single round it is not known.
        """
        if "alignment" not in self.slow.values:
            return {}
        tiny = torch.finfo(torch.float64).tiny
        variance, stays = self._variance(), _STAYS / self.samples
        found = []
        for average in (self.slow, self.lately):
            values = average.values
            alignment, raised = (
                values[name] / values[error].clamp_min(tiny)
                for name, error in (("alignment", "error"), ("raised", "raised_error"))
            )
            spread = (variance * average.noise + stays).sqrt()
            found.append((torch.maximum(alignment, raised), values["descent"] / spread))
        return dict(zip(("alignment", "descent"), zip(*found, strict=True), strict=True))

    @cached_property
    def corrects(self) -> Tensor:
        """Who lowers the root's loss so much that its alignment does not count, (n,) bool.

        By more than one standard deviation, and more than the median client whose alignment is
        good.
        """
        alignment, descent = (slow[:-1] for slow, _ in self.deviations.values())
        good = alignment > 1
        if not good.any():
            return good
        return descent >= (descent[good].median() + BETTER).clamp_min(1)

    def _variance(self) -> float:
        """Of a descent in a single round; infinite where no client took part in two."""
        values, noise = self.slow.values, self.slow.noise
        own = (values["square"] - values["descent"].square()) / (1 - noise)
        own = own[:-1][noise[:-1] < 1]
        return max(float(own.median()), 1 / self.samples) if len(own) else math.inf


def share_name(layer: str) -> str:
    """What the average is called: averages have names of their own, which a layer may have."""
    return f"share of {layer}"


def worth(labels: Tensor) -> float:
    """How many samples an average over the classes of `labels` (N,) is worth: K^2 / sum_c 1 / N_c.

    The mean of K class means varies as that of so many samples does. All N where classes have as
    many samples each; where one of six has 95 of 100 it is 7, since what the five single samples
    say counts for as much as what the 95 do.
    """
    sizes = labels.unique(return_counts=True)[1].to(torch.float64)
    return len(sizes) ** 2 / float(sizes.reciprocal().sum())
