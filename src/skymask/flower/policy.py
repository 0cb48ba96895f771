"""When a node is no longer asked, and how it comes back."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from skymask.errors import require, require_count
from skymask.flower.replies import Kind


@dataclass(frozen=True)
class Standing:
    """What the server holds against a node."""

    strikes: int = 0
    resting: int = 0
    """For how many more rounds it is not asked; -1 until somebody pardons it."""

    @property
    def excluded(self) -> bool:
        """Whether the node's messages are not sent."""
        return self.resting != 0


@dataclass(frozen=True)
class Policy:
    """What follows from verdicts.

    A rejected or malformed reply is a strike, an accepted one takes a strike back; an error or no
    reply is neither, so a node on a bad line is never thrown out for it. With `strikes` strikes a
    node is not asked for `pardon_after` rounds; then it has one strike less, so that one more
    excludes it again.
    """

    strikes: int | None = 3
    """Strikes that exclude a node; None never excludes one (its reply is still left out)."""
    pardon_after: int | None = 20
    """Rounds until an excluded node is asked again; None: not before it is pardoned."""
    observe: bool = False
    """Only look: verdicts are recorded, but nothing is left out that can be aggregated."""
    allow: tuple[int | str, ...] = ()
    """Node ids or names whose replies are never rejected by the defence."""
    pardon: tuple[int | str, ...] = ()
    """Node ids or names whose strikes are forgotten at the start."""

    def __post_init__(self) -> None:
        for name in ("strikes", "pardon_after"):
            if getattr(self, name) is not None:
                require_count(f"policy {name}", getattr(self, name))
        for name in ("allow", "pardon"):
            value = getattr(self, name)
            ok = isinstance(value, Collection) and not isinstance(value, str)
            require(ok, f"policy {name}", value, "several node ids or names, as a tuple")
            object.__setattr__(self, name, tuple(value))

    def after(self, standing: Standing, verdict: Kind) -> Standing:
        """The node's standing after a round with this verdict."""
        if verdict == "accepted":
            return replace(standing, strikes=max(0, standing.strikes - 1))
        if verdict not in ("rejected", "malformed"):
            return standing
        strikes = standing.strikes + 1
        out = self.strikes is not None and strikes >= self.strikes and not self.observe
        return Standing(strikes, (self.pardon_after or -1) if out else 0)

    def rested(self, standing: Standing) -> Standing:
        """The standing of an excluded node after one more round in which it was not asked."""
        if standing.resting < 0:
            return standing
        left = standing.resting - 1
        if left or self.strikes is None:
            return replace(standing, resting=left)
        return Standing(min(standing.strikes, self.strikes - 1), 0)

    def allows(self, node: int, name: str | None) -> bool:
        """Whether the node is on the allow-list."""
        return listed(self.allow, node, name)


def listed(nodes: Collection[int | str], node: int, name: str | None) -> bool:
    """Whether `nodes` has this node, by its id (a number, or written out) or by its name."""
    return node in nodes or str(node) in nodes or (name is not None and name in nodes)
