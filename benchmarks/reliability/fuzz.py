"""Hostile bytes for every parser: `python -m benchmarks.reliability.fuzz TARGET SEED INPUTS`.

Each target of `parsers` gets the classics (`mutation.classics`), then mutations of valid files, and
where atheris is installed inputs that atheris steers by what code they reach (`steered`). Every
target runs in a process of its own, with a bound on its memory; one that never ends is stopped.
"""

import argparse
import base64
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.reliability.mutation import classics, mutated
from skymask.errors import InputError

TITLE = "Hostile bytes, and what became of them"
COLUMNS = (
    "target",
    "inputs",
    "steered inputs",
    "accepted",
    "InputError",
    "crashes",
    "which",
    "slow",
    "memory, MiB",
)
SLOW = 10.0
"""Seconds that one input may take."""
NEVER = 60
"""Seconds after which an input counts as one that never ends: its process is stopped."""
MEMORY = 1024
"""MiB that the process may grow by. A data file may unpack to 256, held twice for a while."""
_SPARE = 4 << 30
"""Bytes of addresses that a process gets beyond what it has: more fails as on a full machine."""


class Tally:
    """What became of the inputs of one target."""

    def __init__(self, target: str, folder: Path) -> None:
        from benchmarks.reliability.parsers import TARGETS  # slow, and not needed to start others

        self.target, self.folder = TARGETS[target], folder
        self.counts: Counter[str] = Counter()
        self.crashes: dict[str, int] = {}
        """What was raised and where -> the number of the first input that did it."""
        self.examples: dict[str, str] = {}
        """What was raised and where -> the beginning of that input, in base 64."""
        self.longest = 0.0
        self.begin = _peak()

    def feed(self, data: bytes) -> None:
        """Try one input. A warning is a crash: nobody expects one of a parser."""
        number, begin = self.counts["inputs"], time.perf_counter()
        self.counts["inputs"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.target.feed(data, self.folder)
            self.counts["accepted"] += 1
        except InputError as error:
            str(error).encode("utf-8", "backslashreplace")
            self.counts["InputError"] += 1
        except Exception as error:
            self.counts["crashes"] += 1
            what = f"{type(error).__name__} in {_where(error)}"
            self.crashes.setdefault(what, number)
            self.examples.setdefault(what, base64.b64encode(data[:4096]).decode())
        took = time.perf_counter() - begin
        self.longest = max(self.longest, took)
        self.counts["slow"] += took > SLOW

    def told(self) -> dict[str, Any]:
        """As JSON."""
        grown = (_peak() - self.begin) / 2**20
        which = {"which": self.crashes, "examples": self.examples}
        return {**self.counts, **which, "longest": self.longest, "grown": grown}

    def write(self, out: Path | None) -> None:
        """`told` into a file, if any."""
        if out is not None:
            out.write_text(json.dumps(self.told()))


def inputs(target: str, seed: int, count: int) -> Iterator[bytes]:
    """The hostile inputs of a target: the classics and valid files, then `count` mutations."""
    from benchmarks.reliability.parsers import TARGETS

    pool = TARGETS[target].seeds()
    yield from pool
    yield from TARGETS[target].bombs()
    for valid in pool:
        if len(valid) < 1 << 16:
            yield from classics(valid)
    draw = random.Random(f"{seed} {target}")
    for _ in range(count):
        yield mutated(pool, draw)


def _peak() -> int:
    """Bytes that the process had at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(error: BaseException) -> str:
    """The innermost function of SkyMask that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "skymask" in Path(f.filename).parts] or frames[-1:]
    return f"{Path(own[-1].filename).name}:{own[-1].name}"


def measure(seed: int, *, thorough: bool) -> list[dict[str, object]]:
    """A row for each target. Thorough: 10,000 mutations each, and a minute of atheris if there."""
    from benchmarks.reliability.parsers import TARGETS

    rows = []
    for name in TARGETS:
        told = _tried("fuzz", name, seed, 10_000 if thorough else 200, 900)
        steered = _tried("steered", name, seed, 60) if thorough and find_spec("atheris") else None
        rows.append(_row(name, told, steered))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # it takes an hour
    return rows


def _row(target: str, told: dict[str, Any], steered: dict[str, Any] | None) -> dict[str, object]:
    tallies = [told] if steered is None else [told, steered]

    def total(name: str) -> int:
        return sum(tally.get(name, 0) for tally in tallies)

    absent = "none: --quick" if find_spec("atheris") else "none: atheris is not installed"
    return {
        "target": target,
        "inputs": told.get("inputs", 0),
        "steered inputs": absent if steered is None else steered.get("inputs", 0),
        "accepted": total("accepted"),
        "InputError": total("InputError"),
        "crashes": total("crashes"),
        "which": "; ".join(sorted({name for tally in tallies for name in tally["which"]})),
        "slow": total("slow"),
        "memory, MiB": round(max(tally["grown"] for tally in tallies)),
        "longest, s": round(max(tally.get("longest", 0.0) for tally in tallies), 2),
        "examples": {k: v for tally in tallies for k, v in tally.get("examples", {}).items()},
    }


def _tried(how: str, target: str, seed: int, *bounds: int) -> dict[str, Any]:
    """The tally of a process that tries the target: of this module, or of `steered`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tally.json"
        command = [sys.executable, "-m", f"benchmarks.reliability.{how}", target, str(seed)]
        done = subprocess.run(
            [*command, *map(str, bounds), f"--out={out}"],
            capture_output=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        told: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"which": {}}
        told.setdefault("grown", 0.0)
        if done.returncode:
            told["crashes"] = told.get("crashes", 0) + 1
            told["which"][f"the process ended with {done.returncode}"] = told.get("inputs", 0)
        return told


def main() -> None:
    """Try one target, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("seed", type=int)
    parser.add_argument("inputs", type=int, help="mutations, after the classics")
    parser.add_argument("seconds", type=float, nargs="?", default=60.0, help="at most")
    parser.add_argument("--out", type=Path, help="file for the counts, as JSON")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = Tally(o.target, Path(folder))
        bound_memory()
        end, told = time.monotonic() + o.seconds, 0.0
        for data in inputs(o.target, o.seed, o.inputs):
            if time.monotonic() > told + 0.5:  # before an input that may never end
                told = time.monotonic()
                tally.write(o.out)
            signal.alarm(NEVER)
            tally.feed(data)
            signal.alarm(0)
            if time.monotonic() > end:
                break
        tally.write(o.out)
    if o.out is None:
        print(json.dumps(tally.told(), indent=1))


def bound_memory() -> None:
    """Let this process have no more than `_SPARE` bytes of addresses beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
