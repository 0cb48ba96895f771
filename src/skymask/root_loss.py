"""The root data set's loss as a function of a model's parameters, and its derivatives."""

import contextlib
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from skymask.flat import FlatModel, SampleLoss, convolves, joined
from skymask.layerwise import Steps, changes, layers_of
from skymask.randomness import generator
from skymask.recording import Function, Repeated
from skymask.types import Batch, Loss
from skymask.vectorised import with_kernels

_STEPS_AT_ONCE = 128
"""At most so many derivatives are computed at once: beyond a GPU is as busy as it can be."""
_CPU_ROOM = 1 << 30
"""Bytes that they may take on a CPU, four times over."""
_MANY = 1 << 16
"""From so many parameters on a model without convolutions is differentiated layer by layer."""
_SAME = {"cpu": 1e-4, "cuda": 1e-2}
"""Largest distance of two derivatives that are the same, in their length: TF32 has three digits."""


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
    """The same module, with layers that have quick derivatives."""
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
    ) -> Tensor:
        """What small `steps` (k, d) away from `params` (d,) change in the outputs: (k, N, ...).

        `before` are the outputs (N, ...) at `params`. It is the derivative along each step,
        computed forwards, `at_once` steps at once, which takes convolutions with the same
        kernels for all of them. A CPU is several times as fast with the difference of outputs,
        model by model; so are modules computed that torch cannot differentiate forwards. Both are
        the same for steps so short that the outputs are linear.
        """
        if not self._by_differences(params.device):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return self.derivatives(params, steps, inputs, at_once)
        after = [self.outputs(params + step, inputs) for step in steps]
        return torch.stack([each - before for each in after if isinstance(each, Tensor)])

    @torch.no_grad()
    def slopes(self, params: Tensor, inputs: Tensor, *given: Steps) -> list[Tensor]:
        """The outputs' derivative at `params` (d,) along each of the k steps `given`: (k, N, C).

        Layer by layer, in a few operations for all of them, if `goes_by_layers` says so. Of steps
        that are some columns alone it is these columns' part in the sum.
        """
        layers = layers_of(self.differentiated, self.model.layers)
        assert layers is not None
        tensors = self.model.tensors(params, self.buffers)
        trained = self.model.layers
        return changes(self.differentiated, layers, tensors, trained, inputs, *given)

    @torch.no_grad()
    def goes_by_layers(self, params: Tensor, inputs: Tensor, count: int) -> bool:
        """Whether `slopes` along `count` steps is quicker than `changes`, and the same as forwards.

        It is quicker with convolutions or many parameters, and more steps than scores. It is the
        same where convolutions and linear layers hold all parameters, each is used once, and
        samples do not see each other, as they do in batch norm.
        """
        layers = layers_of(self.differentiated, self.model.layers)
        if layers is None or not (convolves(self.module) or self.model.size >= _MANY):
            return False
        outputs = self.outputs(params, inputs)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or count < 2 * outputs.shape[1]:
            return False
        step = torch.randn(params.shape, generator=generator("by layers")).to(params)[None]
        try:
            (found,) = self.slopes(params, inputs, Steps(step))
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

        def outputs(at: Tensor) -> object:
            named = self.model.tensors(at, self.buffers)
            return functional_call(self.differentiated, named, (inputs,))

        def along(step: Tensor) -> Tensor:
            change: Tensor = jvp(outputs, (params,), (step,))[1]
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
        return joined(list(slopes))

    def at(self, buffers: Tensor) -> "RootLoss":
        """The same loss with other `buffers` (b,), of which nothing is recorded by itself."""
        return replace(self, buffers=buffers, repeated=None)

    def repeat(
        self,
        name: Hashable,
        same: Hashable,
        make: Callable[[], Function],
        *inputs: Tensor,
        record: bool = True,
    ) -> tuple[Tensor, ...]:
        """As `recording.Repeated`, for the computation called `name`."""
        if self.repeated is None:
            return tuple(make()(*inputs))
        return self.repeated.setdefault(name, Repeated())(same, make, *inputs, record=record)


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
