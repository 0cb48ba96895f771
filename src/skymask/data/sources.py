"""Where data sets come from: found in the data directory, else downloaded, always checked."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from skymask.data import download, embedded
from skymask.data.formats import read_cifar_batch, read_column, read_idx, read_table, unpack_gzip
from skymask.data.official import OFFICIAL, OfficialSet, read
from skymask.errors import InputError, unknown
from skymask.randomness import generator
from skymask.types import Batch, Dataset

SYSTEM_FOLDER = Path("/usr/share/datasets")
"""Where Debian's packages put data sets."""

_HAR_FEATURES, _HAR_SUBJECTS, _HAR_TRAIN_SHARE = 561, 30, 0.7


def search_path(data_dir: Path | None = None) -> list[Path]:
    """The folders that are searched, in order; the first is the one that downloads go to.

    That is `data_dir`, else the environment variable SKYMASK_DATA, else `skymask` in the user's
    cache directory (XDG_CACHE_HOME or ~/.cache); and always /usr/share/datasets.
    """
    if data_dir is not None:
        first = Path(data_dir)
    elif os.environ.get("SKYMASK_DATA"):
        first = Path(os.environ["SKYMASK_DATA"])
    elif os.environ.get("XDG_CACHE_HOME"):
        first = Path(os.environ["XDG_CACHE_HOME"]) / "skymask"
    else:
        first = Path.home() / ".cache" / "skymask"
    return [first.expanduser(), SYSTEM_FOLDER]


def official(name: str) -> OfficialSet:
    """The files and archives of a data set; `InputError` for a name without any."""
    if name not in DATA_SETS:
        raise unknown("data set", name, DATA_SETS)
    if name not in OFFICIAL:
        raise InputError(f"data set {name!r} is built in: it has no files to find or to download")
    return OFFICIAL[name]


def find(name: str, data_dir: Path | None = None) -> Path | None:
    """The folder that `load` would read the data set from, or None if no folder has all its files.

    Only says that the files are there; `load` checks what is in them. Raises `InputError` for the
    built-in sets, which have no files: `OFFICIAL` has the names of those that do.
    """
    wanted = official(name)
    folders = [place / wanted.folder for place in search_path(data_dir)]
    return next((folder for folder in folders if not missing(wanted, folder)), None)


def missing(wanted: OfficialSet, folder: Path) -> list[str]:
    """Which of the data set's files are not in `folder`."""
    return [file.path for file in wanted.files if not os.path.isfile(folder / file.path)]


def fetch(name: str, data_dir: Path | None = None) -> Path:
    """The folder with the data set's files, downloaded to the data directory if it is absent.

    Raises `InputError` that says where was looked and what to do, if the download is impossible
    or does not have the published digest; then nothing is left behind.
    """
    found = find(name, data_dir)
    if found is not None:
        return found
    wanted, places = official(name), search_path(data_dir)
    try:
        return download.download(wanted, places[0])
    except InputError as error:
        looked = []
        for place in places:
            lacks = missing(wanted, place / wanted.folder)
            partly = len(lacks) < len(wanted.files)
            looked.append(f"{place / wanted.folder}{f' (lacks {lacks[0]})' if partly else ''}")
        raise InputError(
            f"data set {name!r} is not in {' or '.join(looked)}, and downloading it failed: "
            f"{error}. Get {wanted.origin} and put its files ({wanted.files[0].path}, ...) into "
            f"{places[0] / wanted.folder}, or name another directory with SKYMASK_DATA or "
            "--data-dir"
        ) from None


def load(name: str, data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """The data set called `name`, from its files if it has any; see `search_path` and `fetch`.

    `seed` draws the test set of `digits` and `har` and all of `synthetic`; the others have an
    official test set. Raises `InputError` for an unknown name, a set that is neither found nor
    downloadable, and a file that is corrupt.
    """
    if name not in DATA_SETS:
        raise unknown("data set", name, DATA_SETS)
    return DATA_SETS[name](data_dir, seed)


def digits(data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """Handwritten digits, 8 x 8, that ship with scikit-learn: 1,438 to train on, 359 to test."""
    return embedded.digits(seed)


def synthetic(data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """Ten overlapping Gaussian clusters in 20 dimensions: 2,000 to train on, 500 to test."""
    return embedded.synthetic(seed)


def fashion_mnist(data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """Fashion-MNIST, 28 x 28 grey images in [0, 1]: 60,000 to train on, 10,000 to test."""
    wanted = OFFICIAL["fashion-mnist"]
    folder = fetch(wanted.name, data_dir)

    def part(stem: str) -> Batch:
        def array(path: str) -> NDArray[np.uint8]:
            name = str(folder / path)
            return read_idx(unpack_gzip(read(wanted, folder, path), name), name)

        images = torch.from_numpy(array(f"{stem}-images-idx3-ubyte.gz").astype(np.float32))
        labels = torch.from_numpy(array(f"{stem}-labels-idx1-ubyte.gz").astype(np.int64))
        return Batch(images.div_(255).unsqueeze_(1), labels)

    return Dataset(wanted.name, part("train"), part("t10k"), 10)


def cifar_10(data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """CIFAR-10, 32 x 32 colour images: 50,000 to train on, 10,000 to test.

    Each channel is standardised by the mean and standard deviation of the training images.
    """
    wanted = OFFICIAL["cifar-10"]
    folder = fetch(wanted.name, data_dir)
    batches = [
        read_cifar_batch(read(wanted, folder, file.path), str(folder / file.path))
        for file in wanted.files
    ]
    images = np.concatenate([batch for batch, _ in batches[:-1]])  # the last is the test batch
    labels = np.concatenate([batch for _, batch in batches[:-1]])
    # Exact moments from how often each of the 256 values occurs; the same table then maps values.
    values = np.arange(256.0)
    table = np.empty((3, 256), np.float32)
    for channel in range(3):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, 0].size
        mean = share @ values
        table[channel] = (values - mean) / np.sqrt(share @ (values - mean) ** 2)

    def part(raw: NDArray[np.uint8], targets: NDArray[np.uint8]) -> Batch:
        inputs = np.empty(raw.shape, np.float32)
        for channel in range(3):
            inputs[:, channel] = table[channel][raw[:, channel]]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.int64)))

    return Dataset(wanted.name, part(images, labels), part(*batches[-1]), 10)


def har(data_dir: Path | None = None, seed: int = 1) -> Dataset:
    """UCI HAR, 561 features of a phone's movements, 6 activities: 30 persons, the natural clients.

    The official train and test files are merged (10,299 rows) and split anew, 70 to 30 within each
    subject by `seed`: the official split keeps whole subjects for testing, which would leave
    them without a client. Features are standardised by the mean and standard deviation of the
    training rows; a feature that is constant there becomes 0.
    """
    wanted = OFFICIAL["har"]
    folder = fetch(wanted.name, data_dir)

    def part(stem: str) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        def file(letter: str) -> tuple[bytes, str]:
            path = f"{stem}/{letter}_{stem}.txt"
            return read(wanted, folder, path), str(folder / path)

        data, name = file("X")
        table = read_table(data, _HAR_FEATURES, name)
        data, name = file("y")
        activity = read_column(data, 1, 6, name)
        data, name = file("subject")
        subject = read_column(data, 1, _HAR_SUBJECTS, name)
        if not len(table) == len(activity) == len(subject):
            raise InputError(
                f"{folder / stem}: the files X, y and subject have {len(table)}, {len(activity)} "
                f"and {len(subject)} rows but must have the same number; get them again from "
                f"{wanted.archives[0].url}"
            )
        return table, activity - 1, subject - 1

    features, labels, subjects = (
        torch.from_numpy(np.concatenate(pair))
        for pair in zip(part("train"), part("test"), strict=True)
    )
    train = split_within(subjects, _HAR_TRAIN_SHARE, generator(seed, "har"))
    inputs = standardised(features, train)
    return Dataset(
        wanted.name,
        Batch(inputs[train], labels[train]),
        Batch(inputs[~train], labels[~train]),
        6,
        subjects[train],
    )


def split_within(subjects: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Mark `share` of each subject's rows, rounded and drawn at random: (N,) bool."""
    marked = torch.zeros(len(subjects), dtype=torch.bool)
    for subject in torch.unique(subjects):
        rows = (subjects == subject).nonzero().squeeze(1)
        chosen = torch.randperm(len(rows), generator=random)[: round(share * len(rows))]
        marked[rows[chosen]] = True
    return marked


def standardised(features: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """`features` (N, k) with mean 0 and standard deviation 1 over the `train` rows, float32.

    A feature that is constant over those rows is only centred, never divided by zero.
    """
    deviation, mean = torch.std_mean(features[train], dim=0, correction=0)
    constant = features[train].amax(0) == features[train].amin(0)
    return ((features - mean) / deviation.masked_fill(constant, 1.0)).float()


DATA_SETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar_10,
    "har": har,
    "synthetic": synthetic,
}
"""Every data set by name: called with the data directory (or None) and the seed."""
