"""(n, d) mathematics that the rules, the attacks and the clustering share.

All of it walks through the rows in parts, so that no second (n, d) matrix is made.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from skymask.randomness import hashed
from skymask.shards import Shard

ALL = Shard()
"""Of a process that holds all columns."""
_UNSURE = 1e-2
"""A squared distance below this share of the squared norms has lost too many digits."""
_ENTRIES = 1 << 21
"""Entries of a part: enough to keep two cores busy, few enough to stay in their cache."""
_ON_A_GPU = 16
"""How many times as large a part is there, where launching the work is what takes time."""
_COLUMNS = 1 << 16
"""The widest part of a Gram matrix: it is summed in the rows' own precision."""
_FEW = 256
"""Distances of so few rows are worked on by the CPU."""
_ROWS = 256
"""Rows of a Gram matrix that are multiplied at once."""


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i rows_i / sum_i w_i of `rows` (n, d) with `weights` (n,): (d,)."""
    shares = weights.to(torch.float64) / weights.sum(dtype=torch.float64)
    return shares.to(rows.dtype) @ rows


def lengths(rows: Tensor, shard: Shard = ALL) -> Tensor:
    """Euclidean norms of `rows` (n, d), (n,), of which this process holds the columns `shard`."""
    own = torch.linalg.vector_norm(rows, dim=1)
    return own if shard.ranks == 1 else shard.sum(own.square()).sqrt()


def distances_to(point: Tensor, rows: Tensor) -> Tensor:
    """Euclidean distance of each of `rows` (n, d) to `point` (d,): (n,); inf where it overflows."""
    return torch.cat(
        [torch.linalg.vector_norm(part - point, dim=1) for part in rows.split(_height(rows))]
    )


def squared_distances(rows: Tensor) -> Tensor:
    """Squared Euclidean distances between all `rows` (n, d): (n, n) float64, exactly 0 for twins.

    |x|^2 + |y|^2 - 2 x.y cancels where x and y are close to each other but far from zero, so the
    rows are centred at their mean first. The pairs that still cancel lie in groups (colluders, or
    all others beside a huge row): the row with most such partners becomes the centre of its group,
    which settles its own pairs and all but the closest ones of the others, until none is left. Rows
    equal to that centre get its distances, bit for bit. A distance that overflows is infinite.
    """
    # A GPU takes longer to be told what to do with a small matrix than a CPU takes to do it.
    work = torch.device("cpu") if len(rows) <= _FEW else rows.device
    distances, norms = _distances_around(rows.mean(0), rows, None, work)
    unsure = _cancelled(distances, norms)
    while unsure.any():
        centre = unsure.sum(1).argmax()
        group = unsure[centre].index_fill(0, centre, True).nonzero().flatten()
        nearer, norms = _distances_around(rows[centre], rows, group.to(rows.device), work)
        block = group[:, None], group
        distances[block] = torch.where(unsure[block], nearer, distances[block])
        unsure[block] &= _cancelled(nearer, norms)
        twins = group[norms == 0]
        seen = distances[centre].clone()
        distances[twins], distances[:, twins] = seen, seen[:, None]
        unsure[twins] = False
        unsure[:, twins] = False
    return distances.to(rows.device)


def _distances_around(
    centre: Tensor, rows: Tensor, chosen: Tensor | None, work: torch.device
) -> tuple[Tensor, Tensor]:
    """Squared distances (k, k) of the `chosen` rows, and their squared ones to `centre` (k,)."""
    gram = gram_matrix(rows, centre, chosen).to(work)
    norms = gram.diagonal()
    distances = (norms[:, None] + norms - 2 * gram).clamp_min(0)
    return distances.nan_to_num(nan=torch.inf).fill_diagonal_(0), norms


def _cancelled(distances: Tensor, norms: Tensor) -> Tensor:
    """Which pairs' `distances` (k, k) are too small beside `norms` (k,) to be trusted."""
    # A row at the centre is at a distance of the other's norm, with nothing to cancel.
    doubtful = (norms > 0) & norms.isfinite()
    small = distances < _UNSURE * (norms[:, None] + norms)
    return ((small | distances.isinf()) & doubtful & doubtful[:, None]).fill_diagonal_(False)


def principal_components(rows: Tensor, dims: int, shard: Shard = ALL) -> Tensor:
    """Coordinates of `rows` (n, d) along their first `dims` principal axes: (n, dims) float64.

    From the n x n Gram matrix of the centred rows, never a d x d one: with eigenpairs (l, v) of it
    the coordinates are sqrt(l) v. An axis has no sign of its own; the entry largest in size is
    made positive, so the result does not hang on the order of the rows. Of the rows' columns this
    process holds `shard`.
    """
    # Bits are centred in the Gram matrix alone: products of 0 and 1 are exact.
    gram = gram_matrix(rows, rows.mean(0) if rows.is_floating_point() else None)
    return principal_coordinates(shard.sum(gram), dims)


def principal_coordinates(gram: Tensor, dims: int) -> Tensor:
    """`principal_components` of rows whose products with each other are `gram` (n, n) float64.

    Of several sets of rows at once where `gram` is (..., n, n): (..., n, dims).
    """
    values, vectors = torch.linalg.eigh(centred(gram).cpu())
    values, vectors = values.flip(-1)[..., :dims], vectors.flip(-1)[..., :dims]
    points = vectors * values.clamp_min(0).sqrt()[..., None, :]
    largest = points.gather(-2, points.abs().argmax(-2, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)
    missing = dims - points.shape[-1]  # fewer rows than axes
    return torch.nn.functional.pad(points, (0, missing)) if missing > 0 else points


def centred(gram: Tensor) -> Tensor:
    """Products (..., n, n) of rows with each other, made those of the rows minus their mean."""
    columns, rows = gram.mean(-2, keepdim=True), gram.mean(-1, keepdim=True)
    return gram - columns - rows + gram.mean((-2, -1), keepdim=True)


def gram_matrix(rows: Tensor, centre: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
    """Products of the `chosen` rows (all if None) minus `centre` with each other, in float64.

    Computed in float32 for narrower rows, in parts whose sum keeps its digits; in float64 where
    that overflows.
    """
    if rows.dtype == torch.bool and rows.device.type == "cpu" and centre is None and chosen is None:
        return _products_of_bits(rows)
    kind = torch.promote_types(rows.dtype, torch.float32) if rows.is_floating_point() else None
    total = _products(rows, centre, chosen, kind or torch.float32)
    if kind is not None and not total.isfinite().all():
        total = _products(rows, centre, chosen, torch.float64)
    return total


def _products_of_bits(rows: Tensor) -> Tensor:
    """As `_products`, of rows of bits on a CPU: in whole numbers, seven times as fast there."""
    numbers = rows.view(torch.int8).contiguous()
    return torch._int_mm(numbers, numbers.T).to(torch.float64)


def sketch(rows: Tensor, buckets: int, seed: int, start: int = 0) -> Tensor:
    """`rows` (n, d) with their columns added up in `buckets`, some turned round: (n, buckets).

    Column j goes to bucket j mod `buckets` with a sign that `seed` and j decide, which keeps
    products of rows with each other but for a relative error of 1 / sqrt(buckets) of their lengths
    (Charikar et al. 2002). The first column is number `start` of all. In single precision.
    """
    n, width = rows.shape
    entries = _ENTRIES if rows.device.type == "cpu" else _ON_A_GPU * _ENTRIES
    wide = buckets * max(1, entries // (n * buckets))
    total = torch.zeros(n, buckets, device=rows.device)
    begin = 0
    while begin < width:
        first = (start + begin) % buckets
        end = min(width, begin + wide - first)  # the next part starts with bucket 0
        columns = torch.arange(start + begin, start + end, device=rows.device)
        signs = 1.0 - 2.0 * (hashed(seed, columns) & 1).to(torch.float32)
        part = rows[:, begin:end].to(torch.float32) * signs
        filled = torch.nn.functional.pad(part, (first, -(first + end - begin) % buckets))
        total += filled.view(n, -1, buckets).sum(1)
        begin = end
    return total


def ones_in(rows: Tensor, at: slice) -> Tensor:
    """How many of the columns `at` of bits `rows` (n, d) are 1 in each row: (n,)."""
    if rows.device.type != "cpu":
        # torch makes a whole number of eight bytes of each bit first: in parts, then.
        parts = rows[:, at].split(max(1, _ON_A_GPU * _ENTRIES // len(rows)), 1)
        return torch.stack([part.sum(1) for part in parts]).sum(0)
    # For the same reason numpy is 25 times as fast.
    return torch.tensor([np.count_nonzero(row) for row in rows.numpy()[:, at]])


def _products(
    rows: Tensor, centre: Tensor | None, chosen: Tensor | None, kind: torch.dtype
) -> Tensor:
    n = len(rows) if chosen is None else len(chosen)
    total = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    for at in _column_parts(n, rows):
        part = rows[:, at] if chosen is None else rows[:, at][chosen]
        part = part.to(kind) if centre is None else part.to(kind) - centre[at].to(kind)
        for top in range(0, n, _ROWS):  # the lower triangle is enough
            end = min(n, top + _ROWS)
            total[top:end, :end] += part[top:end] @ part[:end].T
    return total.tril() + total.tril(-1).T


def _column_parts(n: int, rows: Tensor) -> Iterator[slice]:
    entries = _ENTRIES if rows.device.type == "cpu" else _ON_A_GPU * _ENTRIES
    width, d = min(_COLUMNS, max(1, entries // n)), rows.shape[1]
    return (slice(start, min(d, start + width)) for start in range(0, d, width))


def _height(rows: Tensor) -> int:
    return max(1, _ENTRIES // rows.shape[1])
