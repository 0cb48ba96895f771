"""What is tried to break SkyMask, as tables: `python -m benchmarks.reliability`."""

import argparse
import importlib
import os
import shlex
import sys

import torch

from benchmarks.writing import markdown_table, write
from skymask.environment import device_name, versions

PARTS = ("hostile", "fuzz", "crashes", "load", "determinism")


def main() -> None:
    """Try each part and write its table."""
    parser = argparse.ArgumentParser(prog="benchmarks.reliability", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="again for more parts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="as few tries as the tests make")
    parser.add_argument("--python", help="an interpreter that has ByzFL, for the rules beside ours")
    o = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    words = ["PYTHON" if word == o.python else word for word in sys.argv[1:]]
    for name in o.only or PARTS:
        part = importlib.import_module(f"benchmarks.reliability.{name}")
        others = {"python": o.python} if name == "hostile" else {}
        rows = part.measure(o.seed, thorough=not o.quick, **others)
        write(
            f"reliability/{name}",
            part.TITLE,
            markdown_table(part.COLUMNS, [[str(row[c]) for c in part.COLUMNS] for row in rows]),
            {
                "conditions": {
                    "command": shlex.join(["python", "-m", "benchmarks.reliability", *words]),
                    "device": device_name(torch.device("cpu")),
                    "threads": torch.get_num_threads(),
                    "versions": versions(),
                },
                "seed": o.seed,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
