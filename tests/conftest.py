"""What all tests share: where the real data sets are, and how hypothesis draws its examples."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow examples: how fast a machine is tells nothing about the
# code. On CI the examples are the same every time, so that a failure there is one of the change.
ON_CI = bool(os.environ.get("CI"))
settings.register_profile(
    "skymask",
    deadline=None,
    derandomize=ON_CI,
    database=None if ON_CI else settings.default.database,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("skymask")

# Most tensors here are tiny: a second thread only waits for the first, and ten times as long where
# something else keeps a core busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets; without one the test is skipped."""
    folder = os.environ.get("SKYMASK_DATA")
    if not folder:
        pytest.skip("set SKYMASK_DATA to a folder with the real data sets")
    assert Path(folder).is_dir(), f"SKYMASK_DATA is {folder!r} but must be a folder"
    return Path(folder)
