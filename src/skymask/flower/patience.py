"""A grid that does not let a strategy wait for nodes for ever."""

import time
from collections.abc import Iterable
from typing import Any

from flwr.serverapp import Grid

from skymask.errors import InputError


class TooFewNodes(InputError):
    """Fewer nodes are connected than the strategy wants, for longer than the deadline."""


class Patient:
    """`grid`, but asking it for the nodes raises `TooFewNodes` once `deadline` seconds are over.

    Flower's strategies ask once a second until there are enough. One of these is made for every
    time that a strategy chooses nodes, so the time counts from there.
    """

    def __init__(self, grid: Grid, deadline: float, strategy: str) -> None:
        self._grid, self._deadline, self._strategy = grid, deadline, strategy
        self._begin = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid's own, until the deadline."""
        nodes = list(self._grid.get_node_ids())
        waited = time.monotonic() - self._begin
        if waited > self._deadline:
            raise TooFewNodes(
                f"{len(nodes)} nodes are connected after {waited:.0f} s, and {self._strategy} "
                f"still waits for more (node_deadline is {self._deadline:g} s); start more "
                "SuperNodes, or lower min_available_nodes and min_train_nodes"
            )
        return nodes
