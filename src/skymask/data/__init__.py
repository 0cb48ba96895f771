"""Data sets, how they are divided among clients, and the server's root data set."""

from skymask.data.federation import Federation, divide, root_rows
from skymask.data.official import OFFICIAL
from skymask.data.partition import (
    PARTITIONS,
    BySubject,
    Dirichlet,
    Groups,
    Partition,
    SizeSkew,
    check_labels,
)
from skymask.data.sources import DATA_SETS, fetch, find, load, search_path

__all__ = [
    "DATA_SETS",
    "OFFICIAL",
    "PARTITIONS",
    "BySubject",
    "Dirichlet",
    "Federation",
    "Groups",
    "Partition",
    "SizeSkew",
    "check_labels",
    "divide",
    "fetch",
    "find",
    "load",
    "root_rows",
    "search_path",
]
