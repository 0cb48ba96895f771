"""The round loop: clients train, the attack poisons, the defence decides, the model moves."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skymask.defences.screening import checked
from skymask.environment import device_name, usable_device, versions
from skymask.errors import InputError
from skymask.experiment import Experiment, to_json
from skymask.metrics import closeup, summarise, verdicts
from skymask.preparation import Run, attacks, how_many_take_part, prepare
from skymask.randomness import generator, key
from skymask.records import Checkpoint, RunFolder, is_kept
from skymask.root_loss import RootLoss
from skymask.types import Decision, Round, as_poison

_CHECKPOINT_SECONDS = 5.0
"""Least time between two checkpoints; how often they are written changes no result."""
_CHECKPOINT_COST = 20.0
"""Least time between two checkpoints, in times that it took to write the last one."""


@dataclass(frozen=True)
class Result:
    """What a run gave.

    `summary`: accuracy at the last evaluation, accuracy_last5 (mean of the last five),
    attack_success and attack_success_others (at the last evaluation, `metrics.evaluation`; None
    without a backdoor), fpr and fnr (means over the rounds in which they are defined; None if
    never),
    fallbacks (rounds in which the model stayed as it was because nobody was accepted), rounds,
    seconds, device, seed. `rounds`: one record a round. `params` (d,) and `buffers` (b,): the
    final global model, which `flat.assign` writes into a module.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    params: Tensor
    buffers: Tensor


def simulate(
    experiment: Experiment,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data_dir: str | Path | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
    command: str | None = None,
) -> Result:
    """Run `experiment`.

    Args:
        experiment: what to run.
        device: "cpu", "cuda", ...; without it the first GPU if there is one, else the CPU.
        out: a new folder for the run's records; without it nothing is written.
        resume: continue the run in `out` from its last checkpoint. On a CPU the finished run is
            bit for bit the one that was never interrupted, time fields aside.
        data_dir: where the data sets are (see `data.search_path`).
        watch: called with each round's record as the round ends. An exception that it raises
            ends the run there, with a checkpoint in `out`: nothing is lost when it is resumed.
        command: how the run was asked for, kept in the manifest.

    Raises:
        InputError: for everything a person can put right; nothing half-written is left.
    """
    experiment = experiment.resolved()
    where = usable_device(device)
    folder = None if out is None else RunFolder(Path(out))
    if resume and folder is None:
        raise InputError("resume is True but out is None; give the folder of the run to continue")
    manifest = {
        "experiment": to_json(experiment),
        "versions": versions(),
        "device": device_name(where),
        "threads": torch.get_num_threads(),
        "command": command,
    }
    if folder is not None and resume:
        _check_same(folder.manifest, manifest)
    run = prepare(experiment, where, data_dir)
    if attacks(experiment):
        manifest["malicious_clients"] = run.malicious.nonzero().flatten().tolist()
    params, buffers = (part.to(where) for part in run.server.model.initial())
    state = Checkpoint(0, params, buffers, None)
    records: list[dict[str, Any]] = []
    if folder is not None and resume:
        state = _continued(folder, state, where)
        records = folder.cut(state.rounds)
    elif folder is not None:
        folder.start(manifest)
    due = -math.inf  # the first round is saved: a memory that cannot be shows at once
    rounds = experiment.rounds or 0

    first = state.rounds
    for index in range(first, rounds):
        with _blamed(folder if resume and index == first else None):
            state, record, decision = _one_round(run, state)
        records.append(record)
        if folder is not None:
            if is_kept(index, rounds):
                clients = _participants(run, index)
                folder.append_closeup({"round": index, **closeup(decision, clients)})
            folder.append(record)
            if index + 1 == rounds or time.monotonic() > due:
                due = _saved(folder, state)
        if watch is not None:
            try:
                watch(record)
            except BaseException:
                if folder is not None:
                    _saved(folder, state)
                raise
    summary = summarise(records, experiment.seed, where)
    if folder is not None:
        folder.finish(summary)
    return Result(summary, records, state.params, state.buffers)


def _one_round(run: Run, state: Checkpoint) -> tuple[Checkpoint, dict[str, Any], Decision]:
    e, index = run.experiment, state.rounds
    stages: dict[str, float] = {}
    begin = time.perf_counter()
    clients = _participants(run, index)
    malicious = run.malicious[clients] & (attacks(e))
    with _timed(stages, "train"):
        batches = key(e.seed, "batches", index)
        # The root model is one more client: it must be trained as they are, and costs less so.
        trained, buffers = run.trainer(
            state.params, state.buffers, run.data, [*clients.tolist(), len(run.malicious)], batches
        )
        updates, own_buffers = trained[:-1], buffers[:-1]
    round = run.server.round(
        index,
        state.params,
        state.buffers,
        clients=clients,
        counts=run.data.counts[clients],
        client_buffers=own_buffers if own_buffers.numel() else None,
        memory=state.memory,
        server_update=trained[-1],
        server_buffers=buffers[-1] if own_buffers.numel() else None,
    )
    with _timed(stages, "attack"):
        updates, round, attack_memory = _attacked(run, updates, malicious, round, state)
    with _timed(stages, "defence"):
        decision = checked(e.defence(updates, round), e.defence, round)
    params = state.params + e.server_lr * decision.update
    buffers = state.buffers if decision.buffers is None else decision.buffers
    record = {"round": index, **verdicts(decision, clients, malicious)}
    if e.participation < 1:
        record["took_part"] = clients.tolist()
    if (index + 1) % e.eval_every == 0 or index + 1 == e.rounds:
        with _timed(stages, "evaluate"):
            record |= run.evaluate(params, buffers)
    record |= {"seconds": time.perf_counter() - begin, "stages": stages}
    moved = Checkpoint(index + 1, params, buffers, decision.memory, attack_memory)
    return moved, record, decision


def _participants(run: Run, index: int) -> Tensor:
    """Ids of the clients that take part in a round, ascending, (n,) int64."""
    e = run.experiment
    there = (
        (~run.malicious).nonzero().flatten() if e.honest_only else torch.arange(len(run.malicious))
    )
    if e.participation == 1:
        return there
    size = how_many_take_part(e, len(there))
    chosen = torch.randperm(len(there), generator=generator(e.seed, "participants", index))[:size]
    return there[chosen.sort().values]


def _attacked(
    run: Run, updates: Tensor, malicious: Tensor, round: Round, state: Checkpoint
) -> tuple[Tensor, Round, Any]:
    """The updates and the round as the server receives them, and what the attack remembers."""
    if not malicious.any():
        return updates, round, state.attack_memory
    known = replace(
        round,
        buffers=None if round.buffers is None else round.buffers.clone(),
        counts=None if round.counts is None else round.counts.clone(),
        # Recorded computations hold the root data set.
        loss=replace(round.loss, repeated={}) if isinstance(round.loss, RootLoss) else round.loss,
        root=None,
        server_update=None,
        server_buffers=None,
        memory=state.attack_memory,
        generator=generator(run.experiment.seed, "attack", round.index),
        own=run.own,
    )
    marks = malicious.to(updates.device)
    attack = run.experiment.attack
    sent = as_poison(attack.poison_updates(updates.clone(), marks, known))
    for field, value, before in (
        ("updates", sent.updates, updates),
        ("buffers", sent.buffers, round.buffers),
        ("counts", sent.counts, round.counts),
    ):
        if value is None:
            continue
        honest = ~marks.to(value.device)
        if before is None or value.shape != before.shape:
            wrong = f"{field} of shape {tuple(value.shape)}"
        elif not _same(value, before, honest):
            wrong = f"{field} whose honest rows are changed"
        else:
            continue
        raise InputError(
            f"attack {type(attack).__name__} returned {wrong}; it must return (n, d) updates, "
            "(n, b) buffers and (n,) counts if any, whose honest rows are unchanged"
        )
    buffers = round.buffers if sent.buffers is None else sent.buffers
    counts = round.counts if sent.counts is None else sent.counts
    return sent.updates, replace(round, buffers=buffers, counts=counts), sent.memory


def _same(some: Tensor, other: Tensor, rows: Tensor) -> bool:
    """Equal entry by entry in `rows`, where NaN equals NaN: an honest client may have diverged."""
    equal = some == other  # of all rows, because to take some out would copy both
    if not equal[rows].all():
        equal |= some.isnan() & other.isnan()
    return bool(equal[rows].all())


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `InputError` where the folder holds a run of another experiment.

    A field that the run's manifest is too old to have has its default.
    """
    usual = {field.name: field.default for field in fields(Experiment)}
    for name, value in wanted["experiment"].items():
        before = found["experiment"].get(name, usual[name])
        if before != value:
            raise InputError(f"the run to resume has {name} {before!r}, not {value!r}")
    for name in ("versions", "device", "threads"):
        if found.get(name) != wanted[name]:
            warnings.warn(
                f"the run was started with {name} {found.get(name)!r}, now it is {wanted[name]!r}: "
                "it will not be bit for bit the uninterrupted run",
                stacklevel=3,
            )


def _continued(folder: RunFolder, start: Checkpoint, device: torch.device) -> Checkpoint:
    """The checkpoint in the folder, or `start` where the run was stopped before its first.

    Raises `InputError` where it is of another model.
    """
    state = folder.load(device) or start
    for name in ("params", "buffers"):
        found, usual = getattr(state, name), getattr(start, name)
        if (found.shape, found.dtype) != (usual.shape, usual.dtype):
            raise InputError(
                f"the checkpoint in {folder.path} holds {name} of shape {tuple(found.shape)} and "
                f"{found.dtype} but the model has {tuple(usual.shape)} and {usual.dtype}"
            )
    return state


def _saved(folder: RunFolder, state: Checkpoint) -> float:
    """Write the checkpoint; returns when the next one may be due, in monotonic seconds."""
    begin = time.monotonic()
    folder.save(state)
    end = time.monotonic()
    return end + max(_CHECKPOINT_SECONDS, _CHECKPOINT_COST * (end - begin))


@contextmanager
def _blamed(folder: RunFolder | None) -> Iterator[None]:
    """Turns an error in the first round after a checkpoint, if any, into a sentence that names it.

    What a rule or an attack remembers is known to them alone: they find out what does not fit.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if folder is None:
            raise
        raise InputError(
            f"the run in {folder.path} cannot go on from its checkpoint, whose memory may be that "
            f"of another rule: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - begin
