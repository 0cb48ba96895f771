"""What convolution, pooling and batch norm of many models at once need beside matrix products.

Written in Triton, which comes with torch on CUDA. Images are (n, C, B, H, W) and contiguous: for
each of n clients channel by channel, in there B images of H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    constexpr = tl.constexpr
except ModuleNotFoundError:  # torch on a CPU
    triton, constexpr = None, None

_ELEMENTS = 1024
"""Elements of a program, or what it has in flight where it goes through more."""
_PART = 4 * _ELEMENTS
"""Elements of a channel that one program sums up: a single model's few channels keep a GPU busy."""


def takes(*tensors: Tensor) -> bool:
    """Whether there are kernels for `tensors`: for single precision on CUDA."""
    return triton is not None and all(
        each.device.type == "cuda" and each.dtype == torch.float32 for each in tensors
    )


def unfold(
    images: Tensor,
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    ones: bool,
) -> Tensor:
    """What a convolution sees: (n, C * h * w, B * H' * W') of `images` (n, C, B, H, W).

    Rows are input channels and taps in the order of a weight (O, C, h, w), columns are the output's
    pixels, of `size` (H', W'). With `ones` there is a last row of ones: a bias is its weight.
    """
    n, channels, count, height, width = images.shape
    taps, pixels = kernel[0] * kernel[1], count * size[0] * size[1]
    seen = images.new_empty(n, channels * taps + ones, pixels)
    with torch.cuda.device(images.device):
        _unfold[(triton.cdiv(pixels, _ELEMENTS), channels, n)](
            images, seen, channels, count, height, width, *size, *padding, len(seen[0]),
            ones, stride, *kernel, _ELEMENTS,
        )  # fmt: skip
    return seen


def fold(
    slopes: Tensor,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
) -> Tensor:
    """The gradient with respect to images of `shape` (n, C, B, H, W), of what `unfold` gave.

    `slopes` are (n, C * h * w, B * H' * W'). Each pixel sums up all places where it was seen.
    """
    n, channels, count, height, width = shape
    folded = slopes.new_empty(shape)
    with torch.cuda.device(slopes.device):
        _fold[(triton.cdiv(count * height * width, _ELEMENTS), channels, n)](
            slopes, folded, channels, count, height, width, *size, *padding,
            stride, *kernel, _ELEMENTS,
        )  # fmt: skip
    return folded


def pool(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The largest of each `side` x `side` pixels of `images` (n, C, B, H, W), and where: uint8."""
    n, channels, count, height, width = images.shape
    pooled = images.new_empty(n, channels, count, height // side, width // side)
    place = torch.empty_like(pooled, dtype=torch.uint8)
    with torch.cuda.device(images.device):
        _pool[(triton.cdiv(pooled[0, 0].numel(), _ELEMENTS), n * channels)](
            images, pooled, place, count, height, width, *pooled.shape[3:], side, _ELEMENTS
        )
    return pooled, place


def unpool(slopes: Tensor, place: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """The gradient with respect to the images (n, C, B, *size) that `pool` had."""
    n, channels, count, height, width = slopes.shape
    spread = slopes.new_empty(n, channels, count, *size)
    with torch.cuda.device(slopes.device):
        _unpool[(triton.cdiv(spread[0, 0].numel(), _ELEMENTS), n * channels)](
            slopes, place, spread, count, *size, height, width, side, _ELEMENTS
        )
    return spread


def normalise(
    images: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of `images` (n, C, B, H, W); also their mean and variance, (n, C) each.

    `weight` and `bias` are (n, C).
    """
    n, channels = images.shape[:2]
    normal, (mean, variance) = torch.empty_like(images), images.new_empty(2, n, channels)
    grid, some = _parts(images)
    sums = images.new_empty(2, *grid)
    with torch.cuda.device(images.device):
        _moments[grid](images, sums, images[0, 0].numel(), grid[0] * grid[1], _PART, _ELEMENTS)
        _normalise[grid](
            images, weight, bias, sums, normal, mean, variance, images[0, 0].numel(), epsilon,
            grid[1], grid[0] * grid[1], some, _PART, _ELEMENTS,
        )  # fmt: skip
    return normal, mean, variance


def normalise_back(
    slopes: Tensor, images: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to `images`, weight and bias of `normalise`."""
    by_weight, by_bias = slopes.new_empty(2, *slopes.shape[:2])
    found = _through(slopes, images, weight, mean, variance, by_weight, by_bias, epsilon, 1)
    return found, by_weight, by_bias


def normalise_along(
    steps: Tensor,
    by_weight: Tensor,
    by_bias: Tensor,
    images: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Tensor:
    """What n `steps` (n, C, B, H, W) of the images change in `normalise`'s, as derivatives.

    With them come steps (n, C) of the weight and the bias; `images`, `weight`, `mean` and
    `variance` are those of n models or, (1, C, ...), of one that all share. As a function of images
    alone batch norm's derivative is symmetric: forwards it is what it is backwards.
    """
    return _through(steps, images, weight, mean, variance, by_weight, by_bias, epsilon, 0)


def _through(
    slopes: Tensor, images: Tensor, weight: Tensor, mean: Tensor, variance: Tensor,
    by_weight: Tensor, by_bias: Tensor, epsilon: float, back: int,
) -> Tensor:  # fmt: skip
    found = torch.empty_like(slopes)
    grid, some = _parts(slopes)
    sums = slopes.new_empty(2, *grid)
    size, own = slopes[0, 0].numel(), mean.numel()
    with torch.cuda.device(slopes.device):
        _slope_sums[grid](
            slopes, images, mean, sums, size, own, grid[0] * grid[1], _PART, _ELEMENTS
        )
        _normalise_through[grid](
            slopes, images, weight, mean, variance, sums, found, by_weight, by_bias, size, own,
            epsilon, grid[1], grid[0] * grid[1], back, some, _PART, _ELEMENTS,
        )  # fmt: skip
    return found


def _parts(images: Tensor) -> tuple[tuple[int, int], int]:
    """The programs for all channels (n, C) and parts of each, and a power of two above these."""
    n, channels = images.shape[:2]
    parts = triton.cdiv(images[0, 0].numel(), _PART)
    return (n * channels, parts), triton.next_power_of_2(parts)


def _kernel(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_kernel
def _unfold(
    images, seen, channels, count, height, width, rows, columns, pad_rows, pad_columns, lines,
    ones: constexpr, stride: constexpr, high: constexpr, wide: constexpr, elements: constexpr,
):  # fmt: skip
    """A block of pixels of one channel of one client, for every tap."""
    channel, client = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * elements + tl.arange(0, elements)
    pixels = count * rows * columns
    inside = pixel < pixels
    image, place = pixel // (rows * columns), pixel % (rows * columns)
    row = place // columns * stride - pad_rows
    column = place % columns * stride - pad_columns
    images += (client * channels + channel) * count * height * width
    seen += (client * lines + channel * (high * wide)) * pixels
    corner = image * (height * width) + row * width + column
    for i in tl.static_range(high):
        for j in tl.static_range(wide):
            y, x = row + i, column + j
            there = inside & (y >= 0) & (x >= 0) & (y < height) & (x < width)
            value = tl.load(images + corner + i * width + j, there, 0.0)
            tl.store(seen + (i * wide + j) * pixels + pixel, value, inside)
    if ones:
        tl.store(seen + (high * wide) * pixels + pixel, 1.0, inside & (channel == channels - 1))


@_kernel
def _fold(
    slopes, folded, channels, count, height, width, rows, columns, pad_rows, pad_columns,
    stride: constexpr, high: constexpr, wide: constexpr, elements: constexpr,
):  # fmt: skip
    """A block of the images' pixels of one channel of one client."""
    channel, client = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * elements + tl.arange(0, elements)
    inside = pixel < count * height * width
    image, place = pixel // (height * width), pixel % (height * width)
    y, x = place // width + pad_rows, place % width + pad_columns
    pixels = count * rows * columns
    slopes += (client * channels + channel) * (high * wide) * pixels
    folded += (client * channels + channel) * count * height * width
    total = tl.zeros((elements,), tl.float32)
    for i in tl.static_range(high):
        for j in tl.static_range(wide):
            row, column = y - i, x - j
            there = inside & (row >= 0) & (column >= 0)
            if stride > 1:
                there = there & (row % stride == 0) & (column % stride == 0)
                row, column = row // stride, column // stride
            there = there & (row < rows) & (column < columns)
            at = image * (rows * columns) + row * columns + column
            total += tl.load(slopes + (i * wide + j) * pixels + at, there, 0.0)
    tl.store(folded + pixel, total, inside)


@_kernel
def _pool(
    images, pooled, places, count, height, width, rows, columns,
    side: constexpr, elements: constexpr,
):  # fmt: skip
    """A block of one channel's pooled pixels. The first of equal ones counts, as in torch."""
    channel = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * elements + tl.arange(0, elements)
    inside = at < count * rows * columns
    image, place = at // (rows * columns), at % (rows * columns)
    images += channel * count * height * width
    corner = image * (height * width) + place // columns * (side * width) + place % columns * side
    best = tl.load(images + corner, inside, 0.0)
    where = tl.zeros((elements,), tl.int32)
    for i in tl.static_range(side):
        for j in tl.static_range(side):
            value = tl.load(images + corner + i * width + j, inside, 0.0)
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            where = tl.where(better, i * side + j, where)
    tl.store(pooled + channel * count * rows * columns + at, best, inside)
    tl.store(places + channel * count * rows * columns + at, where.to(tl.uint8), inside)


@_kernel
def _unpool(
    slopes, places, spread, count, height, width, rows, columns,
    side: constexpr, elements: constexpr,
):  # fmt: skip
    """A block of one channel's pixels: the slope of the square they belong to, or nothing."""
    channel = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * elements + tl.arange(0, elements)
    inside = at < count * height * width
    image, place = at // (height * width), at % (height * width)
    y, x = place // width, place % width
    row, column = y // side, x // side
    there = inside & (row < rows) & (column < columns)
    pooled = channel * count * rows * columns + image * (rows * columns) + row * columns + column
    chosen = tl.load(places + pooled, there, 255).to(tl.int32)
    there = there & (chosen == (y - row * side) * side + x - column * side)
    slope = tl.load(slopes + pooled, there, 0.0)
    tl.store(spread + channel * count * height * width + at, slope, inside)


@_kernel
def _moments(images, sums, size, programs, part: constexpr, elements: constexpr):
    """Sums of a part of one channel and of its squares, around one of the channel's values.

    Around 0 the variance would cancel where the mean is far off.
    """
    channel, place = tl.program_id(0), tl.program_id(1)
    images += channel.to(tl.int64) * size
    pivot = tl.load(images)
    total = tl.zeros((elements,), tl.float32)
    squares = tl.zeros((elements,), tl.float32)
    for start in range(0, part, elements):
        at = place * part + start + tl.arange(0, elements)
        value = tl.load(images + at, at < size, 0.0) - pivot
        value = tl.where(at < size, value, 0.0)
        total += value
        squares += value * value
    program = channel * tl.num_programs(1) + place
    tl.store(sums + program, tl.sum(total, 0))
    tl.store(sums + programs + program, tl.sum(squares, 0))


@_kernel
def _normalise(
    images, weight, bias, sums, normal, means, variances, size, epsilon, parts, programs,
    some: constexpr, part: constexpr, elements: constexpr,
):  # fmt: skip
    """A part of one channel of one client's images, with the sums of all its parts."""
    channel, place = tl.program_id(0), tl.program_id(1)
    images += channel.to(tl.int64) * size
    normal += channel.to(tl.int64) * size
    every = tl.arange(0, some)
    sums += channel * parts + every
    shift = tl.sum(tl.load(sums, every < parts, 0.0), 0) / size
    squares = tl.sum(tl.load(sums + programs, every < parts, 0.0), 0) / size
    variance = tl.maximum(squares - shift * shift, 0.0)
    mean = tl.load(images) + shift
    if place == 0:
        tl.store(means + channel, mean)
        tl.store(variances + channel, variance)
    factor = tl.load(weight + channel) / tl.sqrt(variance + epsilon)
    addend = tl.load(bias + channel)
    for start in range(0, part, elements):
        at = place * part + start + tl.arange(0, elements)
        value = tl.load(images + at, at < size, 0.0)
        tl.store(normal + at, (value - mean) * factor + addend, at < size)


@_kernel
def _slope_sums(
    slopes, images, means, sums, size, own, programs, part: constexpr, elements: constexpr
):
    """Sums of a part of one channel's slopes, and of them times the images less their mean.

    There are `own` channels of images in all: each client's, or those of a model that all share.
    """
    channel, place = tl.program_id(0), tl.program_id(1)
    slopes += channel.to(tl.int64) * size
    images += (channel % own).to(tl.int64) * size
    mean = tl.load(means + channel % own)
    total = tl.zeros((elements,), tl.float32)
    along = tl.zeros((elements,), tl.float32)
    for start in range(0, part, elements):
        at = place * part + start + tl.arange(0, elements)
        slope = tl.load(slopes + at, at < size, 0.0)
        total += slope
        along += slope * (tl.load(images + at, at < size, 0.0) - mean)
    program = channel * tl.num_programs(1) + place
    tl.store(sums + program, tl.sum(total, 0))
    tl.store(sums + programs + program, tl.sum(along, 0))


@_kernel
def _normalise_through(
    slopes, images, weight, means, variances, sums, found, by_weight, by_bias, size, own, epsilon,
    parts, programs, back: constexpr, some: constexpr, part: constexpr, elements: constexpr,
):  # fmt: skip
    """A part of one channel of one client's slopes, with the sums of all its parts.

    Backwards the slopes along weight and bias are written; forwards their steps are read.
    """
    channel, place = tl.program_id(0), tl.program_id(1)
    slopes += channel.to(tl.int64) * size
    images += (channel % own).to(tl.int64) * size
    found += channel.to(tl.int64) * size
    mean = tl.load(means + channel % own)
    scale = 1 / tl.sqrt(tl.load(variances + channel % own) + epsilon)
    every = tl.arange(0, some)
    sums += channel * parts + every
    total = tl.sum(tl.load(sums, every < parts, 0.0), 0)
    along = tl.sum(tl.load(sums + programs, every < parts, 0.0), 0) * scale
    factor = tl.load(weight + channel % own) * scale
    level, tilt = -factor * total / size, -factor * along / size * scale
    if back == 1:
        if place == 0:
            tl.store(by_bias + channel, total)
            tl.store(by_weight + channel, along)
    else:
        level += tl.load(by_bias + channel)
        tilt += tl.load(by_weight + channel) * scale
    for start in range(0, part, elements):
        at = place * part + start + tl.arange(0, elements)
        slope = tl.load(slopes + at, at < size, 0.0)
        value = tl.load(images + at, at < size, 0.0)
        tl.store(found + at, factor * slope + (value - mean) * tilt + level, at < size)
