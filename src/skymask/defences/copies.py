"""Copies: who sends what others send, which nobody does who trains on data of its own."""

from typing import Any

import torch
from torch import Tensor

from skymask.defences.known import OFTEN, SOONER, Reasons
from skymask.defences.memory import ClientAverages, recalled
from skymask.geometry import ALL, distances_to, lengths, squared_distances
from skymask.shards import Shard

_COPIES = 3
"""So many clients that send the same are no coincidence."""
_SAME = 1e-4
"""The share of squared distances and lengths that may part updates that are the same."""


def alike(updates: Tensor, server: Tensor, shard: Shard = ALL) -> Tensor:
    """Which of `updates` (n, d) are the same as which, each as itself: (n, n) bool on the CPU.

    Updates are the same where a hundredth of the usual distance to the `server`'s (d,) parts them,
    and of their own length: clients with nothing left to learn send next to nothing, all of them.
    None are where most clients sent what the server has. Of both this process holds the columns
    `shard`.
    """
    distances = shard.sum(squared_distances(updates)).cpu()
    apart = shard.sum(distances_to(server, updates).to(distances.dtype).square()).cpu()
    usual = apart.median()
    own = lengths(updates, shard).to(distances).square()
    near = _SAME * torch.minimum(usual, own)[:, None]
    return (distances < near) & usual.isfinite()


def copied(same: Tensor, ids: Tensor, past: Any, keep: float) -> tuple[Reasons, dict[str, Any]]:
    """Who of the clients `ids` (n,) sends copies, and what to remember of it.

    `same` (n, n) says who sent the same (`alike`). Three or more are copies at once. Of attackers
    that send the same but two may be drawn in a round, or one: two are copies if both were a twin
    of somebody in a third of their last rounds, which takes two rounds at least; and who sent
    copies in a third of its last rounds is out. One attacker that copies an honest client, round
    after round, so has it out with itself, as two have at once; attackers that take turns at it
    have not. `past` is what was remembered, and `keep` the share kept from round to round.
    """
    many = same.sum(1)
    twins = same & (ids[:, None] != ids)  # a client whose update comes twice is no twin of itself
    often = recalled(past, ids, "twin", sums=True) > OFTEN
    copies = (many >= _COPIES) | (twins & often[:, None] & often).any(1)
    root = torch.zeros(1, dtype=torch.float64)
    seen = {"twin": twins.any(1), "copy": copies}
    averages = ClientAverages.of(
        past,
        ids,
        {name: torch.cat([each.to(root), root]) for name, each in seen.items()},
        keep**SOONER,
    )
    reasons: Reasons = {}
    for i in (copies | (averages.values["copy"][:-1] > OFTEN)).nonzero().flatten().tolist():
        others = "another's" if many[i] == 2 else f"{many[i] - 1} others'"
        told = f"its update is a copy of {others}"
        reasons[i] = told if copies[i] else "its last updates were copies of others'"
    return reasons, averages.stored()
