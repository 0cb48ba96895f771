"""SkyMask: who is thrown out, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from skymask.components import check_settings, count, number, setting
from skymask.defences.camps import opposed
from skymask.defences.clusters import Clustering, Clusters
from skymask.defences.copies import alike, copied
from skymask.defences.harm import harmful
from skymask.defences.known import SHORTEST, Known, Reasons, worth
from skymask.defences.masking import PAPER, MaskSummary, begin_masks
from skymask.defences.memory import PairAverages
from skymask.defences.paper import PaperSkyMask
from skymask.defences.parts import Parts, shares
from skymask.defences.peers import behind, taught
from skymask.defences.resistance import Resistance
from skymask.defences.screening import example_counts, screened
from skymask.defences.selected import needed
from skymask.defences.sizes import too_long
from skymask.defences.statistics import shifted, shifts
from skymask.defences.turning import Sketches, Turning
from skymask.evidence import Evidence, root_evidence
from skymask.geometry import centred, lengths, principal_coordinates
from skymask.masks import MaskTraining
from skymask.root_loss import RootLoss
from skymask.threads import in_one_thread
from skymask.types import Decision, Round

_SMALL = 256
"""Fewer parameters than this are no layer by themselves."""


@dataclass(frozen=True)
class SkyMask:
    """Masks tell who is alike, the root data set who is harmful; both are averaged over rounds.

    The paper's rule fits two clusters to the masks in every round and rejects the one without the
    root model. But honest clients form clusters too, by the classes that they hold: with nobody to
    reject it loses a third of them. Here a client is rejected for one of nine reasons, each of
    which an honest client gives seldom:

    1. Harm. Its updates, averaged over rounds, move the model's outputs for the root data set
       against their labels, or raise its loss: the alignment, both of all that it changes and of
       the scores that it raises, or the descent (`evidence.root_evidence`) is more than `sure`
       standard deviations below 0; or more than one, and an outlier beside the good clients by
       three robust standard deviations; or both are such outliers, whatever their sign; or its
       descent and its resistance (6) are together so far below 0. It is back when it is no longer
       below 0, or as low as many of the others.
    2. Copies. Three or more clients sent the same, but for a hundredth of the usual distance to
       the server's own update, or two who both did so before; in this round or in a third of its
       last ones. Or its mask is in a cluster apart from the root's that is too tight for clients
       that trained on their own: two Gaussians describe the masks better than one by more than
       `tight` in BIC per client (of fewer than 14 masks more, as 1 / n), in the average of the
       layers, or in one of them and so in a third of the last rounds. A majority has to be
       harmful, too, or of the same length throughout.
    3. A cluster apart (more than `apart` in BIC per client): of its clients those whose updates are
       more than `larger` times as long as the median one near the root, or harmful by one standard
       deviation while the median one near the root is not and the cluster's own is.
    4. Size. Its updates, averaged over rounds (in logarithm), are more than `larger` times as long
       as those of the median client that is left, and an outlier by three robust standard
       deviations; or so, and four times as long again, in this round. Likewise if a layer is so
       much more of its updates than of theirs, where poison in it outweighs what was trained.
    In 3 and 4 the long ones may be the clients of a class that the model does not know yet. So they
    stay who lower the root's loss more than the others do (but not in 4 for a single round).
    5. Statistics. Batch norm's running means and variances, which no mask covers, would move the
       model's features more than one standard deviation away from where the server's own have
       them, averaged over rounds, and `larger` times as far as the median client's; or three
       standard deviations in this round (`statistics.shifts`).
    6. Pushing. Whoever lowers a loss pulls the model back from where it went, since losses curve
       upwards: its updates change against the model's last step (`resistance`). Out is whose
       change with it, as those do that are turned round, over rounds and in all parameters by more
       than `sure` standard deviations, or by more than two and as an outlier beside the good
       clients; or in a module, if it does not resist in all parameters either. It takes clients
       that take part in one round after the other and a model that takes the decision's update, or
       a multiple; and the root model has to resist.
    7. Turning. The mean of what it sent in its last rounds points against what it sent before that
       (`turning`), which the root model's does not.
    8. Camps. It is in a camp of clients that change the model's outputs in the same way and go
       against the root data set as a group, where the others do not (`camps`).
    9. Peers. Its updates go less with the root's labels than those of the clients that teach the
       same classes, as an outlier, and not clearly with them by themselves (`peers`).

    Masks are trained as in the paper (Eq. 1 to 5). Departures, and why:

    - The mask gradient is divided by its own root mean square, because a fixed gamma fits one
      model, one root set and one stage of training (`benchmarks/step_size.py`).
    - Each layer has the same say in the clustering: the masks' n x n Gram matrices, one for each
      module of the model, are divided by their traces and averaged, where a PCA of all bits is
      decided by the largest layer.
    - What is known of a client is averaged over rounds, `memory` of it kept from one round to the
      next, by client id; it is forgotten at the same rate, so that a client rejected once is not
      lost. Harm is looked for in averages that forget three times as fast, too, so that good
      conduct buys no more than a few rounds. Clients that are away keep their averages. The Gram
      matrix is remembered among those of the last round.
    - Example counts are what clients say. They weight the mean (Eq. 7), but none for more than
      `larger` times the median one; and an update that is accepted but longer than `larger` times
      the median one is shortened to that, so that nobody carries the model away in one round.

    Assumptions: the root's labels are right for the most part, and its samples are of the classes
    that clients learn. Harm takes a model whose outputs are class scores, and a loss made by
    `server_round`; with a loss of one's own reasons 2 to 7 remain, and `evidence` says so.

    `scores` say how far from harmful a client is: the least of its averaged alignments and
    descents, in standard deviations (a descent counts as 0 after a single round); where there are
    none, minus the logarithm of its relative length.
    """

    gamma: float = setting(100.0, number(above=0))
    steps: int = setting(20, count())
    tolerance: float = setting(1e-3, number(at_least=0, below=1))
    tau: float = setting(0.5, number(above=0, below=1))
    dims: int = setting(2, count())
    memory: float = setting(0.9, number(at_least=0, below=1))
    sure: float = setting(3.0, number(above=0))
    larger: float = setting(2.5, number(above=1))
    tight: float = setting(4.0, number(above=0))
    apart: float = setting(1.5, number(above=0))

    reference: ClassVar[str] = f"{PAPER}; with a rule of our own for who is rejected"

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def paper(cls, gamma: float = 1e7) -> PaperSkyMask:
        """The rule as printed; `gamma` is 1e7 for Fashion-MNIST and HAR, 1e8 for CIFAR-10."""
        return PaperSkyMask(gamma)

    @partial(screened, sharded=True)
    def __call__(self, updates: Tensor, round: Round) -> Decision:
        """Accept the clients of `updates` (n, d) that give no reason to be rejected.

        Raises `InputError` where `round` lacks `params`, `loss`, `root` or `server_update`.
        """
        n = len(updates)
        ids = torch.arange(n) if round.clients is None else round.clients.cpu()
        past = round.memory if isinstance(round.memory, dict) else {}
        training = MaskTraining(self.gamma, True, self.steps, self.tolerance, self.tau)
        modules = _modules(round.layers, len(needed(round, "params", "SkyMask")))

        seen, told = _observed(updates, round)
        agree = torch.zeros(n + 1, n + 1, dtype=torch.float64) if told is None else told.alike
        server = round.shard.part(needed(round, "server_update", "SkyMask"))
        same = alike(updates, server, round.shard)

        before, params = past.get("resistance"), needed(round, "params", "SkyMask")
        parts = Parts.of(updates, server, modules, round.shard)
        resistance = Resistance.of(before, ids, parts, params, self.memory)
        of_layers = shares(updates, round.layers, round.shard)
        turns = past.get("turning")
        sketches = Sketches.of(turns, updates, server, round.shard, round.generator)

        samples = worth(needed(round, "root", "SkyMask").labels.cpu())
        # A GPU trains the masks while the host goes through the reasons that need none.
        begun = begin_masks(training, updates, round, root=True, parts=modules)
        with in_one_thread(n + 1):
            known = Known.of(past, ids, seen, of_layers, self.memory, samples)
            turning = Turning.of(turns, ids, sketches, self.memory, self.sure)
            reasons, copying = copied(same, ids, past.get("copies"), self.memory)
            agreed = PairAverages.of(past.get("agreed"), ids, agree, self.memory)
            reasons |= turning.reasons()
            settings = self.dims, self.sure, self.memory, past.get("camp")
            against, camp = opposed(known, agreed.values, ids, *settings, reasons)
            reasons |= against
            harm, harm_memory = harmful(
                known, self.sure, ids, past.get("harm"), reasons, resistance.of_clients
            )
            reasons |= harm
            pushes, pushing = resistance.pushing(self.sure)
            reasons |= pushes
            masks = begun()
            layers = _relative(masks.products)
            pairs = PairAverages.of(past.get("pairs"), ids, layers.mean(0), self.memory)
            grams = {"": pairs.values} | {
                f" in layer {name}": gram for name, gram in zip(modules, layers, strict=True)
            }
            clustering = Clustering(self.dims, self.tight, self.apart, self.larger, self.memory)
            clusters = clustering(known, grams, ids, _others(n, reasons), past.get("tight"))
            reasons |= clusters.reasons
            reasons |= too_long(known, _others(n, reasons), self.larger)
            if "shift" in seen:
                reasons |= shifted(known, seen["shift"][:n], _others(n, reasons), self.larger)
            teaching = taught(past.get("taught"), ids, told, self.memory)
            reasons |= behind(known, teaching, reasons)
            points = principal_coordinates(pairs.values, min(self.dims, n))

        found = {"resistance": resistance.slow[:n, 0], "turning": turning.cosines[:n]}
        evidence = _evidence(known, clusters, masks, found | {"points": points})
        if not known.deviations and not masks.moved:
            # Nothing tells anybody apart, and to accept everybody would be FedAvg unawares.
            why = "no mask moved away from its start, so that nobody can be told apart"
            reasons = dict.fromkeys(range(n), why)
        accepted = torch.tensor([i not in reasons for i in range(n)], device=updates.device)
        if not accepted.any():
            evidence["fallback"] = "every client was rejected; the global model stays as it is"
        update = self._mean(updates, accepted, round)
        return Decision(
            update,
            accepted,
            _scores(known).to(updates),
            known.stored()
            | {"copies": copying, "harm": harm_memory, "tight": clusters.memory}
            | {"taught": teaching.stored()}
            | {"pairs": pairs.stored(), "agreed": agreed.stored(), "camp": camp}
            | {"resistance": resistance.stored(before, ids, parts, params, pushing, update)}
            | {"turning": turning.state},
            tuple(reasons.get(i) for i in range(n)),
            evidence=evidence,
        )

    def _mean(self, updates: Tensor, accepted: Tensor, round: Round) -> Tensor:
        """The mean of the `accepted` of `updates` (n, d), none of much more weight than others.

        None counts as longer, or for more examples, than `larger` times the median one; zero where
        there are none.
        """
        if not accepted.any():
            return torch.zeros_like(updates[0])
        norms = lengths(updates, round.shard)[accepted]
        longest = self.larger * norms.median()
        counts = example_counts(round, accepted).to(torch.float64)
        shares = counts.clamp_max(self.larger * float(counts.median()))
        shares = shares / shares.sum() * torch.where(norms > longest, longest / norms, 1.0)
        weights = updates.new_zeros(len(updates))
        weights[accepted] = shares.to(updates.dtype)
        return weights @ updates  # without a copy of those that are accepted


def _evidence(
    known: Known, clusters: Clusters, masks: MaskSummary, found: dict[str, Tensor]
) -> dict[str, Any]:
    """What the decision is based on, client by client; `found` is some of it."""
    averages = known.slow.values
    evidence = {
        "gain": clusters.gain,
        **{name: averages[name][:-1] for name in averages if name != "square"},
        **found,
        **masks.evidence(),
    }
    if not known.deviations:
        evidence["unknown"] = "harm: the loss gives no class scores of the root data set"
    return evidence


def _scores(known: Known) -> Tensor:
    """How far from harmful clients are, (n,): see `SkyMask`."""
    least = [each for both in known.deviations.values() for each in both]
    return torch.stack(least or [-known.slow.values["length"]]).amin(0)[:-1]


def _others(n: int, reasons: Reasons) -> list[int]:
    return [i for i in range(n) if i not in reasons]


def _observed(updates: Tensor, round: Round) -> tuple[dict[str, Tensor], Evidence | None]:
    """What this round tells of each client, and last of the root: (n + 1,) float64 on the CPU.

    And the root's evidence, of which most of it is, if there is any.
    """
    server = needed(round, "server_update", "SkyMask")
    norms = torch.cat([lengths(updates, round.shard), lengths(server[None])]).to(torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    length = (norms.clamp_min(tiny) / norms[:-1].median().clamp_min(tiny)).log()
    # A tiny update must not make up for a huge one in the average.
    found = {"length": length.clamp_min(-SHORTEST).cpu()}
    if round.buffers is not None and round.server_buffers is not None:
        moved = shifts(round.buffers, round.server_buffers, round.buffer_layers)
        if moved is not None:
            found["shift"] = torch.cat([moved, moved.new_zeros(1)]).cpu()
    params, root = (needed(round, name, "SkyMask") for name in ("params", "root"))
    if not isinstance(round.loss, RootLoss) or root.labels.is_floating_point():
        return found, None
    evidence = root_evidence(round.loss, params, updates, root, norms[-1], server, round.shard)
    if evidence is not None:
        found |= evidence.numbers() | {"square": evidence.descent.square()}
    return found, evidence


def _modules(layers: Mapping[str, slice], d: int) -> dict[str, slice]:
    """The layers, a module's weight and bias taken together, and a small one with its neighbour.

    The masks of a few parameters are equal by chance, which would look like a tight cluster.
    """
    parts: list[tuple[str, slice]] = []
    for name, at in (layers or {"": slice(0, d)}).items():
        module = name.rpartition(".")[0]
        small = parts and min(_size(parts[-1][1]), _size(at)) < _SMALL
        if parts and (parts[-1][0] == module or small):
            before, start = parts.pop()
            module = module if _size(at) > at.start - start.start else before
            at = slice(start.start, at.stop)
        parts.append((module, at))
    if len(parts) > 1 and _size(parts[-1][1]) < _SMALL:
        parts[-2:] = [(parts[-2][0], slice(parts[-2][1].start, d))]
    return {module or "all": at for module, at in parts}


def _size(at: slice) -> int:
    return int(at.stop - at.start)


def _relative(products: Tensor) -> Tensor:
    """Products (..., n, n) of centred rows over their traces; zero where all rows are the same."""
    products = centred(products)
    traces = products.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    return torch.where(traces > 0, products / traces, 0.0)
