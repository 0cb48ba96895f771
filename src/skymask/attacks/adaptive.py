"""Attacks that are optimised against a defence which they can call.

The attackers rehearse: they give the defence the round's updates with their own poison among them,
and a `Round` made of what they have. Their clean samples stand for the root data set, the mean of
what their clients trained for the server's update, and the memory is that of their own rehearsals.
They never see the real ones. What did the most damage in the rehearsal is sent.
"""

import itertools
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from skymask.attacks.backdoor import needed
from skymask.attacks.knowledge import KNOWLEDGE, Knowledge, observed
from skymask.attacks.rehearsal import Goal, Rehearsal, refine
from skymask.attacks.wrappers import ranks
from skymask.components import check_settings, component, count, one_of, setting
from skymask.defences import Median, SkyMask
from skymask.masks import MaskTraining
from skymask.root_loss import gradient
from skymask.types import Attack, Defence, Poison, Round


@dataclass(frozen=True)
class Adaptive(Attack):
    """The strength of a fixed attack, tuned each round against `defence`.

    All malicious clients send mu + s p, with mu the honest mean. The `family` is the direction p:

    - "alie": minus the standard deviation of each coordinate (s is ALIE's z; as in OptALIE);
    - "ipm": -mu (s is 1 + IPM's epsilon; as in OptIPM);
    - "min-max": -sign(mu), as long as mu: that direction of Min-Max which is none of the others.

    s is searched with `calls` calls of the defence: half of them double it from 1/4 on, the others
    halve the gaps (as ratios) around the best one, or go on doubling. `goal` says what damage is,
    for an aggregate a: "reverse" is how far it lies behind mu along mu, (mu - a) . mu / |mu|;
    "away" is |a - mu|, which OptALIE and OptIPM maximise; "loss" is that of the attackers' clean
    samples at W_t + a. Of equal ones the first is sent.

    A defence that raises in a rehearsal counts as no gain; where it always does, s is 1 and a
    warning says so. With `knowledge` "own" the attackers rehearse with their own updates alone, of
    which as large a share poses as malicious as they are of all clients.
    """

    defence: Defence = setting(Median(), component("defence"))
    family: Literal["alie", "ipm", "min-max"] = setting("ipm", one_of("alie", "ipm", "min-max"))
    goal: Goal = setting("reverse", one_of("reverse", "away", "loss"))
    calls: int = setting(16, count())
    knowledge: Knowledge = setting("all", KNOWLEDGE)

    reference: ClassVar[str] = (
        "Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021; Allouah et al., "
        "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, AISTATS 2023"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Poison:
        """One crafted vector, of the most harmful strength, for malicious rows of (n, d)."""
        if not malicious.any():
            return Poison(updates, memory=round.memory)
        honest = observed(updates, malicious, self.knowledge)
        mean = honest.mean(0)
        if self.family == "alie":
            towards = -honest.std(0, correction=0)
        elif self.family == "ipm":
            towards = -mean
        else:
            length = torch.linalg.vector_norm(mean) / max(1, int(mean.count_nonzero())) ** 0.5
            towards = -mean.sign() * length
        play = Rehearsal(self.defence, self.goal, updates, malicious, round, self.knowledge)

        def damage(scale: float) -> float:
            rows = torch.where(play.malicious[:, None], mean + scale * towards, play.updates)
            return play.damage(rows, scale)

        doubled = (2.0**power for power in range(-2, max(1, self.calls // 2) - 2))
        tried = {scale: damage(scale) for scale in doubled}
        refine(damage, tried, self.calls - len(tried))
        scale, memory = play.outcome(1.0)
        sent = torch.where(malicious[:, None], mean + scale * towards, updates)
        return Poison(sent, memory={"defence": memory})


@dataclass(frozen=True)
class WhiteBox(Attack):
    """Written against SkyMask: poison where the masks do not tell, behind decoys.

    The attackers run SkyMask's own first half (`masks.MaskTraining`, with the settings of
    `defence` where it has them) on the updates as trained and on poisoned ones, and learn from the
    masks. A strategy is

    - where the poison goes: everywhere; imitating, only where most poisoned clients' mask bits
      came out like the root's; disputed, only in that half of the coordinates in which the clients'
      bits agree with each other least without any poison, so that a bit says least;
    - its direction p there: -mu, -sigma or -sigma sign(mu), with the mean mu and the standard
      deviation sigma of the honest updates;
    - what it is added to: each client's own update, so that none is a copy, or mu, so that all are;
    - decoys: none, or a third of the malicious clients, who send what they trained, to be accepted
      as honest and to pull their cluster's edge towards the others.

    The others send u_i + s p or mu + s p. Of the `calls` of the defence one goes to the strategy
    and strength s that was sent in the round before, half to others in turn, going on where the
    round before stopped, and the rest to the strength of the strategy that has then done best, as
    in `Adaptive` (8 calls, then the next best one, where there are so many). What is sent is the
    strongest of all by the loss of the attackers' clean samples after the aggregate is added: to
    have honest clients rejected, so that the model stays, is damage too.

    Nothing here knows a threshold of the defence, only what comes out of a call. Knowledge and
    rehearsal are as in `Adaptive`, with the loss besides.
    """

    defence: Defence = setting(SkyMask(), component("defence"))
    calls: int = setting(16, count(2))
    knowledge: Knowledge = setting("all", KNOWLEDGE)

    reference: ClassVar[str] = (
        "an attack of SkyMask's catalogue, after Tramer et al., On Adaptive Attacks to Adversarial "
        "Example Defenses, NeurIPS 2020"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def poison_updates(self, updates: Tensor, malicious: Tensor, round: Round) -> Poison:
        """The strongest strategy found, for malicious rows of `updates` (n, d)."""
        if not malicious.any():
            return Poison(updates, memory=round.memory)
        needed(round, "own", "WhiteBox")
        before = round.memory or {"turn": 0, "plan": 0, "scale": 1.0}
        play = Rehearsal(self.defence, "loss", updates, malicious, round, self.knowledge)
        plans = self._plans(play, observed(updates, malicious, self.knowledge), before["scale"])

        def damage(plan: int, scale: float) -> float:
            rows = plans[plan].rows(play.updates, play.malicious, play.round.clients, scale)
            return play.damage(rows, (plan, scale))

        trials = list(itertools.product(range(len(plans)), _SCALES))
        usual = before["plan"], before["scale"]
        results = {usual: damage(*usual)}
        for turn in range(before["turn"], before["turn"] + self.calls // 2):
            trial = trials[turn * _STRIDE % len(trials)]
            if trial not in results:
                results[trial] = damage(*trial)
        # The plan that did best first; where there are calls for more, the next best ones too.
        best: dict[int, float] = {}
        for (plan, _), done in results.items():
            best[plan] = max(done, best.get(plan, done))
        order = itertools.cycle(sorted(best, key=lambda plan: -best[plan]))
        for left, plan in zip(range(self.calls - len(results), 0, -_REFINED), order, strict=False):
            tried = {scale: done for (of, scale), done in results.items() if of == plan}
            refine(partial(damage, plan), tried, min(_REFINED, left))
            results |= {(plan, scale): done for scale, done in tried.items()}

        (plan, scale), memory = play.outcome(usual)
        turn = (before["turn"] + self.calls // 2) % len(trials)
        sent = plans[plan].rows(updates, malicious, round.clients, scale)
        return Poison(sent, memory={"turn": turn, "plan": plan, "scale": scale, "defence": memory})

    def _plans(self, play: Rehearsal, honest: Tensor, scale: float) -> list["_Plan"]:
        """All strategies, from masks trained with and without poison of strength `scale`."""
        mean = honest.mean(0)
        spread = honest.std(0, correction=0)
        directions = -mean, -spread, -mean.sign() * spread
        poisoned = _Plan(directions[0], 0.0, None).rows(
            play.updates, play.malicious, play.round.clients, scale
        )
        bits, harmed = self._bits(play.updates, play), self._bits(poisoned, play)
        alike = (harmed[:-1][play.malicious] == harmed[-1]).to(mean.dtype).mean(0)
        ones = bits[:-1].to(mean.dtype).mean(0)
        dispute = ones * (1 - ones)
        places = torch.ones_like(mean), alike > 0.5, dispute >= dispute.median()
        return [
            _Plan(towards * place, decoys, carrier)
            for place, towards, decoys, carrier in itertools.product(
                places, directions, _DECOYS, (None, mean)
            )
        ]

    def _bits(self, rows: Tensor, play: Rehearsal) -> Tensor:
        """Binary masks of `rows` (n, d) and the stand-in for the root model, (n + 1, d) bool."""
        params, loss, root, server = (
            needed(play.round, name, "WhiteBox")
            for name in ("params", "loss", "root", "server_update")
        )
        names = [f.name for f in fields(MaskTraining) if hasattr(self.defence, f.name)]
        train = MaskTraining(**{name: getattr(self.defence, name) for name in names})
        size = len(root.labels)  # Eq. 3 is a sum
        masks = train(
            torch.cat([rows, server[None]]),
            lambda shift: gradient(loss, params + shift, root) * size,
        )
        return masks.bits


class _Plan(NamedTuple):
    """A strategy: what malicious clients add to their updates, and how many of them do not."""

    step: Tensor
    """p, zero where nothing is poisoned, (d,)."""
    decoys: float
    carrier: Tensor | None
    """What it is added to, (d,): the honest mean, which makes copies; None: each one's own."""

    def rows(
        self, updates: Tensor, malicious: Tensor, clients: Tensor | None, scale: float
    ) -> Tensor:
        """`updates` (n, d) with `scale` times the step on those malicious clients that strike."""
        decoys = int(self.decoys * int(malicious.sum()))
        strike = malicious & (ranks(malicious, clients) >= decoys)
        carrier = updates if self.carrier is None else self.carrier
        return torch.where(strike[:, None], carrier + scale * self.step, updates)


_DECOYS = 0.0, 1 / 3
_SCALES = 0.5, 2.0, 8.0, 32.0
_STRIDE = 89
"""Neighbours in the list of trials are alike, so it is walked in strides (that hit all of them)."""
_REFINED = 8
"""Calls on the strength of one strategy before the next has its turn."""
