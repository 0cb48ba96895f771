"""Local training of all sampled clients in one call: (d,) parameters in, (n, d) updates out.

Clients are independent, so their gradients are one `vmap` over (client, batch); on a CPU with
convolutions, and for a module that `vmap` cannot handle, a loop over clients is the faster or
the only way. Both give the same updates within float rounding (tests hold it to 1e-5 of the
update's norm), whatever the chunk size.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from skymask.errors import InputError
from skymask.flat import FlatModel, SampleLoss, convolves
from skymask.half import in_half_precision, takes_half
from skymask.local_sgd import LocalSGD, Schedule, batch_rows
from skymask.randomness import key
from skymask.recording import Function, Repeated
from skymask.threads import each_in_threads
from skymask.types import ClientData
from skymask.vectorised import largest_unfolding, with_kernels

_LARGE = 1 << 24
"""Parameters of a model whose training keeps all cores busy, and of which copies take room."""


@dataclass(frozen=True, eq=False)
class Trainer:
    """Local training of one model on one device; made by `plan`."""

    model: FlatModel
    loss: SampleLoss
    local: LocalSGD
    path: Literal["vmap", "loop"]
    chunk: int
    """Clients trained at once on the `vmap` path."""
    module: nn.Module
    copies: tuple[nn.Module, ...] = ()
    """On the loop's path as many equal modules as clients are trained side by side, if any are."""
    note: str | None = None
    """Why the loop was taken, where that is worth telling a person."""
    repeated: Repeated = field(default_factory=Repeated)
    """The training of the same clients, prepared, and recorded on CUDA."""

    def __call__(
        self, params: Tensor, buffers: Tensor, data: ClientData, clients: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Train `clients` from the same global model.

        Args:
            params: global parameters W_t, (d,).
            buffers: global buffers, (b,); b may be 0.
            data: every client's samples.
            clients: the n indices into `data` of those that take part.
            seed: a `randomness.key`; with a client's index it decides that client's batches.

        Returns:
            Updates W_i - W_t, (n, d), and the clients' own buffers, (n, b).
        """
        if self.path == "loop":
            return self._one_by_one(params, buffers, data, clients, seed)
        start = torch.tensor(seed, device=params.device)

        def train() -> Function:
            schedule = Schedule.of(data, clients, self.local)
            return lambda *now: self._together(now[0], now[1], data, schedule, now[2])

        if params.device.type == "cuda" and len(clients) > self.chunk:
            # They keep the device busy, and a recording would take its memory.
            updates, after = train()(params, buffers, start)
        else:
            same = (id(data.inputs), id(data.labels), *clients)
            updates, after = self.repeated(same, train, params, buffers, start)
        return updates, after

    def _together(
        self,
        params: Tensor,
        buffers: Tensor,
        data: ClientData,
        schedule: "Schedule",
        seed: int | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Train the clients of `schedule`, `chunk` of them at once."""
        rows = schedule.rows(seed)
        updates = params.new_empty(len(rows), params.numel())
        after = buffers.new_empty(len(rows), buffers.numel())
        for start in range(0, len(rows), self.chunk):
            at = slice(start, start + self.chunk)
            updates[at], after[at] = self._vmap(params, buffers, data, rows[at])
        return updates, after

    def _one_by_one(
        self, params: Tensor, buffers: Tensor, data: ClientData, clients: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor]:
        rows = batch_rows(data, clients, self.local, seed)
        updates = params.new_empty(len(clients), params.numel())
        after = buffers.new_empty(len(clients), buffers.numel())
        if self.copies:

            def train(module: nn.Module, i: int) -> None:
                updates[i], after[i] = self._loop(module, params, buffers, data, rows[i])

            each_in_threads(train, range(len(clients)), self.copies)
            return updates, after
        devices = [params.device] if params.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # Dropout and its like draw from torch's own generator: key that too, per client.
            for i, client in enumerate(clients):
                torch.manual_seed(key(seed, "module", client))  # noqa: TID251
                updates[i], after[i] = self._loop(self.module, params, buffers, data, rows[i])
        return updates, after

    def _vmap(
        self, params: Tensor, buffers: Tensor, data: ClientData, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Train a chunk; `rows` (chunk, steps, batch)."""
        n = len(rows)
        moved, state = params, buffers.expand(n, -1)
        for step in range(self.local.steps):
            inputs, labels = data.inputs[rows[:, step]], data.labels[rows[:, step]]
            # In the first step all clients share W_t, and the forward pass is one large batch.
            # Each parameter is differentiated by itself: otherwise the slope of every layer would
            # come back as a whole (n, d), zero but for that layer.
            found, state = vmap(
                grad(self._client_loss, has_aux=True), in_dims=(None if step == 0 else 0, 0, 0, 0)
            )(self.model.parameters(moved), state, inputs, labels)
            gradients = torch.cat([found[name].reshape(n, -1) for name in self.model.layers], 1)
            if self.local.prox:
                gradients = gradients + self.local.prox * (moved - params)
            moved = moved - self.local.lr * gradients
        return moved - params, state

    def _client_loss(
        self, params: dict[str, Tensor], buffers: Tensor, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        named = params | self.model.copied_buffers(buffers)
        value = self.loss(functional_call(self.module, named, (inputs,)), labels)
        return value, self.model.joined_buffers(named)

    def _loop(
        self, module: nn.Module, params: Tensor, buffers: Tensor, data: ClientData, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Train one client with `module`; `rows` (steps, batch)."""
        moved, state = params.clone(), buffers
        with torch.enable_grad():
            for step in range(self.local.steps):
                inputs, labels = data.inputs[rows[step]], data.labels[rows[step]]
                named = self.model.tensors(moved, state)
                trained = [named[name].detach().requires_grad_() for name in self.model.layers]
                named.update(zip(self.model.layers, trained, strict=True))
                value = self.loss(functional_call(module, named, (inputs,)), labels)
                state = self.model.joined_buffers(named)
                gradients = torch.autograd.grad(value, trained, allow_unused=True)
                if self.local.prox:
                    moved.sub_(moved - params, alpha=self.local.lr * self.local.prox)
                for at, gradient in zip(self.model.layers.values(), gradients, strict=True):
                    if gradient is not None:
                        moved[at].add_(gradient.reshape(-1), alpha=-self.local.lr)
        return moved - params, state


def plan(
    model: FlatModel,
    loss: SampleLoss,
    local: LocalSGD,
    data: ClientData,
    *,
    path: Literal["vmap", "loop"] | None = None,
    chunk: int | None = None,
) -> Trainer:
    """Choose how to train `model` on the device of `data`, and with how many clients at once.

    Without `path`: a loop for convolutions on a CPU (a third faster there), else `vmap` if the
    module can be vectorised, else a loop, with a warning that says why. On a CPU the loop is shared
    out among torch's threads, unless the module draws random numbers. Without `chunk`: as many
    clients as fit in half the free memory of a GPU, or in 256 MB on a CPU.

    Raises `InputError` for a precision of bfloat16 where the model has no convolution that it would
    be for, or cannot compute with it.
    """
    module, shared = (_module(model, local, together) for together in (False, True))
    device = data.inputs.device
    if local.precision == "bfloat16":
        _check_half(Trainer(model, loss, local, "loop", 1, module), data)
    quick: SampleLoss = loss
    if loss is F.cross_entropy and path != "loop" and _are_classes(data.labels):
        quick = _cross_entropy
    draft = Trainer(
        model, quick, local, path or "vmap", chunk or 1, module if path == "loop" else shared
    )
    if path is None and device.type == "cpu" and convolves(module):
        draft = Trainer(model, loss, local, "loop", 1, module)
    elif path is None and (problem := _vmap_problem(draft, data)):
        name = type(model.module).__name__
        note = f"{name} cannot be vectorised, so clients train one by one: {problem}"
        warnings.warn(note, stacklevel=2)
        draft = Trainer(model, loss, local, "loop", 1, module, note=note)
    if draft.path == "loop":
        threads = torch.get_num_threads() if device.type == "cpu" and model.size < _LARGE else 1
        if threads > 1 and not _draws(draft, data):
            draft = replace(draft, copies=tuple(_module(model, local) for _ in range(threads)))
        return draft
    if chunk is not None:
        return draft
    return replace(draft, chunk=_chunk(draft, data))


def _module(model: FlatModel, local: LocalSGD, together: bool = False) -> nn.Module:
    """A copy of the module to train one client at a time, or many together under `vmap`."""
    module = model.in_mode(True, vectorised=together)
    if local.precision == "bfloat16":
        return in_half_precision(module)
    return with_kernels(module) if together else module


def _check_half(trainer: Trainer, data: ClientData) -> None:
    """Raise `InputError` where half precision is no use, or fails, on two samples."""
    name = type(trainer.model.module).__name__
    if not any(takes_half(part) for part in trainer.module.modules()):
        raise InputError(
            "precision is 'bfloat16', which is for convolutions (nn.Conv2d without groups or "
            f"dilation), but {name} has none; it must be 'float32'"
        )
    params, buffers = (part.to(data.inputs.device) for part in trainer.model.initial())
    rows = torch.zeros(1, 2, dtype=torch.int64, device=data.inputs.device)
    devices = [data.inputs.device] if data.inputs.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            short = replace(trainer, local=replace(trainer.local, steps=1, batch=2))
            short._loop(trainer.module, params, buffers, data, rows)
    except RuntimeError as problem:
        reason = str(problem).strip().split("\n")[0][:160]
        raise InputError(
            f"precision is 'bfloat16' but {name} cannot compute with it ({reason}); "
            "it must be 'float32'"
        ) from problem


def _are_classes(labels: Tensor) -> bool:
    whole = labels.dim() == 1 and not labels.is_floating_point()
    return whole and bool((labels >= 0).all())


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """As `F.cross_entropy` of labels that are classes, in a quarter of the operations under vmap.

    There that one is taken apart into what it has for labels to ignore; and a softmax of few
    classes is slow along the last dimension.
    """
    if outputs.dim() != 2:
        return F.cross_entropy(outputs, labels)
    logs = F.log_softmax(outputs.T.contiguous(), 0)
    return -logs.gather(0, labels[None]).mean()


def _vmap_problem(trainer: Trainer, data: ClientData) -> str | None:
    """Why `vmap` cannot train this module, in one line; None if it can.

    Tried on two clients that are given the same few rows.
    """
    params, buffers = (part.to(data.inputs.device) for part in trainer.model.initial())
    rows = torch.zeros(2, 2, 2, dtype=torch.int64, device=data.inputs.device)
    short = Trainer(trainer.model, trainer.loss, LocalSGD(2, 2), "vmap", 2, trainer.module)
    switch: Any = torch._C._functorch
    before = switch._is_vmap_fallback_enabled()
    try:
        # Where a batching rule is missing vmap warns and then loops inside: as good as none. Raise
        # instead, by vmap's own switch: Python's warning filters belong to all threads.
        switch._set_vmap_fallback_enabled(False)
        short._vmap(params, buffers, data, rows)
    except (RuntimeError, UserWarning, NotImplementedError) as problem:
        return str(problem).strip().split("\n")[0][:160]
    finally:
        switch._set_vmap_fallback_enabled(before)
    return None


def _draws(trainer: Trainer, data: ClientData) -> bool:
    """Whether the module takes random numbers from torch's generator, of which there is one."""
    params, buffers = trainer.model.initial()
    with torch.random.fork_rng([]):
        before = torch.random.get_rng_state()
        short = replace(trainer, local=LocalSGD(1, 2))
        rows = torch.zeros(1, 2, dtype=torch.int64)
        short._loop(short.module, params, buffers, data, rows)
        return not torch.random.get_rng_state().equal(before)


def _chunk(trainer: Trainer, data: ClientData) -> int:
    """How many clients fit at once: the memory for one is measured, not guessed.

    One client holds what autograd saves of its forward pass, about as much again for the
    gradients on the way back, and four copies of its parameters; on a GPU also twice what the
    largest convolution sees.
    """
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    device = data.inputs.device
    params, buffers = (part.to(device) for part in trainer.model.initial())
    rows = torch.arange(trainer.local.batch, device=device) % len(data.labels)
    leaves = trainer.model.parameters(params.requires_grad_(True))
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        largest_unfolding(trainer.module) as unfolded,
    ):
        trainer._client_loss(leaves, buffers, data.inputs[rows], data.labels[rows])
    one = 2 * saved + 4 * params.numel() * params.element_size()
    if device.type == "cuda" and trainer.local.precision == "float32":
        one += 2 * unfolded[0] * params.element_size()
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 256 << 20
    return max(1, min(1024, room // max(one, 1)))
