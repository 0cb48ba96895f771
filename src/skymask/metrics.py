"""What is measured in a run: accuracy, and how many verdicts were wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from skymask.clustering import two_gaussians
from skymask.environment import device_name
from skymask.flat import FlatModel, SampleLoss
from skymask.types import Backdoor, Batch, Decision

_AT_ONCE = {"cpu": 250}
"""Test samples that are evaluated at once: on a CPU what a layer puts out stays in the cache."""

Evaluation = Callable[[Tensor, Tensor], dict[str, float | None]]
"""(params (d,), buffers (b,)) -> what is measured on the test set."""


def evaluation(
    model: FlatModel, loss_of: SampleLoss, test: Batch, backdoor: Backdoor | None = None
) -> Evaluation:
    """How to evaluate a global model on `test`, with its running statistics and without dropout.

    Measured are `accuracy` and the mean `loss`; with a `backdoor` also `attack_success`, the share
    of ALL test samples that are put in the target class once they carry the trigger (as the paper
    counts: about one in C without attack), and `attack_success_others`, the same share of the
    samples of other classes alone.
    """
    module = model.in_mode(False)
    inputs, labels = test
    device = inputs.device
    at_once = _AT_ONCE.get(device.type, 1000)
    triggered = None if backdoor is None else backdoor.embed(inputs)

    def outputs(params: Tensor, buffers: Tensor, of: Tensor) -> Iterator[Tensor]:
        named = model.tensors(params, buffers)
        for x in of.split(at_once):
            yield functional_call(module, named, (x,))

    @torch.no_grad()
    def evaluate(params: Tensor, buffers: Tensor) -> dict[str, float | None]:
        right, loss = torch.zeros((), device=device), torch.zeros((), device=device)
        for scores, y in zip(outputs(params, buffers, inputs), labels.split(at_once), strict=True):
            right += (scores.argmax(1) == y).sum()
            loss += loss_of(scores, y) * len(y)
        found: dict[str, float | None] = {
            "accuracy": float(right) / len(labels),
            "loss": float(loss) / len(labels),
        }
        if backdoor is None or triggered is None:
            return found
        chosen = torch.cat([s.argmax(1) for s in outputs(params, buffers, triggered)])
        hit, others = chosen == backdoor.target, labels != backdoor.target
        return found | {
            "attack_success": _share(hit, torch.ones_like(others)),
            "attack_success_others": _share(hit & others, others),
        }

    return evaluate


def verdicts(decision: Decision, clients: Tensor, malicious: Tensor) -> dict[str, Any]:
    """What a round's record says of the decision on `clients` (n,).

    fpr: share of the honest clients that were rejected; fnr: share of the malicious ones that were
    accepted (section IV-A7); None where there are none. `rejected`: client id -> reason.
    `evidence`: those parts of the decision's evidence that are single numbers.
    """
    accepted = decision.accepted.cpu()
    reasons = decision.reasons or (None,) * len(clients)
    rejected = {str(int(c)): reasons[i] for i, c in enumerate(clients) if not accepted[i]}
    return {
        "clients": len(clients),
        "malicious": int(malicious.sum()),
        "fpr": _share(~accepted & ~malicious, ~malicious),
        "fnr": _share(accepted & malicious, malicious),
        "rejected": rejected,
        "update_norm": float(torch.linalg.vector_norm(decision.update)),
        "fallback": decision.evidence.get("fallback"),
        "evidence": {k: v for k, v in decision.evidence.items() if isinstance(v, int | float)},
    }


def closeup(decision: Decision, clients: Tensor) -> dict[str, Any]:
    """What is known of each of the `clients` (n,) in a round, for a reader to look into.

    `points`: the masks' coordinates along their first two principal components, one row a client,
    and last the root's if there is one; `apart`: which of them are in the other one of two clusters
    of these points, and `gain` by how much in BIC per client two describe them better than one.
    `values`: those parts of the evidence that have a number a
    client, and `ones` those that have one for each layer; `score` is among the values. Four digits
    are kept.
    """
    n = len(clients)
    found: dict[str, Any] = {"clients": clients.tolist()}
    values: dict[str, list[float]] = {}
    if decision.scores is not None:
        values["score"] = _short(decision.scores)
    for name, part in decision.evidence.items():
        if name == "points" and isinstance(part, Tensor):
            points = part[:, :2].to(torch.float64).cpu()
            found["points"] = [_short(row) for row in points]
            found |= _two_clusters(points, rooted=len(points) > n)
        elif isinstance(part, Tensor) and part.ndim == 1 and len(part) in (n, n + 1):
            values[name] = _short(part)
        elif name == "ones":
            found["ones"] = {layer: _short(share) for layer, share in part.items()}
    return found | {"values": values}


def _two_clusters(points: Tensor, rooted: bool) -> dict[str, Any]:
    """The clusters in a close-up: the other one is that without the root, else the smaller one."""
    mixture = two_gaussians(points.numpy())
    marks = mixture.labels != mixture.labels[-1]
    if not rooted and 2 * marks.sum() > len(marks):
        marks = ~marks
    return {"apart": marks.tolist(), "gain": float(f"{mixture.gain:.4g}")}


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.to(torch.float64).tolist()]


def _share(some: Tensor, of: Tensor) -> float | None:
    return int(some.sum()) / int(of.sum()) if of.any() else None


def summarise(
    records: Sequence[Mapping[str, Any]], seed: int, device: torch.device
) -> dict[str, Any]:
    """The summary of a run from its records (see `simulation.Result`)."""
    accuracies = [r["accuracy"] for r in records if "accuracy" in r]
    evaluated: Mapping[str, Any] = next((r for r in reversed(records) if "accuracy" in r), {})
    return {
        "accuracy": accuracies[-1] if accuracies else None,
        "accuracy_last5": float(np.mean(accuracies[-5:])) if accuracies else None,
        "attack_success": evaluated.get("attack_success"),
        "attack_success_others": evaluated.get("attack_success_others"),
        "fpr": mean_of(records, "fpr"),
        "fnr": mean_of(records, "fnr"),
        "fallbacks": sum(r["fallback"] is not None for r in records),
        "rounds": len(records),
        "seconds": sum(r["seconds"] for r in records),
        "device": device_name(device),
        "seed": seed,
    }


def mean_of(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean of a field over the records that have it; None if none has."""
    values = [r[name] for r in records if r.get(name) is not None]
    return float(np.mean(values)) if values else None
