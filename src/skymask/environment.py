"""Where a run takes place: versions and devices, as results name them."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from skymask.errors import InputError


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
    packages = ("skymask", "torch", "numpy", "scikit-learn")
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


def device_name(device: torch.device) -> str:
    """The device as results should name it."""
    if device.type == "cuda":
        return f"1x {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {os.cpu_count()} cores"
