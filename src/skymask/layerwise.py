"""What many small steps change in a model's outputs, from one pass backwards for each output.

A layer with weight W sees x and puts out y(x) = W x. A step dW changes y by dW x, and output c of
sample s by the product of that and of the slope of the output along y. Summed over layers this is
the derivative along the step, exactly. Slopes and what layers see are the same for all steps, so
that a hundred steps take two matrix products a layer and not a hundred passes forwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from skymask.many_models import is_usual

_ENTRIES = 1 << 26
"""Of the largest intermediate result."""


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
    steps: Tensor,
    inputs: Tensor,
) -> Tensor:
    """The derivative of the outputs (N, C) along each of `steps` (k, d): (k, N, C).

    `tensors` are the module's parameters and buffers by name, and `trained` says where in a step
    each parameter is. Raises `RuntimeError` where a layer is used twice or never, or the outputs
    are of another shape. Samples must not see each other, and every parameter must be used by its
    layer alone: whoever calls this has compared it once with another way.
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

    def own(name: str) -> Tensor | None:
        return steps[:, trained[name]] if name in trained else None

    parts = []
    for name, images in seen.items():
        weights, biases = (own(f"{name}.{which}".lstrip(".")) for which in ("weight", "bias"))
        parts.append(_Part.of(layers[name], images, weights, biases, len(scores)))
    found = []
    for score in scores:
        slopes = torch.autograd.grad(score, list(put_out.values()), retain_graph=True)
        along = steps.new_zeros(len(outputs), len(steps))
        for part, slope in zip(parts, slopes, strict=True):
            part.add(along, slope)
        found.append(along)
    return torch.stack(found).permute(2, 1, 0)


@dataclass(frozen=True, eq=False)
class _Part:
    """One layer's part in the changes, for one score after another."""

    conv: bool
    patches: Tensor
    """What the layer sees for each pixel of its output, (N, P, W)."""
    weights: Tensor | None
    """The steps of its weight, (k, O, W)."""
    biases: Tensor | None
    """The steps of its bias, (k, O)."""
    moved: Tensor | None
    """How the steps change what it puts out, (N, O * P, k), where that is worth computing."""

    @classmethod
    def of(
        cls,
        layer: nn.Module,
        images: Tensor,
        weights: Tensor | None,
        biases: Tensor | None,
        scores: int,
    ) -> "_Part":
        """Of a `layer` that sees `images`, for so many scores."""
        conv = isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)
            patches = F.unfold(
                images, layer.kernel_size, padding=layer.padding, stride=layer.stride
            ).transpose(1, 2)
        else:
            patches = images.flatten(1, -2) if images.dim() > 2 else images[:, None]
        samples, pixels, width = patches.shape
        if weights is None:
            return cls(conv, patches, None, biases, None)
        count = len(weights)
        weights = weights.view(count, -1, width)
        outs, moved = weights.shape[1], None
        slopes_first = scores * outs * width * (pixels + count)
        steps_first = pixels * outs * count * (width + scores)
        if steps_first < slopes_first and samples * pixels * outs * count < _ENTRIES:
            moved = patches.flatten(0, 1) @ weights.transpose(1, 2)
            moved = moved.view(count, samples, pixels, outs).permute(1, 3, 2, 0).flatten(1, 2)
        return cls(conv, patches, weights, biases, moved)

    def add(self, along: Tensor, slope: Tensor) -> None:
        """Add the layer's part to `along` (N, k); `slope` (N, ...) is the score's along it."""
        if self.conv:
            by_pixel = slope.flatten(2)  # (N, O, P)
        else:
            by_pixel = slope.flatten(1, -2).transpose(1, 2) if slope.dim() > 2 else slope[..., None]
        if self.biases is not None:
            along += by_pixel.sum(2) @ self.biases.T
        if self.moved is not None:
            along += (by_pixel.flatten(1)[:, None] @ self.moved)[:, 0]
        elif self.weights is not None:
            steps, most = self.weights.flatten(1).T, max(1, _ENTRIES // self.weights[0].numel())
            for start in range(0, len(along), most):
                at = slice(start, start + most)
                along[at] += (by_pixel[at] @ self.patches[at]).flatten(1) @ steps
