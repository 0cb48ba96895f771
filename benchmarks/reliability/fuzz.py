"""Hostile bytes for every parser: `python -m benchmarks.reliability.fuzz TARGET SEED INPUTS`.

Each target of `parsers` gets the classics (`mutation.classics`), then mutations of valid files, and
where atheris is installed as many inputs again that atheris steers by what code they reach. Every
target runs in a process of its own, with a bound on its memory; one that never ends is stopped.
"""

import argparse
import json
import random
import resource
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
    "of them steered by atheris",
    "accepted",
    "InputError",
    "crashes",
    "which",
    "slow",
    "memory, MiB",
)
SLOW = 10.0
"""Seconds that one input may take."""
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
            self.crashes.setdefault(f"{type(error).__name__} in {_where(error)}", number)
        took = time.perf_counter() - begin
        self.longest = max(self.longest, took)
        self.counts["slow"] += took > SLOW

    def told(self) -> dict[str, Any]:
        """As JSON."""
        grown = (_peak() - self.begin) / 2**20
        return {**self.counts, "which": self.crashes, "longest": self.longest, "grown": grown}


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
    """A row for each target. Thorough: 10,000 mutations each, and atheris where it is there."""
    from benchmarks.reliability.parsers import TARGETS

    count, seconds = (10_000, 120.0) if thorough else (200, 30.0)
    steered = [False, True] if thorough and find_spec("atheris") else [False]
    return [
        _row(name, [_tried(name, seed, count, seconds, s) for s in steered]) for name in TARGETS
    ]


def _row(target: str, tallies: list[dict[str, Any]]) -> dict[str, object]:
    def total(name: str) -> int:
        return sum(tally.get(name, 0) for tally in tallies)

    return {
        "target": target,
        "inputs": total("inputs"),
        "of them steered by atheris": sum(tally.get("inputs", 0) for tally in tallies[1:]),
        "accepted": total("accepted"),
        "InputError": total("InputError"),
        "crashes": total("crashes"),
        "which": "; ".join(sorted({name for tally in tallies for name in tally["which"]})),
        "slow": total("slow"),
        "memory, MiB": round(max(tally["grown"] for tally in tallies)),
    }


def _tried(target: str, seed: int, count: int, seconds: float, steered: bool) -> dict[str, Any]:
    """The tally of a process that tries the target for at most about so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tally.json"
        command = [sys.executable, "-m", "benchmarks.reliability.fuzz", target, str(seed)]
        command += [str(count), f"--seconds={seconds}", f"--out={out}"]
        try:
            done = subprocess.run(
                command + ["--steered"] * steered,
                capture_output=True,
                text=True,
                timeout=2 * seconds + 60,
                cwd=Path(__file__).parents[2],
                check=False,
            )
            ended = f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = "an input that never ends"
            done = None
        told: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"which": {}}
        told.setdefault("grown", 0.0)
        if done is None or done.returncode:
            told["crashes"] = told.get("crashes", 0) + 1
            told["which"][ended] = told.get("inputs", 0)
        return told


def main() -> None:
    """Try one target, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("seed", type=int)
    parser.add_argument("inputs", type=int, help="mutations, after the classics")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="file for the counts, as JSON")
    parser.add_argument("--steered", action="store_true", help="by atheris")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if o.steered:
            _steer(o, Path(folder))
            return
        tally = Tally(o.target, Path(folder))
        _bound_memory()
        end, told = time.monotonic() + o.seconds, 0.0
        for data in inputs(o.target, o.seed, o.inputs):
            if time.monotonic() > told + 0.5:  # before an input that may never end
                told = time.monotonic()
                _write(tally, o.out)
            tally.feed(data)
            if time.monotonic() > end:
                break
        _write(tally, o.out)
    if o.out is None:
        print(json.dumps(tally.told(), indent=1))


def _steer(o: argparse.Namespace, folder: Path) -> None:
    """Let atheris choose the inputs. It ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["skymask"]):
        from benchmarks.reliability.parsers import TARGETS
    (folder / "corpus").mkdir()
    (folder / "files").mkdir()
    pool = [valid for valid in TARGETS[o.target].seeds() if len(valid) < 1 << 16]
    for index, valid in enumerate(pool):
        (folder / "corpus" / str(index)).write_bytes(valid)
    tally = Tally(o.target, folder / "files")
    _bound_memory()
    told = [0.0]

    def once(data: bytes) -> None:
        tally.feed(data)
        if tally.counts["inputs"] >= o.inputs or time.monotonic() > told[0] + 0.5:
            told[0] = time.monotonic()
            _write(tally, o.out)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutated([data, *pool], draw)[:most]

    flags = [f"-runs={o.inputs}", f"-max_total_time={o.seconds:.0f}", f"-seed={o.seed + 1}"]
    flags += ["-max_len=65536", "-rss_limit_mb=0", "-verbosity=0", str(folder / "corpus")]
    atheris.Setup([sys.argv[0], *flags], once, custom_mutator=mutator)
    atheris.Fuzz()


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _write(tally: Tally, out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(tally.told()))


if __name__ == "__main__":
    main()
