"""What `skymask.layer_kernels` computes, in a few torch operations each."""

import torch
import torch.nn.functional as F


def takes(*tensors):
    return all(each.dtype == torch.float32 for each in tensors)


def unfold(images, kernel, size, stride, padding, ones):
    n, _, count = images.shape[:3]
    seen = F.unfold(images.transpose(1, 2).flatten(0, 1), kernel, padding=padding, stride=stride)
    assert seen.shape[2] == size[0] * size[1]
    seen = seen.unflatten(0, (n, count)).transpose(1, 2).flatten(2)
    return torch.cat([seen, torch.ones_like(seen[:, :1])], 1) if ones else seen


def fold(slopes, shape, kernel, size, stride, padding):
    n, channels, count = shape[:3]
    each = slopes.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)
    assert each.shape[2] == size[0] * size[1]
    folded = F.fold(each, shape[3:], kernel, padding=padding, stride=stride)
    return folded.view(n, count, channels, *shape[3:]).transpose(1, 2).contiguous()


def pool(images, side):
    flat = images.flatten(0, 2)[:, None]
    pooled, index = F.max_pool2d(flat, side, return_indices=True)
    row, column = index // images.shape[4], index % images.shape[4]
    place = (row % side * side + column % side).to(torch.uint8)
    shape = (*images.shape[:3], *pooled.shape[2:])
    return pooled.view(shape), place.view(shape)


def unpool(slopes, place, side, size):
    spread = slopes.new_zeros(*slopes.shape[:3], *size)
    for at in range(side * side):
        row, column = at // side, at % side
        where = spread[..., row::side, column::side][..., : slopes.shape[3], : slopes.shape[4]]
        where += slopes * (place == at)
    return spread


def _normalised(images, weight, bias, epsilon):
    mean = images.mean((2, 3, 4), keepdim=True)
    variance = images.var((2, 3, 4), unbiased=False, keepdim=True)
    each = (*weight.shape, 1, 1, 1)
    normal = (images - mean) / (variance + epsilon).sqrt()
    return normal * weight.view(each) + bias.view(each), mean, variance


def normalise(images, weight, bias, epsilon):
    normal, mean, variance = _normalised(images, weight, bias, epsilon)
    return normal, mean.flatten(1), variance.flatten(1)


def normalise_back(slopes, images, weight, mean, variance, epsilon):
    with torch.enable_grad():
        given = [each.detach().requires_grad_() for each in (images, weight, weight * 0)]
        return torch.autograd.grad(_normalised(*given, epsilon)[0], given, slopes)


def normalise_along(steps, by_weight, by_bias, images, weight, mean, variance, epsilon):
    scale = 1 / (variance + epsilon).sqrt()
    every = (slice(None), slice(None), None, None, None)
    apart = (images - mean[every]) * scale[every]
    level = steps.mean((2, 3, 4), keepdim=True)
    tilt = (steps * apart).mean((2, 3, 4), keepdim=True)
    moved = (steps - level - apart * tilt) * (weight * scale)[every]
    return moved + by_weight[every] * apart + by_bias[every]
