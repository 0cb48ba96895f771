"""A model as a function of one (d,) vector, and back.

Rules, attacks and masks see vectors only; this file is the one place that knows how a vector is
laid out. Any `torch.nn.Module` will do: there is no masked twin of a model anywhere.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from skymask.errors import InputError
from skymask.layerwise import changes, layers_of
from skymask.randomness import generator
from skymask.recording import Function, Repeated
from skymask.types import Batch, Loss
from skymask.vectorised import with_kernels

_STEPS_AT_ONCE = 128
"""At most so many derivatives are computed at once: beyond a GPU is as busy as it can be."""
_CPU_ROOM = 1 << 30
"""Bytes that they may take on a CPU, four times over."""

_SAME = {"cpu": 1e-4, "cuda": 1e-2}
"""Largest distance of two derivatives that are the same, in their length: TF32 has three digits."""

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
    differentiated: nn.Module
    """The same module, with layers that have quick gradients."""
    buffers: Tensor
    repeated: dict[Hashable, Repeated] | None = field(default_factory=dict)
    """What is computed in every round, by name; shared by the losses of a run's rounds.

    None where nothing is to be recorded.
    """

    def __call__(self, params: Tensor, batch: Batch) -> Tensor:
        """Mean loss over `batch` at `params` (d,), a differentiable scalar."""
        outputs = functional_call(
            self.module, self.model.tensors(params, self.buffers), (batch.inputs,)
        )
        return self.loss(outputs, batch.labels)

    @torch.no_grad()
    def outputs(self, params: Tensor, inputs: Tensor) -> object:
        """What the model with `params` (d,) makes of `inputs` (N, ...)."""
        return functional_call(self.module, self.model.tensors(params, self.buffers), (inputs,))

    @torch.no_grad()
    def changes(
        self,
        params: Tensor,
        steps: Tensor,
        inputs: Tensor,
        before: Tensor,
        at_once: int = 1,
        by_layers: bool = False,
    ) -> Tensor:
        """What small `steps` (k, d) away from `params` (d,) change in the outputs: (k, N, ...).

        `before` are the outputs (N, ...) at `params`. It is the derivative along each step.
        `by_layers`, if `goes_by_layers` says so, takes a few operations for all of them. Otherwise
        it is computed forwards, `at_once` steps at once, which takes convolutions with the same
        kernels for all of them. A CPU is several times as fast with the difference of outputs,
        model by model; so are modules computed that torch cannot differentiate forwards. All are
        the same for steps so short that the outputs are linear.
        """
        if by_layers:
            return self._by_layers(params, steps, inputs)
        if not self._by_differences(params.device):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return self.derivatives(params, steps, inputs, at_once)
        after = [self.outputs(params + step, inputs) for step in steps]
        return torch.stack([each - before for each in after if isinstance(each, Tensor)])

    def _by_layers(self, params: Tensor, steps: Tensor, inputs: Tensor) -> Tensor:
        layers = layers_of(self.differentiated, self.model.layers)
        assert layers is not None
        tensors = self.model.tensors(params, self.buffers)
        return changes(self.differentiated, layers, tensors, self.model.layers, steps, inputs)

    @torch.no_grad()
    def goes_by_layers(self, params: Tensor, inputs: Tensor, count: int) -> bool:
        """Whether `changes` along `count` steps is quicker by layers, and the same as forwards.

        It is quicker with convolutions, and more steps than scores. It is the same where
        convolutions and linear layers hold all parameters, each is used once, and samples do not
        see each other, as they do in batch norm.
        """
        layers = layers_of(self.differentiated, self.model.layers)
        if layers is None or not convolves(self.module):
            return False
        outputs = self.outputs(params, inputs)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or count < 2 * outputs.shape[1]:
            return False
        step = torch.randn(params.shape, generator=generator("by layers")).to(params)[None]
        try:
            found = self._by_layers(params, step, inputs)
            expected = self.derivatives(params, step, inputs, 1)
        except (RuntimeError, NotImplementedError):
            return False
        close = _SAME.get(params.device.type, 1e-3)
        return bool((found - expected).norm() <= close * expected.norm())

    def _by_differences(self, device: torch.device) -> bool:
        return device.type == "cpu" and convolves(self.module)

    @torch.no_grad()
    def derivatives(self, params: Tensor, steps: Tensor, inputs: Tensor, at_once: int) -> Tensor:
        """Of the outputs at `params` (d,) along each of `steps` (k, d), by `at_once`: (k, N, ...).

        By differentiating forwards, which raises `RuntimeError` or `NotImplementedError` where
        torch cannot.
        """
        _learn_forward_rules()

        def along(step: Tensor) -> Tensor:
            change: Tensor = jvp(lambda at: self.outputs(at, inputs), (params,), (step,))[1]
            return change

        return torch.cat([torch.vmap(along)(some) for some in steps.split(at_once)])

    def fitting(self, params: Tensor, inputs: Tensor) -> int:
        """How many steps `changes` can take at once if theirs fit in a quarter of the free memory.

        Between its operations `vmap` makes copies in other layouts.
        """
        if self._by_differences(params.device):
            return 1
        size = _size_of_outputs(self.module, lambda: self.outputs(params, inputs))
        device = params.device
        room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _CPU_ROOM
        return max(1, min(_STEPS_AT_ONCE, room // (4 * max(size, 1))))

    def gradient(self, params: Tensor, batch: Batch) -> Tensor:
        """Gradient of the mean loss over `batch` at `params`, (d,).

        On CUDA the computation is recorded and replayed: for a small model launching the kernels
        takes several times as long as running them. A loss or module that cannot be recorded (one
        that waits for the device) is computed as usual.
        """

        def slope(params: Tensor, buffers: Tensor) -> tuple[Tensor]:
            return (self.at(buffers)._slope(params, batch),)

        return self.repeat("gradient", batch.identity, lambda: slope, params, self.buffers)[0]

    def _slope(self, params: Tensor, batch: Batch) -> Tensor:
        """As `gradient`. Each parameter is differentiated by itself.

        Otherwise every layer's slope comes back as a whole (d,) of zeros but for that layer.
        """
        named = self.model.tensors(params, self.buffers)
        trained = [named[name].detach().requires_grad_() for name in self.model.layers]
        named.update(zip(self.model.layers, trained, strict=True))
        with torch.enable_grad():
            value = self.loss(
                functional_call(self.differentiated, named, (batch.inputs,)), batch.labels
            )
            slopes = torch.autograd.grad(value, trained, materialize_grads=True)
        return _joined(list(slopes))

    def at(self, buffers: Tensor) -> "RootLoss":
        """The same loss with other `buffers` (b,), of which nothing is recorded by itself."""
        return replace(self, buffers=buffers, repeated=None)

    def repeat(
        self, name: Hashable, same: Hashable, make: Callable[[], Function], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """As `recording.Repeated`, for the computation called `name`."""
        if self.repeated is None:
            return tuple(make()(*inputs))
        return self.repeated.setdefault(name, Repeated())(same, make, *inputs)


def root_loss(model: FlatModel, loss: SampleLoss, buffers: Tensor) -> RootLoss:
    """The `RootLoss` of `model` with `buffers` (b,)."""
    plain, quick = (model.in_mode(False, batch_statistics=True) for _ in range(2))
    return RootLoss(model, loss, plain, with_kernels(quick), buffers)


def gradient(loss: Loss, params: Tensor, batch: Batch) -> Tensor:
    """Gradient of `loss` over `batch` at `params`, (d,), by automatic differentiation."""
    leaf = params.detach().requires_grad_()
    with torch.enable_grad():
        slope: Tensor = torch.autograd.grad(loss(leaf, batch), leaf)[0]
    return slope


@cache
def _learn_forward_rules() -> None:
    """Let torch load its rules for derivatives forwards, which warns of torch's own scripting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.neg, (torch.ones(()),), (torch.ones(()),))


def convolves(module: nn.Module) -> bool:
    """Whether there are convolutions in `module`."""
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())


def _size_of_outputs(module: nn.Module, call: Callable[[], object]) -> int:
    """The bytes of all that the parts of `module` put out during `call`."""
    size = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal size
        if isinstance(output, Tensor):
            size += output.numel() * output.element_size()

    hooks = [part.register_forward_hook(count) for part in module.modules()]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return size


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
