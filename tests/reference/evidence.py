"""How far updates agree with the labels of the root data set, one number at a time."""

from collections.abc import Callable

import numpy as np

STEP = 1e-5


def derivative(
    scores: Callable[[np.ndarray], np.ndarray], params: np.ndarray, update: np.ndarray
) -> np.ndarray:
    """Of the scores (N, C) along `update`, by central differences."""
    step = STEP * update / np.linalg.norm(update)
    return (scores(params + step) - scores(params - step)) / (2 * STEP)


def alignment(
    scores: Callable[[np.ndarray], np.ndarray],
    params: np.ndarray,
    updates: np.ndarray,
    labels: np.ndarray,
    raised: bool = False,
) -> list[float]:
    """The alignment of each of `updates`; `scores` gives (N, C) of a model's parameters.

    With `raised` classes count for the scores that are raised alone.
    """
    return [
        sum(share * contrast for share, contrast in each)
        for each in by_classes(scores, params, updates, labels, raised)
    ]


def by_classes(
    scores: Callable[[np.ndarray], np.ndarray],
    params: np.ndarray,
    updates: np.ndarray,
    labels: np.ndarray,
    raised: bool,
) -> list[list[tuple[float, float]]]:
    """Each class's share in each of `updates`, and how much more its samples are raised."""
    changes = []
    for update in updates:
        change = derivative(scores, params, update)
        change = np.array([row - row.mean() for row in change])
        changes.append(change / np.sqrt((change**2).mean()))  # all clients have the same say
    reaction = []
    for sample in range(len(labels)):
        sizes = sorted((change[sample] ** 2).mean() for change in changes)
        reaction.append(np.sqrt(sizes[(len(sizes) - 1) // 2]))
    return [each_class(change, np.array(reaction), labels, raised) for change in changes]


def each_class(
    change: np.ndarray, reaction: np.ndarray, labels: np.ndarray, raised: bool
) -> list[tuple[float, float]]:
    classes = sorted(set(labels.tolist()))
    counted = np.where(change > 0, change, 0.0) if raised else change
    whole = sum((counted[:, c] ** 2).sum() for c in classes)
    found = []
    for c in classes:
        ranks = [share_below(value, change[:, c] / reaction) for value in change[:, c] / reaction]
        inside = [rank for rank, label in zip(ranks, labels, strict=True) if label == c]
        others = [rank for rank, label in zip(ranks, labels, strict=True) if label != c]
        share = (counted[:, c] ** 2).sum() / whole
        found.append((share, np.mean(inside) - np.mean(others)))
    return found


def share_below(value: float, values: np.ndarray) -> float:
    """The rank of `value` among `values`, from 0 to 1."""
    return sum(other < value for other in values) / (len(values) - 1)


def descent(
    scores: Callable[[np.ndarray], np.ndarray],
    params: np.ndarray,
    update: np.ndarray,
    labels: np.ndarray,
) -> float:
    """The cosine of an update's changes and of what would lower the loss of every class alike."""
    before, change = scores(params), derivative(scores, params, update)
    dot = own = other = 0.0
    for sample, label in enumerate(labels):
        chances = np.exp(before[sample]) / np.exp(before[sample]).sum()
        for c in range(before.shape[1]):
            wanted = (float(c == label) - chances[c]) / (labels == label).sum()
            changed = change[sample, c] - change[sample].mean()
            dot, own, other = dot + wanted * changed, own + changed**2, other + wanted**2
    return dot / np.sqrt(own * other)


def alike(
    scores: Callable[[np.ndarray], np.ndarray], params: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    """How much each two of `updates` change the scores in the same way, (n, n)."""
    changes = [derivative(scores, params, update) for update in updates]
    changes = [change - change.mean(1, keepdims=True) for change in changes]
    found = np.zeros((len(updates), len(updates)))
    for i, one in enumerate(changes):
        for j, other in enumerate(changes):
            columns = zip(one.T, other.T, strict=True)
            found[i, j] = np.mean([np.corrcoef(mine, theirs)[0, 1] for mine, theirs in columns])
    return found
