"""Batch norm of many models' bfloat16 images and what comes right after it, in few kernels.

Written in Triton, which comes with torch on CUDA. Images are matrices (P, K): a row for each pixel
of each image, and side by side in it the channels of all models. Sums are single precision. `half`
has the same in torch operations, which tests hold these equal to.
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

_WIDE = 64
"""At most so many channels belong to a program: a line of memory."""
_PART = 1 << 14
"""Entries that a program goes through."""
_ENTRIES = 1 << 11
"""Entries that it has in flight."""
_LARGEST = 1 << 31
"""Places in a matrix are counted in 32 bits."""


def takes(images: Tensor) -> bool:
    """Whether there are kernels for `images`: on CUDA."""
    return triton is not None and images.device.type == "cuda" and images.numel() < _LARGEST


def normalise(
    images: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, epsilon: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of `images` (P, K); also each channel's mean and 1 / deviation, (K,).

    `weight` and `bias` are (K,). An `addend` (P, K) is added, and then, with `relu`, what is below
    zero becomes zero.
    """
    normal, (mean, scale) = torch.empty_like(images), weight.new_empty(2, len(weight))
    grid, sums, given = _programs(images)
    with torch.cuda.device(images.device):
        _moments[grid](images, sums, *given)
        _finish_moments[grid[:1]](images, sums, mean, scale, epsilon, len(sums), *given)
        _normalise[grid](
            images, weight, bias, addend, mean, scale, normal, addend is not None, relu, *given
        )
    return normal, mean, scale


def normalise_back(
    slopes: Tensor,
    images: Tensor,
    normal: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    scale: Tensor,
    adds: bool,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `normalise` with respect to images, weight, bias and addend.

    `normal` is what it gave, and `adds` says whether there was an addend; without one the last
    gradient is of no use.
    """
    found, (by_weight, by_bias) = torch.empty_like(images), weight.new_empty(2, len(weight))
    alone, apart = relu and not adds, relu and adds
    live = torch.empty_like(slopes) if apart else slopes
    grid, sums, given = _programs(images)
    with torch.cuda.device(images.device):
        _slope_sums[grid](
            slopes, images, weight, bias, mean, scale, normal, live, sums, alone, apart, *given
        )
        _finish_sums[grid[:1]](sums, scale, by_weight, by_bias, len(sums), *given)
        _normalise_back[grid](
            live, images, weight, bias, mean, scale, by_weight, by_bias, found,
            alone, *given,
        )  # fmt: skip
    return found, by_weight, by_bias, live


def _programs(images: Tensor) -> tuple[tuple[int, int], Tensor, tuple[int, ...]]:
    """The programs, by channels and pixels; room for two sums of each; what all are given."""
    pixels, channels = images.shape
    wide = min(_WIDE, triton.next_power_of_2(channels))
    part, block = _PART // wide, _ENTRIES // wide
    grid = (triton.cdiv(channels, wide), triton.cdiv(pixels, part))
    sums = torch.empty(grid[1], 2, channels, device=images.device)
    return grid, sums, (pixels, channels, part, block, wide)


def _kernel(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_kernel
def _moments(
    images, sums, pixels, channels, part: constexpr, block: constexpr, wide: constexpr
):  # fmt: skip
    """Sums over a part of some channels' pixels, and of squares, around the first pixel.

    Around 0 the variance would cancel where the mean is far off.
    """
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    pivot = tl.load(images + channel, real, 0.0).to(tl.float32)
    total = tl.zeros((block, wide), tl.float32)
    squares = tl.zeros((block, wide), tl.float32)
    for start in range(0, part, block):
        pixel = tl.program_id(1) * part + start + tl.arange(0, block)
        known = (pixel < pixels)[:, None] & real[None, :]
        value = tl.load(images + pixel[:, None] * channels + channel[None, :], known, 0.0)
        value = tl.where(known, value.to(tl.float32) - pivot[None, :], 0.0)
        total += value
        squares += value * value
    sums += tl.program_id(1) * 2 * channels + channel
    tl.store(sums, tl.sum(total, 0), real)
    tl.store(sums + channels, tl.sum(squares, 0), real)


@_kernel
def _finish_moments(
    images, sums, means, scales, epsilon, parts,
    pixels, channels, part: constexpr, block: constexpr, wide: constexpr,
):  # fmt: skip
    """The mean and 1 / deviation of some channels, from the sums of all parts."""
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    total, squares = _totals(sums, parts, channel, channels, block, wide)
    shift = total / pixels
    variance = tl.maximum(squares / pixels - shift * shift, 0.0)
    tl.store(means + channel, tl.load(images + channel, real, 0.0).to(tl.float32) + shift, real)
    tl.store(scales + channel, 1 / tl.sqrt(variance + epsilon), real)


@_kernel
def _normalise(
    images, weight, bias, addend, means, scales, normal, adds: constexpr, relu: constexpr,
    pixels, channels, part: constexpr, block: constexpr, wide: constexpr,
):  # fmt: skip
    """A part of some channels' pixels."""
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    mean = tl.load(means + channel, real, 0.0)[None, :]
    factor = (tl.load(weight + channel, real, 0.0) * tl.load(scales + channel, real, 0.0))[None, :]
    offset = tl.load(bias + channel, real, 0.0)[None, :]
    for start in range(0, part, block):
        pixel = tl.program_id(1) * part + start + tl.arange(0, block)
        known = (pixel < pixels)[:, None] & real[None, :]
        at = pixel[:, None] * channels + channel[None, :]
        value = (tl.load(images + at, known, 0.0).to(tl.float32) - mean) * factor + offset
        if adds:
            value += tl.load(addend + at, known, 0.0).to(tl.float32)
        if relu:
            value = tl.where(value <= 0, 0.0, value)  # what is no number stays so
        tl.store(normal + at, value.to(tl.bfloat16), known)


@_kernel
def _slope_sums(
    slopes, images, weight, bias, means, scales, normal, live, sums,
    alone: constexpr, apart: constexpr,
    pixels, channels, part: constexpr, block: constexpr, wide: constexpr,
):  # fmt: skip
    """Sums of a part of some channels' slopes, and of them times the images less their mean.

    Only slopes that ReLU lets through count. If it came after an addend (`apart`) and not `alone`
    they are written down: which these are is not to be seen from the images.
    """
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    mean = tl.load(means + channel, real, 0.0)[None, :]
    factor = (tl.load(weight + channel, real, 0.0) * tl.load(scales + channel, real, 0.0))[None, :]
    offset = tl.load(bias + channel, real, 0.0)[None, :]
    total = tl.zeros((block, wide), tl.float32)
    along = tl.zeros((block, wide), tl.float32)
    for start in range(0, part, block):
        pixel = tl.program_id(1) * part + start + tl.arange(0, block)
        known = (pixel < pixels)[:, None] & real[None, :]
        at = pixel[:, None] * channels + channel[None, :]
        slope = tl.load(slopes + at, known, 0.0).to(tl.float32)
        value = tl.where(known, tl.load(images + at, known, 0.0).to(tl.float32) - mean, 0.0)
        if apart:
            slope = tl.where(tl.load(normal + at, known, 0.0) > 0, slope, 0.0)
            tl.store(live + at, slope.to(tl.bfloat16), known)
        if alone:
            slope = tl.where(value * factor + offset > 0, slope, 0.0)
        total += slope
        along += slope * value
    sums += tl.program_id(1) * 2 * channels + channel
    tl.store(sums, tl.sum(total, 0), real)
    tl.store(sums + channels, tl.sum(along, 0), real)


@_kernel
def _finish_sums(
    sums, scales, by_weight, by_bias, parts,
    pixels, channels, part: constexpr, block: constexpr, wide: constexpr,
):  # fmt: skip
    """The gradients of some channels' weight and bias, from the sums of all parts."""
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    total, along = _totals(sums, parts, channel, channels, block, wide)
    tl.store(by_bias + channel, total, real)
    tl.store(by_weight + channel, along * tl.load(scales + channel, real, 0.0), real)


@_kernel
def _normalise_back(
    slopes, images, weight, bias, means, scales, by_weight, by_bias, found, alone: constexpr,
    pixels, channels, part: constexpr, block: constexpr, wide: constexpr,
):  # fmt: skip
    """A part of some channels' slopes back through batch norm, and ReLU without an addend."""
    channel = tl.program_id(0) * wide + tl.arange(0, wide)
    real = channel < channels
    mean = tl.load(means + channel, real, 0.0)[None, :]
    scale = tl.load(scales + channel, real, 0.0)[None, :]
    factor = tl.load(weight + channel, real, 0.0)[None, :] * scale
    offset = tl.load(bias + channel, real, 0.0)[None, :]
    level = tl.load(by_bias + channel, real, 0.0)[None, :] / pixels
    lean = tl.load(by_weight + channel, real, 0.0)[None, :] * scale / pixels
    for start in range(0, part, block):
        pixel = tl.program_id(1) * part + start + tl.arange(0, block)
        known = (pixel < pixels)[:, None] & real[None, :]
        at = pixel[:, None] * channels + channel[None, :]
        slope = tl.load(slopes + at, known, 0.0).to(tl.float32)
        value = tl.load(images + at, known, 0.0).to(tl.float32) - mean
        if alone:
            slope = tl.where(value * factor + offset > 0, slope, 0.0)
        slope = (slope - level - value * lean) * factor
        tl.store(found + at, slope.to(tl.bfloat16), known)


@_kernel
def _totals(sums, parts, channel, channels, block: constexpr, wide: constexpr):
    """Both sums of some channels over all parts."""
    one = tl.zeros((block, wide), tl.float32)
    other = tl.zeros((block, wide), tl.float32)
    for start in range(0, parts, block):
        row = start + tl.arange(0, block)
        known = (row < parts)[:, None] & (channel < channels)[None, :]
        at = row[:, None] * 2 * channels + channel[None, :]
        one += tl.load(sums + at, known, 0.0)
        other += tl.load(sums + channels + at, known, 0.0)
    return tl.sum(one, 0), tl.sum(other, 0)
