"""SkyMask as the paper prints it: two clusters of masks in every round."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from skymask.clustering import Mixture, two_gaussians
from skymask.components import check_settings, count, flag, number, setting
from skymask.defences.masking import PAPER, MaskSummary, mask_summary
from skymask.defences.screening import example_counts, screened
from skymask.geometry import principal_coordinates, weighted_mean
from skymask.masks import MaskTraining
from skymask.threads import in_one_thread
from skymask.types import Decision, Round


@dataclass(frozen=True)
class PaperSkyMask:
    """SkyMask with the trusted root model, as printed (section III-C, Eq. 2 to 7).

    The server trains a root model exactly as a client, gives it and every client a mask, trains
    all masks together to lower the root loss of the masked models' mean, binarises them at `tau`,
    reduces them by PCA to `dims` coordinates and fits a mixture of two Gaussians. Clients in the
    root's component are accepted, and averaged with their example counts as weights; the root
    itself is not part of the mean. If nobody is in the root's component the global model stays as
    it is and `Decision.evidence["fallback"]` says so.

    Settings: `gamma` (1e7 for Fashion-MNIST and HAR, 1e8 for CIFAR-10, section IV-A5), `relative`,
    `steps`, `tolerance` and `tau` as in `masks.MaskTraining`.

    Where the paper leaves a choice, or cannot be followed:

    - It says that masks form one cluster in a round without attack but gives no rule to tell; here
      there are always two components, and without attack a third of the honest clients is lost.
    - The mean in Eq. 1 and 2 is over the clients; the root model takes part in it, since its mask
      is trained with the others (section III-C3).
    - While masks are trained, updates longer than 1,000 times the server's own are shortened to
      that, so that no client can make the root loss overflow.
    - At most 20 steps; mini-batches for the root model, as for the clients.

    `scores` are the probabilities of belonging to the root's component.
    """

    gamma: float = setting(1e7, number(above=0))
    relative: bool = setting(False, flag())
    steps: int = setting(20, count())
    tolerance: float = setting(1e-3, number(at_least=0, below=1))
    tau: float = setting(0.5, number(above=0, below=1))
    dims: int = setting(2, count())

    reference: ClassVar[str] = PAPER

    def __post_init__(self) -> None:
        check_settings(self)

    @partial(screened, sharded=True)
    def __call__(self, updates: Tensor, round: Round) -> Decision:
        """Accept the clients of `updates` (n, d) whose masks are in the root's cluster.

        Raises `InputError` where `round` lacks `params`, `loss`, `root` or `server_update`.
        """
        masks = mask_summary(_training(self), updates, round, root=True)
        points, mixture = _clustered(masks, min(self.dims, len(updates)))
        return _decide(updates, round, mixture, int(mixture.labels[-1]), masks, points)


@dataclass(frozen=True)
class SkyMaskNR:
    """SkyMask without the root model: the larger cluster is benign (section IV-A6).

    Right only while fewer than half of the clients are malicious. The masks are still trained on
    the root data set. The mask gradient is divided by its own root mean square (`relative`),
    because a fixed gamma fits one model, one root set and one stage of training; `gamma=1e7,
    relative=False` is the step as printed. All else as in `PaperSkyMask`.
    """

    gamma: float = setting(100.0, number(above=0))
    relative: bool = setting(True, flag())
    steps: int = setting(20, count())
    tolerance: float = setting(1e-3, number(at_least=0, below=1))
    tau: float = setting(0.5, number(above=0, below=1))
    dims: int = setting(2, count())

    reference: ClassVar[str] = PAPER

    def __post_init__(self) -> None:
        check_settings(self)

    @partial(screened, sharded=True)
    def __call__(self, updates: Tensor, round: Round) -> Decision:
        """Accept the clients of `updates` (n, d) whose masks are in the larger cluster.

        Raises `InputError` where `round` lacks `params`, `loss` or `root`.
        """
        masks = mask_summary(_training(self), updates, round, root=False)
        points, mixture = _clustered(masks, min(self.dims, len(updates)))
        larger = int((mixture.labels == 1).sum() * 2 > len(updates))
        return _decide(updates, round, mixture, larger, masks, points)


def _training(rule: PaperSkyMask | SkyMaskNR) -> MaskTraining:
    return MaskTraining(rule.gamma, rule.relative, rule.steps, rule.tolerance, rule.tau)


def _clustered(masks: MaskSummary, dims: int) -> tuple[Tensor, Mixture]:
    """The masks' principal coordinates, and the two clusters of them."""
    products = masks.products[0]
    with in_one_thread(len(products)):
        points = principal_coordinates(products, dims)
        return points, two_gaussians(points.numpy())


def _decide(
    updates: Tensor, round: Round, mixture: Mixture, benign: int, masks: MaskSummary, points: Tensor
) -> Decision:
    n = len(updates)
    trust = torch.from_numpy(mixture.probabilities[:n, benign]).to(updates)
    accepted = torch.from_numpy(mixture.labels[:n] == benign).to(updates.device)
    evidence = {"points": points, **masks.evidence()}
    outside = "its mask is outside the benign cluster (probability {:.2f} of being inside)"
    if not masks.moved:
        # Masks that never moved say nothing, and to accept everybody would be FedAvg unawares.
        accepted = torch.zeros_like(accepted)
        outside = "no mask moved away from its start, so that nobody can be told apart"
        evidence["fallback"] = f"{outside}; the global model stays"
    elif not accepted.any():
        evidence["fallback"] = "no client's mask is in the benign cluster; the global model stays"
    reasons = tuple(
        None if ok else outside.format(p)
        for ok, p in zip(accepted.tolist(), trust.tolist(), strict=True)
    )
    update = (
        weighted_mean(updates[accepted], example_counts(round, accepted))
        if accepted.any()
        else updates.new_zeros(updates.shape[1])
    )
    return Decision(update, accepted, trust, round.memory, reasons, evidence=evidence)
