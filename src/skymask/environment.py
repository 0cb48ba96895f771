"""Where a run takes place: versions and devices, as results name them."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from skymask.errors import InputError

_SMALL = 1 << 28
"""Bytes that are there or the process would not be."""


def reuse_memory() -> bool:
    """Let this process keep large blocks of memory that it frees, for its next allocation.

    By default glibc gives them back to the system, which hands out fresh pages the next time and
    clears each of them first: a fifth of the time of a round on a CPU. The process then stays as
    large as it ever was. For a process of its own (the command line), not for a library to decide.
    Returns whether it took effect; elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, 2**31 - 1) == 1 for option in (mmap_threshold, trim_threshold))


def installed() -> dict[str, str]:
    """Versions of all that SkyMask uses, also where only some features need it."""
    others = ("safetensors", "typer", "rich", "triton")
    return versions() | {package: _version(package) for package in others}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("skymask", "torch", "numpy", "scikit-learn", "numba")
    python = {"python": platform.python_version()}
    return python | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # SkyMask itself may run from its source folder
        return "not installed"


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device called `name`; without one the first GPU if there is one, else the CPU.

    Raises `InputError` where there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on `device`; None where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    told = Path("/proc/meminfo")  # of Linux
    lines = told.read_text(encoding="ascii").splitlines() if told.exists() else []
    available = (line for line in lines if line.startswith("MemAvailable:"))
    return next((int(line.split()[1]) << 10 for line in available), None)


def require_room(needed: int, device: torch.device, what: str, instead: str) -> None:
    """Raise an `InputError` where `what` needs more bytes than `device` has free.

    `instead` says what would fit. A small need is not looked at, because asking takes time.
    """
    if needed < _SMALL:
        return
    free = free_memory(device)
    if free is not None and needed > free:
        raise InputError(
            f"{what} needs {_gigabytes(needed)} of memory, and {device} has {_gigabytes(free)} "
            f"free; {instead}"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"


def device_name(device: torch.device) -> str:
    """The device as results should name it."""
    if device.type == "cuda":
        return f"1x {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {os.cpu_count()} cores"
