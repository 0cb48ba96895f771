"""Many cells at once: a process for each place on a device, which runs one cell after another.

A cell that fails is reported and the others go on; its process is replaced, because an error on a
GPU may have left it unusable. Processes end with the one that started them, however that ends.
"""

import fcntl
import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from skymask.environment import reuse_memory
from skymask.errors import InputError
from skymask.records import replace_file, writing
from skymask.tables.work import Places, Task, run_cell

GRACE = 15.0
"""Seconds that running cells get after the time is up, to come to their end."""
KILL = 30.0
"""Seconds after that in which a cell must have stopped by itself; a round may be long."""
_SHOWN = 0.2
"""Seconds between two messages about a cell's rounds."""
_STOP = "stop"


@dataclass(frozen=True)
class Event:
    """What happened to a task."""

    kind: Literal["round", "finished", "failed", "stopped"]
    task: Task
    rounds: int = 0
    """For "round": how many rounds it has behind it."""
    record: dict[str, Any] | None = None
    """For "finished"."""
    why: str = ""
    """For "failed": one line."""


def sweep(
    tasks: Sequence[Task],
    out: Path,
    devices: Sequence[str],
    jobs: int,
    *,
    seconds: float = float("inf"),
    grace: float = GRACE,
    data_dir: Path | None = None,
    command: str | None = None,
    watch: Callable[[Event], None] = lambda event: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run `tasks` in this order, `jobs` at once on each of the `devices`.

    After `seconds` no more are started; `grace` seconds later those that run are stopped at the
    end of their round, with a checkpoint, and `KILL` seconds later by force. `watch` is told what
    happens. Raises `InputError` where another sweep writes to `out`.
    """
    settings = {"jobs": jobs, "data_dir": data_dir, "command": command}
    begin = clock()
    with _locked(out):
        waiting = deque(tasks)
        workers = [_Worker(device, out, settings) for _ in range(jobs) for device in devices]
        asked = False
        try:
            while True:
                passed = clock() - begin
                for worker in workers:
                    if waiting and passed < seconds and worker.task is None:
                        worker.start(waiting.popleft())
                busy = {worker.connection: worker for worker in workers if worker.task is not None}
                if not busy:
                    break
                if passed >= seconds + grace and not asked:
                    asked = True
                    for worker in busy.values():
                        worker.stop()
                if passed >= seconds + grace + KILL:
                    for worker in busy.values():
                        worker.kill()
                for connection in wait(list(busy), timeout=0.5):
                    watch(busy[connection].event())  # type: ignore[index]
        except KeyboardInterrupt:
            _settle([worker for worker in workers if worker.task is not None], watch)
            raise
        finally:
            for worker in workers:
                worker.end()


def _settle(workers: Sequence["_Worker"], watch: Callable[[Event], None]) -> None:
    """Let running cells write their checkpoints; a second interruption does not wait for them."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + KILL
    for worker in workers:
        while worker.task is not None and time.monotonic() < until:
            if wait([worker.connection], timeout=0.5):
                watch(worker.event())


class _Worker:
    """A process on a device, started when there is something to do."""

    def __init__(self, device: str, out: Path, settings: dict[str, Any]) -> None:
        self.device, self.out, self.settings = device, out, settings
        self.task: Task | None = None
        self.process: Any = None
        self.killed = False

    def start(self, task: Task) -> None:
        """Run `task` next."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(
                target=_work, args=(theirs, self.device, self.out, self.settings), daemon=True
            )
            self.process.start()
            theirs.close()
            self.killed = False
        self.task = task
        self._send(task)

    def event(self) -> Event:
        """The next thing that the process says of its task, or that its end says."""
        task = self.task
        assert task is not None
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code, killed = self.process.exitcode, self.killed
            self._forget()
            if killed:
                return Event("stopped", task)
            why = f"its process died, exit status {code}"
            if code == -signal.SIGKILL:
                why += " (was there too little memory?)"
            return _failed(self.out, task, why, why)
        if kind == "round":
            return Event("round", task, rounds=content)
        self.task = None
        if kind == "finished":
            return Event("finished", task, record=content)
        if kind == "stopped":
            return Event("stopped", task)
        self.end()
        return _failed(self.out, task, *content)

    def stop(self) -> None:
        """Ask the process to stop at the end of the round."""
        self._send(_STOP)

    def kill(self) -> None:
        """Stop the process by force; the checkpoint stays."""
        self.killed = True
        self.process.kill()

    def end(self) -> None:
        """End the process, at once if it is busy."""
        if self.process is None:
            return
        self.connection.close()  # an idle one ends by itself
        if self.task is not None:
            self.process.kill()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._forget()

    def _send(self, what: Task | str) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `event` will say so
            self.connection.send(what)

    def _forget(self) -> None:
        self.process.close()
        self.process, self.task = None, None
        self.connection.close()


def _failed(out: Path, task: Task, why: str, trace: str) -> Event:
    path = Places(out).failure(task.key)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, f"{task.label}\n{trace.rstrip()}\n".encode())
    return Event("failed", task, why=why)


class _Stopped(Exception):
    """The sweep's time is up."""


def _work(connection: Connection, device: str, out: Path, settings: dict[str, Any]) -> None:
    """What a worker's process does: tasks, until there are none, one fails, or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and asks to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # results shall not depend on how many run side by side
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current one
    reuse_memory()
    shown = 0.0

    def watch(record: dict[str, Any]) -> None:
        nonlocal shown
        if connection.poll():
            connection.recv()
            raise _Stopped
        if time.monotonic() - shown > _SHOWN:
            shown = time.monotonic()
            connection.send(("round", record["round"] + 1))

    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        if task == _STOP:  # it was finished when it was to be stopped
            continue
        try:
            record = run_cell(task, out, device, watch=watch, **settings)
            gc.collect()  # others share the device: what the cell is done with is theirs
            torch.cuda.empty_cache()
        except _Stopped:
            connection.send(("stopped", None))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            why = f"{type(error).__name__}: {lines[0]}"
            connection.send(("failed", (why, traceback.format_exc())))
            return
        else:
            connection.send(("finished", record))


def _end_with_parent() -> None:
    """End this process when the one that started it ends, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else sweeps into `out`; the lock goes when this process does."""
    path = out / "runs" / ".lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another sweep writes to {out}; wait for its end, or choose another --out"
            ) from None
        yield
