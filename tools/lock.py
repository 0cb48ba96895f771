"""Write the lock files: `make lock`, and `make lock UPGRADE=--upgrade` to move the pins.

uv resolves the development extra once for every system and every Python that is supported, with the
digests of all files of each release. What is pinned already stays, unless `--upgrade` is given. The
result is split, because torch comes in two builds: `dev.txt` has what both need, `torch.txt` the
build that PyPI has, with CUDA's libraries. `torch-cpu.txt`, the CPU build, is kept by hand: it is
not on PyPI, and its digests are nowhere that uv would look.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
HEADS = {
    "dev.txt": "# Everything but torch. Made by `make lock`; not to be edited.\n",
    "torch.txt": "# PyPI's build of torch, and what only it needs. Made by `make lock`.\n",
}
WITH_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def entries(text: str) -> list[str]:
    """The requirements of a lock file, each with the lines of its digests."""
    return re.findall(r"^[\w.-]+==.*\n(?:[ \t]+.*\n)*", text, re.MULTILINE)


def split(text: str) -> dict[str, str]:
    """The lock files by name, of the one that uv wrote."""
    parts: dict[str, list[str]] = {name: [] for name in HEADS}
    for entry in entries(text):
        # uv ends an entry with a comment that says who asked for it.
        told = "".join(line for line in entry.splitlines(True) if not line.lstrip().startswith("#"))
        parts["torch.txt" if WITH_TORCH.match(entry) else "dev.txt"].append(told)
    return {name: head + "".join(parts[name]) for name, head in HEADS.items()}


def version(name: str) -> str:
    """The release of torch that a lock file pins, without its local tag (`+cpu`)."""
    found = re.search(r"^torch==([\d.]+)", (LOCKS / name).read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"locks/{name} does not pin torch")
    return found[1]


def main() -> None:
    """Write `dev.txt` and `torch.txt`, and complain if `torch-cpu.txt` has another release."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lock.txt"
        before = [LOCKS / name for name in HEADS if (LOCKS / name).exists()]
        path.write_text("".join(each.read_text(encoding="utf-8") for each in before))
        command = ["pip", "compile", "pyproject.toml", "--extra", "dev", "--universal", "--quiet"]
        options = ["--python-version", "3.11", "--generate-hashes", "--no-header"]
        subprocess.run(
            [sys.executable, "-m", "uv", *command, *options, "-o", str(path), *sys.argv[1:]],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for name, text in split(path.read_text(encoding="utf-8")).items():
            (LOCKS / name).write_text(text, encoding="utf-8")
    if version("torch.txt") != version("torch-cpu.txt"):
        raise SystemExit(
            f"locks/torch-cpu.txt pins torch {version('torch-cpu.txt')} but must have the release "
            f"of locks/torch.txt, {version('torch.txt')}: put its version and digests there"
        )


if __name__ == "__main__":
    main()
