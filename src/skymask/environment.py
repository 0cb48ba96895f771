"""Where a run takes place: versions and devices, as results name them."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


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


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("skymask", "torch", "numpy", "scikit-learn")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from its source folder
            found[package] = "not installed"
    return found


def device_name(device: torch.device) -> str:
    """The device as results should name it."""
    if device.type == "cuda":
        return f"1x {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {os.cpu_count()} cores"
