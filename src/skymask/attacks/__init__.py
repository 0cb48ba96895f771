"""Attacks: objects with `poison_data` and `poison_updates` (see `skymask.types.Attack`)."""

from collections.abc import Callable

from skymask.attacks.crafted import FangTrim, MinSum
from skymask.attacks.data import LabelFlip, NoAttack
from skymask.types import Attack

ATTACKS: dict[str, Callable[..., Attack]] = {
    "none": NoAttack,
    "label-flip": LabelFlip,
    "min-sum": MinSum,
    "fang-trim": FangTrim,
}
"""Name on the command line -> what makes the attack from its settings."""

__all__ = ["ATTACKS", "FangTrim", "LabelFlip", "MinSum", "NoAttack"]
