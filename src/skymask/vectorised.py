"""Layers that many models compute at once on a GPU, each in a kernel of its own.

Under `vmap` torch makes one grouped convolution of many models' convolutions, and lays out its
images anew before and after; batch norm becomes a dozen operations. `with_kernels` gives a module's
layers the kernels of `layer_kernels` instead: the same numbers within TF32's rounding, and the less
time the smaller the images are. The rest of a module, and layers with other options, stay torch's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skymask import layer_kernels as kernels
from skymask.many_models import OfManyModels, for_each, is_usual, keep_statistics
from skymask.models import NormReLU

_TAPS = 25
"""The largest kernel of a convolution that is unrolled tap by tap."""


def with_kernels(module: nn.Module) -> nn.Module:
    """Let the layers of `module` that have a kernel use it; it is changed in place."""
    for part in module.modules():
        faster = _faster(part)
        if faster is not None:
            part.forward = partial(_where_possible, faster, part)
    return module


def _faster(part: nn.Module) -> Callable[..., Tensor] | None:
    """The computation of a layer by kernels, if there is one for its options."""
    if type(part) is nn.Conv2d:
        return _convolve if is_usual(part) and part.weight[0, 0].numel() <= _TAPS else None
    if type(part) is nn.MaxPool2d:
        given = (part.stride, part.padding, part.dilation, part.ceil_mode, part.return_indices)
        usual = given == (part.kernel_size, 0, 1, False, False)
        return _pool if usual and isinstance(part.kernel_size, int) else None
    if isinstance(part, nn.BatchNorm2d):
        usual = part.affine and part.training and part.momentum is not None
        return _NORMS.get(type(part)) if usual else None
    return None


@contextmanager
def largest_unfolding(module: nn.Module) -> Iterator[list[int]]:
    """The entries of the largest matrix of what a convolution sees, of all images that pass.

    It is written down for the time of a product, and is `kernel` times as large as the images.
    """
    largest = [0]

    def note(part: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(part, nn.Conv2d) and _faster(part) is not None:
            entries = part.weight[0].numel() * (output.numel() // part.out_channels)
            largest[0] = max(largest[0], entries)

    hooks = [part.register_forward_hook(note) for part in module.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _where_possible(
    faster: Callable[..., Tensor], part: nn.Module, images: Tensor, *more: Tensor
) -> Tensor:
    """By kernels, unless the input is not what they are for."""
    if images.dim() == 4 and kernels.takes(images, *part.parameters(recurse=False)):
        return faster(part, images, *more)
    usual: Tensor = type(part).forward(part, images, *more)
    return usual


def _convolve(part: nn.Conv2d, images: Tensor) -> Tensor:
    (convolved,) = _Convolution.of(images, part.weight, part.bias, part.stride[0], part.padding)
    return convolved


def _pool(part: nn.MaxPool2d, images: Tensor) -> Tensor:
    return _Pooling.of(images, part.kernel_size)[0]


def _normalise(part: nn.BatchNorm2d, images: Tensor) -> Tensor:
    normal, mean, variance = _Normalisation.of(images, part.weight, part.bias, part.eps)
    keep_statistics(part, mean, variance, images.numel() // images.shape[1])
    return normal


def _normalise_relu(part: NormReLU, images: Tensor, addend: Tensor | None = None) -> Tensor:
    normal = _normalise(part, images)
    return F.relu(normal if addend is None else normal + addend)


_NORMS: dict[type, Callable[..., Tensor]] = {
    nn.BatchNorm2d: _normalise,
    NormReLU: _normalise_relu,
}


class _Convolution(OfManyModels):
    """Images (B, C, H, W) and weight (O, C, h, w) to (B, O, H', W')."""

    @staticmethod
    def compute(
        images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        kernel = (weight.shape[3], weight.shape[4])
        size = _convolved_size(images, kernel, stride, padding)
        seen = kernels.unfold(_dense(images), kernel, size, stride, padding, bias is not None)
        factors = weight.flatten(2)
        if bias is not None:
            n = max(len(weight), len(bias))
            factors = torch.cat([for_each(n, factors), for_each(n, bias)[..., None]], 2)
        return (_images(_product(factors, seen), len(images[0]), size),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        images, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.biased = bias is not None
        _keep(ctx, images, weight)

    @staticmethod
    def jvp(ctx: Any, *steps: Tensor | None) -> tuple[Tensor]:
        images, weight = ctx.saved_tensors
        by_images, by_weight, by_bias = steps[:3]
        found: list[Tensor] = []
        if by_images is not None:
            found += _ConvolutionAlong.of(by_images, weight, ctx.stride, ctx.padding)
        if by_weight is not None or by_bias is not None:
            by_weight = torch.zeros_like(weight) if by_weight is None else by_weight
            found += _Convolution.of(images, by_weight, by_bias, ctx.stride, ctx.padding)
        return (found[0] if len(found) == 1 else found[0] + found[1],)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        images, weight = ctx.saved_tensors
        shape = (tuple(images.shape), tuple(weight.shape[2:]), ctx.stride, ctx.padding)
        by_images = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            (by_images,) = _ConvolutionImages.of(slopes[0], weight, *shape)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            by_weight, by_bias = _ConvolutionWeight.of(slopes[0], images, *shape[1:])
        return by_images, by_weight, by_bias if ctx.biased else None, None, None


class _ConvolutionAlong(OfManyModels):
    """What steps of the images change in what a convolution makes of them."""

    @staticmethod
    def compute(
        steps: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        if len(weight) > 1:
            return _Convolution.compute(steps, weight, None, stride, padding)
        # One weight for all: to unfold the steps would take many times their memory.
        shared, full = weight[0].contiguous()[:, :, None], ((1, stride, stride), (0, *padding))
        return (F.conv3d(_dense(steps), shared, None, *full).transpose(1, 2),)


class _ConvolutionImages(OfManyModels):
    """The gradient of a convolution with respect to its images, of `shape` (B, C, H, W)."""

    @staticmethod
    def compute(
        slopes: Tensor,
        weight: Tensor,
        shape: tuple[int, ...],
        kernel: tuple[int, int],
        stride: int,
        padding: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        by_seen = _product(weight.flatten(2).transpose(1, 2), _dense(slopes).flatten(2))
        size, (count, channels, height, width) = slopes.shape[3:], shape
        full = (len(by_seen), channels, count, height, width)
        folded = kernels.fold(by_seen, full, kernel, (size[0], size[1]), stride, padding)
        return (folded.transpose(1, 2),)


class _ConvolutionWeight(OfManyModels):
    """The gradients of a convolution with respect to its weight and its bias."""

    @staticmethod
    def compute(
        slopes: Tensor,
        images: Tensor,
        kernel: tuple[int, int],
        stride: int,
        padding: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        size = (slopes.shape[3], slopes.shape[4])
        seen = kernels.unfold(_dense(images), kernel, size, stride, padding, ones=True)
        found = _product(_dense(slopes).flatten(2), seen.transpose(1, 2))
        weight = found[..., :-1].unflatten(2, (images.shape[2], *kernel))
        return weight, found[..., -1]


class _Pooling(OfManyModels):
    """Images to the largest of each square of pixels, and which it was."""

    @staticmethod
    def compute(images: Tensor, side: int) -> tuple[Tensor, ...]:
        pooled, place = kernels.pool(_dense(images), side)
        return pooled.transpose(1, 2), place.transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.size, ctx.side = tuple(inputs[0].shape[2:]), inputs[1]
        ctx.mark_non_differentiable(output[1])
        _keep(ctx, output[1])

    @staticmethod
    def jvp(ctx: Any, *steps: Tensor) -> tuple[Tensor, None]:
        return _PoolingAlong.of(steps[0], *ctx.saved_tensors, ctx.side)[0], None

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        (place,) = ctx.saved_tensors
        return *_PoolingImages.of(slopes[0], place, ctx.side, ctx.size), None


class _PoolingAlong(OfManyModels):
    """What steps of the images change in the pooled ones."""

    @staticmethod
    def compute(steps: Tensor, place: Tensor, side: int) -> tuple[Tensor, ...]:
        rows, columns = place.shape[-2:]
        squares = steps[..., : rows * side, : columns * side]
        squares = squares.unflatten(-1, (columns, side)).unflatten(-3, (rows, side))
        squares = squares.transpose(-3, -2).flatten(-2)
        chosen = for_each(len(steps), place)[..., None].long()
        return (squares.gather(-1, chosen)[..., 0],)


class _PoolingImages(OfManyModels):
    """The gradient of pooling with respect to its images."""

    @staticmethod
    def compute(
        slopes: Tensor, place: Tensor, side: int, size: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        return (kernels.unpool(_dense(slopes), _dense(place), side, size).transpose(1, 2),)


class _NormalisationInputs(OfManyModels):
    """The gradients of batch norm with respect to images, weight and bias."""

    @staticmethod
    def compute(
        slopes: Tensor,
        images: Tensor,
        weight: Tensor,
        mean: Tensor,
        variance: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, ...]:
        n = len(mean)
        found, by_weight, by_bias = kernels.normalise_back(
            _dense(for_each(n, slopes)),
            _dense(for_each(n, images)),
            for_each(n, weight).contiguous(),
            mean,
            variance,
            epsilon,
        )
        return found.transpose(1, 2), by_weight, by_bias


class _NormalisationAlong(OfManyModels):
    """What steps of images, weight and bias change in the normal images."""

    @staticmethod
    def compute(
        steps: Tensor, by_weight: Tensor, by_bias: Tensor, *of: Any
    ) -> tuple[Tensor, ...]:  # images, weight, mean, variance and epsilon
        *tensors, epsilon = of
        n = max(map(len, (steps, by_weight, by_bias, *tensors)))
        if any(len(each) > 1 for each in tensors):
            tensors = [for_each(n, each) for each in tensors]
        images, weight, mean, variance = tensors
        found = kernels.normalise_along(
            _dense(for_each(n, steps)),
            for_each(n, by_weight).contiguous(),
            for_each(n, by_bias).contiguous(),
            _dense(images),
            weight.contiguous(),
            mean.contiguous(),
            variance.contiguous(),
            epsilon,
        )
        return (found.transpose(1, 2),)


class _Normalisation(OfManyModels):
    """Batch norm of images, and the mean and variance of each channel."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        images, weight, _, ctx.epsilon = inputs
        ctx.mark_non_differentiable(*output[1:])
        _keep(ctx, images, weight, *output[1:])

    @staticmethod
    def jvp(ctx: Any, *steps: Tensor | None) -> tuple[Tensor, None, None]:
        images, weight = ctx.saved_tensors[:2]
        given = (
            torch.zeros_like(like) if step is None else step
            for step, like in zip(steps[:3], (images, weight, weight), strict=True)
        )
        return _NormalisationAlong.of(*given, *ctx.saved_tensors, ctx.epsilon)[0], None, None

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        return *_NormalisationInputs.of(slopes[0], *ctx.saved_tensors, ctx.epsilon), None

    @staticmethod
    def compute(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, ...]:
        n = max(len(images), len(weight))
        normal, mean, variance = kernels.normalise(
            _dense(for_each(n, images)),
            for_each(n, weight).contiguous(),
            for_each(n, bias).contiguous(),
            epsilon,
        )
        return normal.transpose(1, 2), mean, variance


def _keep(ctx: Any, *tensors: Tensor) -> None:
    """For derivatives backwards and forwards, in which what does not change comes as None."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _dense(images: Tensor) -> Tensor:
    """(n, B, C, H, W) as (n, C, B, H, W), channel by channel: what these layers put out is so."""
    return images.transpose(1, 2).contiguous()


def _images(channels: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """(n, C, B * H * W) as (n, B, C, H, W)."""
    apart: Tensor = channels.unflatten(2, (count, *size))
    return apart.transpose(1, 2)


def _convolved_size(
    images: Tensor, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> tuple[int, int]:
    high, wide = (
        (length + 2 * pad - side) // stride + 1
        for length, pad, side in zip(images.shape[3:], padding, kernel, strict=True)
    )
    return high, wide


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products, in TF32 if the user lets torch's own convolutions use it (the default).

    Of (n, a, b) and (n, b, c), or (1, b, c), which takes a single large product.
    """
    if len(right) == 1 < len(left):
        return _product(left.flatten(0, 1)[None], right).view(*left.shape[:2], -1)
    usual, allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        return left @ right
    finally:
        torch.backends.cuda.matmul.allow_tf32 = usual
