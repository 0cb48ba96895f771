"""Hostile bytes steered by coverage: `python -m benchmarks.reliability.steered TARGET 1 SECONDS`.

atheris changes the valid files of a target of `parsers`, keeps what reaches code of SkyMask that
nothing reached before, and changes that again. It is no dependency of the project: install it where
this interpreter finds it. `fuzz` runs this for every target, in a process of its own.

atheris must see modules when they are imported. So nothing here, nor in the package, imports
SkyMask before it does.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

MOST = 1 << 16
"""Bytes of an input."""


def main() -> None:
    """Try one target until its time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--out", type=Path, help="file for the counts, as JSON")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()  # atheris never returns: this process is left to clean up
        if child == 0:
            _steer(o, Path(folder))
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


def _steer(o: argparse.Namespace, folder: Path) -> None:
    assert "skymask" not in sys.modules  # else atheris would see nothing
    with atheris.instrument_imports(include=["skymask"]):
        from benchmarks.reliability.fuzz import NEVER, Tally, bound_memory
        from benchmarks.reliability.mutation import classics, mutated
        from benchmarks.reliability.parsers import TARGETS
    (folder / "corpus").mkdir()
    (folder / "files").mkdir()
    pool = [valid for valid in TARGETS[o.target].seeds() if len(valid) < MOST]
    small = [*pool, *(data for data in classics(pool[0]) if len(data) < 1_000)]
    for index, data in enumerate(small):
        (folder / "corpus" / str(index)).write_bytes(data)
    tally = Tally(o.target, folder / "files")
    bound_memory()
    end, told = time.monotonic() + o.seconds, 0.0

    def once(data: bytes) -> None:
        nonlocal told
        tally.feed(data)
        now = time.monotonic()
        if now > min(end, told + 0.5):
            told = now
            tally.write(o.out)
        if now > end:
            if o.out is None:
                print(tally.told(), flush=True)
            os._exit(0)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutated([data, *pool], draw)[:most]

    flags = [f"-seed={o.seed + 1}", f"-max_len={MOST}", f"-timeout={NEVER}"]
    flags += ["-rss_limit_mb=0", "-verbosity=0", str(folder / "corpus")]
    atheris.Setup([sys.argv[0], *flags], once, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
