"""Where a run takes place: versions and devices, as results name them."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


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
