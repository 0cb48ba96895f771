"""A model as a function of one (d,) vector, and back.

Rules, attacks and masks see vectors only; this file is the one place that knows how a vector is
laid out. Any `torch.nn.Module` will do: there is no masked twin of a model anywhere.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor, nn

from skymask.errors import InputError

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of (outputs, labels) over a batch, such as `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, eq=False)
class FlatModel:
    """A module whose parameters and buffers are given as vectors at every call.

    The vector (d,) is the module's trainable parameters in `named_parameters()` order, so it is
    what `torch.nn.utils.parameters_to_vector` gives where nothing is frozen. The buffer vector
    (b,) is its floating-point buffers in `named_buffers()` order (batch norm's running mean and
    variance). Frozen parameters and integer buffers (step counters) stay those of the module.
    """

    module: nn.Module
    layers: dict[str, slice]
    shapes: dict[str, torch.Size]
    buffer_layers: dict[str, slice]
    buffer_shapes: dict[str, torch.Size]

    @property
    def size(self) -> int:
        """Number of trainable parameters, d."""
        return _end(self.layers)

    def tensors(self, params: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Named views into `params` (d,) and named copies of `buffers` (b,).

        A module in training mode updates its buffers in place: that changes the copies alone, and
        `joined_buffers` makes a vector of them again. One copy a buffer, because `vmap` updates a
        strided view of a larger tensor without a word in a temporary.
        """
        return self.parameters(params) | self.copied_buffers(buffers)

    def parameters(self, params: Tensor) -> dict[str, Tensor]:
        """Named views into `params` (d,); or into each row of (n, d), then (n, *shape) each."""
        before = params.shape[:-1]
        return {
            name: params[..., at].view(*before, *self.shapes[name])
            for name, at in self.layers.items()
        }

    def copied_buffers(self, buffers: Tensor) -> dict[str, Tensor]:
        """Named copies of `buffers` (b,), and of the buffers that are no floating point."""
        named = {}
        for name, counter in self.module.named_buffers():
            if name in self.buffer_layers:
                at = self.buffer_layers[name]
                named[name] = buffers[at].view(self.buffer_shapes[name]).clone()
            else:
                named[name] = counter.clone()
        return named

    def joined_buffers(self, named: dict[str, Tensor]) -> Tensor:
        """The buffer vector (b,) of what `tensors` gave, after the module has updated it."""
        return joined([named[name] for name in self.buffer_layers])

    def initial(self) -> tuple[Tensor, Tensor]:
        """The module's own parameters (d,) and buffers (b,), copied."""
        params = dict(self.module.named_parameters())
        buffers = dict(self.module.named_buffers())
        return joined([params[name] for name in self.layers]), self.joined_buffers(buffers)

    def to(self, device: torch.device) -> "FlatModel":
        """The same model on `device`."""
        module = copy.deepcopy(self.module).to(device)
        return FlatModel(module, self.layers, self.shapes, self.buffer_layers, self.buffer_shapes)

    def in_mode(
        self, training: bool, *, batch_statistics: bool | None = None, vectorised: bool = False
    ) -> nn.Module:
        """A copy of the module in training or evaluation mode.

        `batch_statistics` sets the mode of the batch-norm layers alone (default: `training`).
        """
        module = copy.deepcopy(self.module).train(training)
        if batch_statistics is not None:
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.train(batch_statistics)
        if not vectorised and next(module.parameters()).device.type == "cpu":
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    part.register_forward_pre_hook(_channels_last)
                elif isinstance(part, nn.MaxPool2d):
                    part.forward = partial(_max_pool, part)  # type: ignore[method-assign]
        return module


def flat_model(module: nn.Module) -> FlatModel:
    """Lay out `module` as a `FlatModel`. The module is copied, not kept.

    Raises `InputError` where there is nothing to train or the parameters mix dtypes.
    """
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    if not params:
        raise InputError("model has no trainable parameters; it needs at least one")
    dtypes = {p.dtype for p in params.values()} | {b.dtype for b in buffers.values()}
    if len(dtypes) > 1:
        raise InputError(f"model mixes dtypes {sorted(map(str, dtypes))}; it must have one")
    return FlatModel(
        copy.deepcopy(module),
        _slices(params),
        {name: p.shape for name, p in params.items()},
        _slices(buffers),
        {name: b.shape for name, b in buffers.items()},
    )


def flatten(module: nn.Module) -> Tensor:
    """The trainable parameters of `module` as one (d,) vector (a copy)."""
    return joined([p for p in module.parameters() if p.requires_grad])


def flatten_buffers(module: nn.Module) -> Tensor:
    """The floating-point buffers of `module` as one (b,) vector (a copy)."""
    return joined([b for b in module.buffers() if b.is_floating_point()])


@torch.no_grad()
def assign(module: nn.Module, params: Tensor, buffers: Tensor | None = None) -> None:
    """Write `params` (d,) into the trainable parameters of `module`, in place.

    With `buffers` (b,), such as `Decision.buffers`, its floating-point buffers too. Raises
    `InputError` where the sizes differ.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    expected = sum(p.numel() for p in trainable)
    if params.shape != (expected,):
        raise InputError(
            f"params has shape {tuple(params.shape)} but the model needs ({expected},)"
        )
    for parameter, part in zip(
        trainable, params.split([p.numel() for p in trainable]), strict=True
    ):
        parameter.copy_(part.view_as(parameter))
    if buffers is None:
        return
    floating = [b for b in module.buffers() if b.is_floating_point()]
    expected = sum(b.numel() for b in floating)
    if buffers.shape != (expected,):
        raise InputError(
            f"buffers has shape {tuple(buffers.shape)} but the model needs ({expected},)"
        )
    for buffer, part in zip(floating, buffers.split([b.numel() for b in floating]), strict=True):
        buffer.copy_(part.view_as(buffer))


def convolves(module: nn.Module) -> bool:
    """Whether there are convolutions in `module`."""
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """On a CPU, convolving and pooling are about twice as fast with a pixel's channels together.

    A convolution's output is laid out as its input is, which is much smaller for the first one.
    """
    return tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


def _max_pool(pool: nn.MaxPool2d, images: Tensor) -> Tensor:
    """`pool` of `images`; on a CPU the maximum of strided views is three times as fast.

    Not where gradients are needed: where entries are equal it would share them out.
    """
    k = pool.kernel_size
    usual = (k, k, 0, 1, False, False)
    given = (k, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    if torch.is_grad_enabled() or given != usual or not isinstance(k, int) or images.dim() != 4:
        pooled: Tensor = nn.MaxPool2d.forward(pool, images)
        return pooled
    height, width = (side // k * k for side in images.shape[2:])
    rows = reduce(torch.maximum, (images[:, :, i:height:k] for i in range(k)))
    return reduce(torch.maximum, (rows[..., i:width:k] for i in range(k)))


def _slices(named: Mapping[str, Tensor]) -> dict[str, slice]:
    slices, start = {}, 0
    for name, tensor in named.items():
        slices[name] = slice(start, start + tensor.numel())
        start += tensor.numel()
    return slices


def _end(slices: dict[str, slice]) -> int:
    return max((int(at.stop) for at in slices.values()), default=0)


def joined(tensors: list[Tensor]) -> Tensor:
    """All entries of `tensors` as one vector, without their history; nothing's is empty."""
    parts = [t.detach().reshape(-1) for t in tensors]
    return torch.cat(parts) if parts else torch.empty(0)
