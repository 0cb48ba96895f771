"""From a data set to a federation: the server's root set, the clients' samples, the test set."""

import warnings
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from skymask.data.partition import Partition, check_filled, check_labels
from skymask.errors import InputError, require
from skymask.randomness import generator as keyed
from skymask.types import Batch, ClientData, Dataset


@dataclass(frozen=True)
class Federation:
    """A data set as it lies in a federation. No training sample is in two places.

    `clients` holds all clients' samples, `root` is the server's clean data, `test` is the data
    set's own test set, `classes` the number of labels.
    """

    clients: ClientData
    root: Batch
    test: Batch
    classes: int


def root_rows(labels: Tensor, classes: int, size: int, bias: float, generator: Generator) -> Tensor:
    """Draw the rows of the root set from `labels` (N,): (size,) int64, without repetition.

    `bias` is the paper's p (Section IV-A1): that fraction of the rows, rounded, is of one class,
    which the generator draws; the rest is of the other classes, as evenly as possible. p = 1 / C
    is even. The paper draws with probability p; here the counts are exact, so that 100 samples mean
    the same for every seed.

    Where a class runs short, the other ones (never the favoured one) fill in as evenly as they
    can; the favoured class is drawn among those that allow the exact fraction. `InputError` if
    there is none, if `size` exceeds the samples or `bias` is outside [0, 1]. A root set of a single
    class is legal but warned of: nothing can be learned from it.
    """
    require(1 <= size <= len(labels), "root_size", size, f"from 1 to {len(labels)} (the samples)")
    require(0 <= bias <= 1, "root_bias", bias, "from 0 to 1")
    check_labels(labels, classes)
    available = labels.bincount(minlength=classes)
    favoured = round(bias * size)
    fits = (available >= favoured) & (len(labels) - available >= size - favoured)
    if not fits.any():
        raise InputError(
            f"root_bias is {bias!r} but no class has {favoured} samples with {size - favoured} in "
            f"the other classes (the largest class has {int(available.max())}): use a smaller "
            "root_size or another root_bias"
        )
    candidates = fits.nonzero().squeeze(1)
    main = int(candidates[torch.randint(len(candidates), (), generator=generator)])
    counts = _spread(available.index_fill(0, torch.tensor(main), 0), size - favoured, generator)
    counts[main] = favoured
    if (counts > 0).sum() == 1:
        only = int(counts.argmax())
        warnings.warn(
            f"the root set holds one class only (label {only}): it cannot tell good updates from "
            "bad ones of other classes; use a smaller root_bias or a larger root_size",
            stacklevel=2,
        )
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = [shuffled[labels[shuffled] == k][: int(counts[k])] for k in range(classes)]
    return torch.cat(chosen)


def _spread(available: Tensor, total: int, generator: Generator) -> Tensor:
    """Spread `total` over the classes as evenly as what is `available` allows, (C,) int64."""
    counts = torch.zeros_like(available)
    while total:
        room = (counts < available).nonzero().squeeze(1)
        share = total // len(room)
        if share == 0:  # fewer left than classes: one each, for classes drawn at random
            room = room[torch.randperm(len(room), generator=generator)[:total]]
            share = 1
        given = (available - counts)[room].clamp(max=share)
        counts[room] += given
        total -= int(given.sum())
    return counts


def divide(
    dataset: Dataset,
    clients: int,
    partition: Partition,
    root_size: int = 100,
    root_bias: float = 0.1,
    seed: int = 1,
    root_noise: float = 0.0,
) -> Federation:
    """Draw the root set from the training rows, then divide the others among `clients`.

    `root_noise` is the share of the root set's labels that are wrong (`wrong_labels`).

    Randomness is keyed by `seed`: the root set stays the same whatever the partition, and its rows
    whatever the noise. Raises
    `InputError` for labels outside 0..classes-1, inputs that are not finite, a root set larger
    than the data, and a partition that leaves a client without samples or loses or repeats some.
    """
    require(clients >= 1, "clients", clients, "at least 1")
    train, test = _checked(dataset, "train"), _checked(dataset, "test")
    root = root_rows(train.labels, dataset.classes, root_size, root_bias, keyed(seed, "root"))
    is_root = torch.zeros(len(train.labels), dtype=torch.bool)
    is_root[root] = True
    rest = (~is_root).nonzero().squeeze(1)
    parts = partition(
        train.labels[rest],
        dataset.classes,
        clients,
        keyed(seed, "partition"),
        None if dataset.subjects is None else dataset.subjects.cpu()[rest],
    )
    rows = rest[_complete(parts, clients, len(rest), partition)]
    counts = torch.tensor([0] + [len(part) for part in parts])
    held = ClientData(train.inputs[rows], train.labels[rows], counts.cumsum(0), dataset.classes)
    labels = wrong_labels(
        train.labels[root], dataset.classes, root_noise, keyed(seed, "root noise")
    )
    return Federation(held, Batch(train.inputs[root], labels), test, dataset.classes)


def wrong_labels(labels: Tensor, classes: int, noise: float, generator: Generator) -> Tensor:
    """`labels` (N,) of which a share `noise`, rounded, are wrong: a new tensor.

    Which ones is drawn by the generator, and for each of them one of the other classes, all equally
    likely. Raises `InputError` for a `noise` outside [0, 1].
    """
    require(0 <= noise <= 1, "root_noise", noise, "from 0 to 1")
    chosen = torch.randperm(len(labels), generator=generator)[: round(noise * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    wrong = labels.clone()
    wrong[chosen] = (labels[chosen] + shift) % classes
    return wrong


def _complete(parts: list[Tensor], clients: int, rows: int, partition: Partition) -> Tensor:
    """All parts' rows one after another, once it is sure that they are a partition."""
    require(len(parts) == clients, f"number of parts from {partition}", len(parts), str(clients))
    check_filled(parts, "use fewer clients, more samples or another partition")
    together = torch.cat(parts)
    if not together.sort().values.equal(torch.arange(rows)):
        raise InputError(f"{partition} must give each of the {rows} rows to exactly one client")
    return together


def _checked(dataset: Dataset, part: str) -> Batch:
    """One part of the data set with int64 labels, after its shapes and values were checked."""
    batch: Batch = getattr(dataset, part)
    inputs, labels = batch
    field = f"{part} of data set {dataset.name!r}"
    require(dataset.classes >= 2, f"classes of data set {dataset.name!r}", dataset.classes, ">= 2")
    if labels.dim() != 1 or len(inputs) != len(labels) or not len(labels):
        raise InputError(
            f"{field} has inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} but must "
            "have the same number of both, at least one, and labels of shape (N,)"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise InputError(f"labels in {field} are {labels.dtype} but must be integers")
    inputs, labels = inputs.cpu(), labels.long().cpu()
    check_labels(labels, dataset.classes, f"label in {field}")
    if inputs.is_floating_point() and inputs.numel():
        # NaN wins every comparison inside aminmax, so two numbers tell about all of them.
        ends = torch.stack(torch.aminmax(inputs))
        if not ends.isfinite().all():
            row = int((~inputs.reshape(len(inputs), -1).isfinite()).any(1).nonzero()[0])
            raise InputError(f"inputs in {field} must be finite but row {row} is not")
    subjects = dataset.subjects
    if part == "train" and subjects is not None and subjects.shape != labels.shape:
        raise InputError(
            f"subjects of data set {dataset.name!r} have shape {tuple(subjects.shape)} but must "
            f"have {tuple(labels.shape)}, one for each training row"
        )
    return Batch(inputs, labels)
