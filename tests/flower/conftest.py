"""What Flower wants to know of the process before it makes a message."""

import pytest

pytest.importorskip("flwr", reason="install the flower extra")

from flwr.app.message import arrayrecord
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages carry the run and the node of the process that makes them."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage at every array that it unpacks: 0.2 s each in a large process."""
    monkeypatch.setattr(arrayrecord.gc, "collect", lambda: 0)
