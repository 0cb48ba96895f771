"""Layers whose images are bfloat16, of one model or of many models at once.

Half the bytes, and matrix units that are twice as fast. Parameters, their gradients and what batch
norm sums up stay single precision. Many models' images are held as (B, H, W, n, C): channels last
and the models' channels side by side, which is what a grouped convolution takes without laying
them out anew, and batch norm of n models is that of one with n times the channels.
"""

from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skymask import half_kernels as kernels
from skymask.many_models import OfManyModels, for_each, is_usual, keep_statistics
from skymask.models import NormReLU, Shortcut


def in_half_precision(module: nn.Module) -> nn.Module:
    """Let the convolutions of `module` put out bfloat16; it is changed in place.

    Pooling, ReLU and the like keep what they are given, linear layers turn it back into what their
    weights are. Convolutions with groups, dilation or padding that is not zeros stay as they are.
    """
    for part in module.modules():
        if takes_half(part):
            part.forward = partial(_convolve, part)  # type: ignore[method-assign]
        elif _normalises(part) and part.affine and part.momentum is not None:
            part.forward = partial(_normalise, part)  # type: ignore[method-assign]
        elif type(part) is Shortcut:
            part.forward = partial(_shorten, part)  # type: ignore[method-assign]
        elif type(part) is nn.Linear:
            part.forward = partial(_linear, part)  # type: ignore[method-assign]
    return module


def takes_half(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer puts out bfloat16 in half precision."""
    return type(part) is nn.Conv2d and is_usual(part)


def _normalises(part: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(part) in (nn.BatchNorm2d, NormReLU)


def _convolve(part: nn.Conv2d, images: Tensor) -> Tensor:
    if images.dim() != 4:
        return nn.Conv2d.forward(part, images)
    (convolved,) = _Convolution.of(images, part.weight, part.bias, part.padding)
    if part.stride[0] > 1:  # there are fast kernels for a stride of one alone
        (convolved,) = _Subsampling.of(convolved, part.stride[0], 0)
    return convolved


def _normalise(part: nn.BatchNorm2d, images: Tensor, addend: Tensor | None = None) -> Tensor:
    if images.dim() != 4 or not part.training:
        return type(part).forward(part, images, *(() if addend is None else (addend,)))
    given = (part.weight, part.bias, addend, part.eps, type(part) is NormReLU)
    normal, mean, scale = _Normalisation.of(images, *given)
    keep_statistics(part, mean, scale**-2 - part.eps, images.numel() // images.shape[1])
    return normal


def _shorten(part: Shortcut, images: Tensor) -> Tensor:
    if part.step == 1 and part.more == 0:
        return images
    (shorter,) = _Subsampling.of(images, part.step, part.more)
    return shorter


def _linear(part: nn.Linear, values: Tensor) -> Tensor:
    return F.linear(values.to(part.weight.dtype), part.weight, part.bias)


class _Convolution(OfManyModels):
    """Images (B, C, H, W) and weight (O, C, h, w) to (B, O, H', W'), with a stride of one."""

    @staticmethod
    def compute(
        images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        n = max(len(images), len(weight))
        addend = None if bias is None else for_each(n, bias).bfloat16()
        return (_grouped(for_each(n, images), for_each(n, weight), addend, padding),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        images, weight, _, ctx.padding = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        images, weight = ctx.saved_tensors
        by_images = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            (by_images,) = _ConvolutionImages.of(slopes[0], weight, ctx.padding)
        if ctx.needs_input_grad[1]:
            (by_weight,) = _ConvolutionWeight.of(slopes[0], images, weight, ctx.padding)
        if ctx.needs_input_grad[2]:
            by_bias = slopes[0].sum((0, 2, 3), dtype=torch.float32)
        return by_images, by_weight, by_bias, None


class _ConvolutionImages(OfManyModels):
    """The gradient of a convolution with respect to its images."""

    @staticmethod
    def compute(slopes: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[Tensor, ...]:
        # A convolution with the mirrored weight is several times as fast as what torch takes.
        n, (high, wide) = max(len(slopes), len(weight)), weight.shape[3:]
        mirrored = for_each(n, weight.transpose(1, 2).flip(-1, -2))
        around = (high - 1 - padding[0], wide - 1 - padding[1])
        return (_grouped(for_each(n, slopes), mirrored, None, around),)


class _ConvolutionWeight(OfManyModels):
    """The gradient of a convolution with respect to its weight, in single precision."""

    @staticmethod
    def compute(
        slopes: Tensor, images: Tensor, weight: Tensor, padding: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        n = max(len(slopes), len(images))
        shape = (n * weight.shape[1], *weight.shape[2:])
        _, found, _ = torch.ops.aten.convolution_backward(
            _side_by_side(for_each(n, slopes)),
            _side_by_side(for_each(n, images)),
            _last(weight.new_empty(shape)),
            None, (1, 1), padding, (1, 1), False, (0, 0), n, (False, True, False),
        )  # fmt: skip
        return (found.float().unflatten(0, (n, -1)),)


class _Subsampling(OfManyModels):
    """Every `step`-th row and column of images (B, C, H, W), and `more` channels of zeros."""

    @staticmethod
    def compute(images: Tensor, step: int, more: int) -> tuple[Tensor, ...]:
        return (_last_of_each(_wider(images[..., ::step, ::step], more)),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.shape, ctx.step = tuple(inputs[0].shape[1:]), inputs[1]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        return *_SubsamplingImages.of(slopes[0], ctx.shape, ctx.step), None, None


class _SubsamplingImages(OfManyModels):
    """The gradient of subsampling with respect to its images, of `shape` (C, H, W)."""

    @staticmethod
    def compute(slopes: Tensor, shape: tuple[int, int, int], step: int) -> tuple[Tensor, ...]:
        n, count = slopes.shape[:2]
        spread = torch.empty(
            (count, n * shape[0], *shape[1:]),
            dtype=torch.bfloat16, device=slopes.device, memory_format=torch.channels_last,
        ).zero_()  # fmt: skip
        spread[..., ::step, ::step] = slopes[:, :, : shape[0]].transpose(0, 1).flatten(1, 2)
        return (_apart(spread, n),)


class _Normalisation(OfManyModels):
    """Batch norm of images, plus an addend, then ReLU, if they are wanted.

    And the mean of each channel and the inverse of its deviation.
    """

    @staticmethod
    def compute(
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        addend: Tensor | None,
        epsilon: float,
        relu: bool,
    ) -> tuple[Tensor, ...]:
        n = max(len(each) for each in (images, weight, addend) if each is not None)
        factor, offset = (for_each(n, each).flatten() for each in (weight, bias))
        pixels, added = _pixels(n, images), None if addend is None else _pixels(n, addend)
        normalise = kernels.normalise if kernels.takes(pixels) else normalise_plainly
        normal, mean, scale = normalise(pixels, factor, offset, added, epsilon, relu)
        shape = (n, *images.shape[1:])
        return _as_images(normal, shape), mean.unflatten(0, (n, -1)), scale.unflatten(0, (n, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        images, weight, bias, addend, _, ctx.relu = inputs
        ctx.adds = addend is not None
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(images, weight, bias, *output[1:], output[0])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        found = _NormalisationInputs.of(slopes[0], *ctx.saved_tensors, ctx.adds, ctx.relu)
        return *found[:3], found[3] if ctx.adds else None, None, None


class _NormalisationInputs(OfManyModels):
    """The gradients of batch norm with respect to images, weight, bias and addend."""

    @staticmethod
    def compute(
        slopes: Tensor,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        normal: Tensor,
        adds: bool,
        relu: bool,
    ) -> tuple[Tensor, ...]:
        n = len(mean)
        arriving, seen, after = (_pixels(n, each) for each in (slopes, images, normal))
        factor, offset = (for_each(n, each).flatten() for each in (weight, bias))
        back = kernels.normalise_back if kernels.takes(seen) else normalise_back_plainly
        found, by_weight, by_bias, by_addend = back(
            arriving, seen, after, factor, offset, mean.flatten(), scale.flatten(), adds, relu
        )
        shape = (n, *images.shape[1:])
        own = (each.unflatten(0, (n, -1)) for each in (by_weight, by_bias))
        return _as_images(found, shape), *own, _as_images(by_addend, shape)


def normalise_plainly(
    images: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, epsilon: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `half_kernels.normalise` computes, in torch operations."""
    given = (weight, bias, None, None, True, 0.0, epsilon)
    normal, mean, scale = torch.native_batch_norm(images, *given)
    normal = normal if addend is None else normal + addend
    return normal.relu() if relu else normal, mean, scale


def normalise_back_plainly(
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
    """What `half_kernels.normalise_back` computes, in torch operations."""
    live = torch.where(normal > 0, slopes, 0) if relu else slopes
    found, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
        live, images, weight, None, None, mean, scale, True, 0.0, (True, True, True)
    )
    return found, by_weight, by_bias, live


def _pixels(n: int, images: Tensor) -> Tensor:
    """(n, B, C, H, W), or (1, B, ...) that n share, as (B * H * W, n * C)."""
    return _side_by_side(for_each(n, images)).permute(0, 2, 3, 1).flatten(0, 2)


def _as_images(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B * H * W, n * C) as images of `shape` (n, B, C, H, W)."""
    n, count, channels, height, width = shape
    return pixels.view(count, height, width, n, channels).permute(3, 0, 4, 1, 2)


def _grouped(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
) -> Tensor:
    """Convolve `images` (n, B, C, H, W) with `weight` (n, O, C, h, w), a group for each model.

    There are fast kernels only for as many channels in as out, and for eights of them: zeros fill
    them up.
    """
    n, out, channels = weight.shape[:3]
    filled = -(-max(out, channels) // 8) * 8
    images = _wider(images, filled - channels)
    weight = F.pad(weight, (0, 0, 0, 0, 0, filled - channels, 0, filled - out))
    convolved = F.conv2d(_side_by_side(images), _last(weight.flatten(0, 1)), None, 1, padding, 1, n)
    found = _apart(convolved, n)[:, :, :out]
    return found if bias is None else found + bias.view(n, 1, out, 1, 1)


def _wider(images: Tensor, more: int) -> Tensor:
    """`images` (n, B, C, H, W) with `more` channels of zeros, channels last before and after."""
    if more == 0:
        return images
    return F.pad(images.permute(1, 3, 4, 0, 2), (0, more)).permute(3, 0, 4, 1, 2)


def _last_of_each(images: Tensor) -> Tensor:
    """(n, B, C, H, W) laid out as (B, H, W, n, C)."""
    return _apart(_side_by_side(images), len(images))


def _side_by_side(images: Tensor) -> Tensor:
    """(n, B, C, H, W) as (B, n * C, H, W)."""
    return _last(images.transpose(0, 1).flatten(1, 2))


def _last(images: Tensor) -> Tensor:
    """In half precision, with channels last; nothing is copied that is already so."""
    return images.to(torch.bfloat16, memory_format=torch.channels_last)


def _apart(images: Tensor, n: int) -> Tensor:
    """(B, n * C, H, W) as (n, B, C, H, W)."""
    apart: Tensor = images.unflatten(1, (n, -1))
    return apart.transpose(0, 1)
