"""What many small steps change in a model's outputs, from one pass backwards for each output.

A layer with weight W sees x and puts out y(x) = W x. A step dW changes y by dW x, and output c of
sample s by the product of that and of the slope of the output along y. Summed over layers this is
the derivative along the step, exactly. Slopes and what layers see are the same for all steps, so
that a hundred steps take two matrix products a layer and not a hundred passes forwards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from skymask.many_models import is_usual

_ENTRIES = 1 << 26
"""Of an intermediate result, if it is not small beside the steps themselves."""


def layers_of(module: nn.Module, trained: Mapping[str, slice]) -> dict[str, nn.Module] | None:
    """The layers by name that hold all the `trained` parameters; None where others hold some."""
    layers: dict[str, nn.Module] = {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear or (type(part) is nn.Conv2d and is_usual(part))
    }
    held = {f"{name}.{which}".lstrip(".") for name in layers for which in ("weight", "bias")}
    return layers if held.issuperset(trained) else None


def changes(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    trained: Mapping[str, slice],
    inputs: Tensor,
    *given: "Steps",
) -> list[Tensor]:
    """The derivative of the outputs (N, C) along each of the k steps `given`: (k, N, C).

    `tensors` are the module's parameters and buffers by name, and `trained` says where in a step
    each parameter is. Of steps that are some columns alone it is these columns' part in the sum.
    Raises `RuntimeError` where a layer is used twice or never, or the outputs are of
    another shape. Samples must not see each other, and every parameter must be used by its layer
    alone: whoever calls this has compared it once with another way.
    """
    seen: dict[str, Tensor] = {}
    put_out: dict[str, Tensor] = {}
    named = {
        name: tensor.detach().requires_grad_() if name in trained else tensor
        for name, tensor in tensors.items()
    }

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if name in seen:
                raise RuntimeError(f"layer {name!r} is used twice")
            seen[name], put_out[name] = given[0].detach(), output

        return layers[name].register_forward_hook(note)

    hooks = [watch(name) for name in layers]
    try:
        with torch.enable_grad():
            outputs = functional_call(module, named, (inputs,))
            scores = outputs.sum(0).unbind()
    finally:
        for hook in hooks:
            hook.remove()
    if outputs.dim() != 2 or len(seen) < len(layers):
        raise RuntimeError("outputs are not one score for each class, or a layer is never used")

    parts: list[dict[str, list[_Part]]] = [{name: [] for name in seen} for _ in given]
    for name, images in seen.items():
        layer = layers[name]
        for which in ("weight", "bias"):
            at = trained.get(f"{name}.{which}".lstrip("."))
            if at is None:
                continue
            width = tensors[f"{name}.{which}".lstrip(".")][0].numel()
            mine = [[*steps.rows(at, width)] for steps in given]
            patches = _patches(layer, images) if any(mine) and which == "weight" else None
            for into, rows in zip(parts, mine, strict=True):
                into[name] += [_Part.of(layer, *each, patches, len(scores)) for each in rows]
    found: list[list[Tensor]] = [[] for _ in given]
    for score in scores:
        slopes = torch.autograd.grad(score, list(put_out.values()), retain_graph=True)
        for steps, own, changed in zip(given, parts, found, strict=True):
            along = outputs.new_zeros(len(outputs), len(steps.values))
            for name, slope in zip(put_out, slopes, strict=True):
                for part in own[name]:
                    part.add(along, slope)
            changed.append(along)
    return [torch.stack(changed).permute(2, 1, 0) for changed in found]


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps away from a model's parameters, or some columns of them."""

    values: Tensor
    """(k, d), or (k, ...) of these columns."""
    first: int = 0
    """Which column of all d is their first one."""

    def rows(self, at: slice, width: int) -> Iterator[tuple[int, Tensor]]:
        """What they have of the parameter `at`: rows (k, R, width), and which is the first.

        Where the columns begin or end within a row, that row is filled with zeros and comes by
        itself, so that nothing large is copied.
        """
        origin = self.first
        start = max(at.start, origin) - at.start
        stop = min(at.stop, origin + self.values.shape[1]) - at.start
        if start >= stop:
            return
        whole = min(-(-start // width) * width, stop), max(stop // width * width, start)
        for begin, end in pairwise(sorted({start, *whole, stop})):
            part = self.values[:, at.start - origin + begin : at.start - origin + end]
            before, after = begin % width, -end % width
            if before or after:
                part = F.pad(part, (before, after))
            yield begin // width, part.unflatten(1, (-1, width))


def _patches(layer: nn.Module, images: Tensor) -> Tensor:
    """What `layer` sees for each pixel of its output, (N, P, W)."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        seen = F.unfold(images, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        return seen.transpose(1, 2)
    return images.flatten(1, -2) if images.dim() > 2 else images[:, None]


@dataclass(frozen=True, eq=False)
class _Part:
    """Some outputs' part in the changes, for one score after another."""

    conv: bool
    outs: slice
    """Which outputs of the layer."""
    steps: Tensor
    """Of these outputs' weights, (k, O, W), or biases, (k, O, 1)."""
    patches: Tensor | None
    """What the layer sees for each pixel of its output, (N, P, W); None for biases."""
    moved: Tensor | None
    """How the steps change what it puts out, (N, O * P, k), where that is worth computing."""

    @classmethod
    def of(
        cls, layer: nn.Module, row: int, steps: Tensor, patches: Tensor | None, scores: int
    ) -> "_Part":
        """Of the outputs of `layer` from `row` on, for so many scores."""
        conv, (count, outs, width) = isinstance(layer, nn.Conv2d), steps.shape
        moved, at = None, slice(row, row + outs)
        if patches is not None:
            samples, pixels, _ = patches.shape
            slopes_first = scores * outs * width * (pixels + count)
            steps_first = pixels * outs * count * (width + scores)
            room = max(_ENTRIES, steps.numel() // 4)  # less than the masks take beside the updates
            if steps_first < slopes_first and samples * pixels * outs * count < room:
                shared = patches.flatten(0, 1).expand(count, -1, -1)
                moved = torch.bmm(shared, steps.transpose(1, 2))  # a product might copy the steps
                moved = moved.view(count, samples, pixels, outs).permute(1, 3, 2, 0).flatten(1, 2)
        return cls(conv, at, steps, patches, moved)

    def add(self, along: Tensor, slope: Tensor) -> None:
        """Add this part to `along` (N, k); `slope` (N, ...) is the score's along the output."""
        if self.conv:
            by_pixel = slope.flatten(2)  # (N, O, P)
        else:
            by_pixel = slope.flatten(1, -2).transpose(1, 2) if slope.dim() > 2 else slope[..., None]
        by_pixel = by_pixel[:, self.outs]
        if self.patches is None:
            along += by_pixel.sum(2) @ self.steps[..., 0].T
        elif self.moved is not None:
            along += (by_pixel.flatten(1)[:, None] @ self.moved)[:, 0]
        else:
            steps, most = self.steps.flatten(1).T, max(1, _ENTRIES // self.steps[0].numel())
            for start in range(0, len(along), most):
                at = slice(start, start + most)
                along[at] += (by_pixel[at] @ self.patches[at]).flatten(1) @ steps
