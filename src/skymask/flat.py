"""A model as a function of one (d,) vector, and back.

Rules, attacks and masks see vectors only; this file is the one place that knows how a vector is
laid out. Any `torch.nn.Module` will do: there is no masked twin of a model anywhere.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.func import functional_call

from skymask.errors import InputError
from skymask.recording import Recorded, recorded
from skymask.types import Batch, Loss

_MODELS_AT_ONCE = 128
"""At most so many models are evaluated at once on a GPU: beyond it is as busy as it can be."""

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
        named = {name: params[at].view(self.shapes[name]) for name, at in self.layers.items()}
        for name, counter in self.module.named_buffers():
            if name in self.buffer_layers:
                at = self.buffer_layers[name]
                named[name] = buffers[at].view(self.buffer_shapes[name]).clone()
            else:
                named[name] = counter.clone()
        return named

    def joined_buffers(self, named: dict[str, Tensor]) -> Tensor:
        """The buffer vector (b,) of what `tensors` gave, after the module has updated it."""
        return _joined([named[name] for name in self.buffer_layers])

    def initial(self) -> tuple[Tensor, Tensor]:
        """The module's own parameters (d,) and buffers (b,), copied."""
        params = dict(self.module.named_parameters())
        buffers = dict(self.module.named_buffers())
        return _joined([params[name] for name in self.layers]), self.joined_buffers(buffers)

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
    return _joined([p for p in module.parameters() if p.requires_grad])


def flatten_buffers(module: nn.Module) -> Tensor:
    """The floating-point buffers of `module` as one (b,) vector (a copy)."""
    return _joined([b for b in module.buffers() if b.is_floating_point()])


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


@dataclass(frozen=True, eq=False)
class RootLoss:
    """The `Round.loss` of a model: the mean loss over a batch as a function of params (d,).

    Batch norm uses the batch's own statistics and `buffers` (b,) is left as it is; everything
    else that differs between training and evaluation (dropout) is in evaluation mode, so that the
    same parameters always give the same loss.
    """

    model: FlatModel
    loss: SampleLoss
    module: nn.Module
    buffers: Tensor
    graphs: dict[int, Recorded | None] = field(default_factory=dict)
    """Recorded gradients by batch; shared by the losses of a run's rounds."""

    def __call__(self, params: Tensor, batch: Batch) -> Tensor:
        """Mean loss over `batch` at `params` (d,), a differentiable scalar."""
        outputs = functional_call(
            self.module, self.model.tensors(params, self.buffers), (batch.inputs,)
        )
        return self.loss(outputs, batch.labels)

    @torch.no_grad()
    def outputs(self, rows: Tensor, inputs: Tensor, at_once: int | None = None) -> Tensor | None:
        """What the models with parameters `rows` (k, d) make of `inputs` (N, ...): (k, N, ...).

        `at_once` models are evaluated at once: by default one on a CPU, where that is the faster
        way, and on a GPU up to 128, as its free memory allows. None where a model's output is not
        one tensor.
        """

        def one(params: Tensor, buffers: Tensor) -> Tensor:
            outputs: Tensor = functional_call(
                self.module, self.model.tensors(params, buffers), (inputs,)
            )
            return outputs

        first: object  # a module may return what it likes
        if rows.device.type == "cpu":
            first, at_once = one(rows[0], self.buffers), at_once or 1
        else:
            first, size = _measured(self.module, lambda: one(rows[0], self.buffers))
            at_once = at_once or _fitting(rows.device, size)
        if not isinstance(first, Tensor):
            return None
        if at_once == 1:
            others = [one(params, self.buffers)[None] for params in rows[1:]]
        else:
            several = torch.vmap(one)
            others = [
                several(part, self.buffers.expand(len(part), -1))
                for part in rows[1:].split(at_once)
                if len(part)
            ]
        return torch.cat([first[None], *others])

    def gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """Gradient of the mean loss over `batch` at `params`, (d,).

        On CUDA the first call for a batch records the computation, later ones replay it: for a
        small model launching the kernels takes several times as long as running them. A loss or
        module that cannot be recorded (one that waits for the device) is computed as usual.
        """
        if params.device.type != "cuda":
            return gradient(self, params, batch)
        if id(batch.inputs) not in self.graphs:
            self.graphs[id(batch.inputs)] = self._recorded(params, batch)
        graph = self.graphs[id(batch.inputs)]
        return gradient(self, params, batch) if graph is None else graph(params, self.buffers)[0]

    def _recorded(self, params: Tensor, batch: Batch) -> Recorded | None:
        def slope(params: Tensor, buffers: Tensor) -> tuple[Tensor]:
            return (gradient(replace(self, buffers=buffers), params, batch),)

        return recorded(slope, params, self.buffers)


def root_loss(model: FlatModel, loss: SampleLoss, buffers: Tensor) -> RootLoss:
    """The `RootLoss` of `model` with `buffers` (b,)."""
    return RootLoss(model, loss, model.in_mode(False, batch_statistics=True), buffers)


def gradient(loss: Loss, params: Tensor, batch: Batch) -> Tensor:
    """Gradient of `loss` over `batch` at `params`, (d,), by automatic differentiation."""
    leaf = params.detach().requires_grad_()
    with torch.enable_grad():
        slope: Tensor = torch.autograd.grad(loss(leaf, batch), leaf)[0]
    return slope


def _measured(module: nn.Module, call: Callable[[], object]) -> tuple[object, int]:
    """What `call` returns, and the bytes of all that the parts of `module` put out meanwhile."""
    size = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal size
        if isinstance(output, Tensor):
            size += output.numel() * output.element_size()

    hooks = [part.register_forward_hook(count) for part in module.modules()]
    try:
        return call(), size
    finally:
        for hook in hooks:
            hook.remove()


def _fitting(device: torch.device, size: int) -> int:
    """How many models are evaluated at once if `size` bytes of each fit in a quarter of `device`.

    Of its free memory; between its operations `vmap` makes copies in other layouts.
    """
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 30
    return max(1, min(_MODELS_AT_ONCE, room // (4 * max(size, 1))))


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


def _joined(tensors: list[Tensor]) -> Tensor:
    parts = [t.detach().reshape(-1) for t in tensors]
    return torch.cat(parts) if parts else torch.empty(0)
