"""The three public data sets: where they come from, their files and the files' known digests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from skymask.data.formats import unpack_gzip
from skymask.errors import InputError


@dataclass(frozen=True)
class OfficialFile:
    """One file of a data set; `path` is relative to the data set's folder, with '/'.

    `digest` is 'KIND:HEX', with one of the kinds of `digest_of`, or empty where none is known
    (then the file's shape and range are all that is checked).
    """

    path: str
    digest: str = ""


@dataclass(frozen=True)
class Archive:
    """One download: a plain file of the data set, a .tar.gz or a .zip that holds its folder.

    Where `inner` is given, the download is a .zip around the archive of that name. `digest` is
    the digest of the archive that holds the files: the inner one, if there is one.
    """

    url: str
    digest: str
    inner: str = ""


@dataclass(frozen=True)
class OfficialSet:
    """A data set in the layout of its official archive: `folder` and the `files` in it."""

    name: str
    folder: str
    files: tuple[OfficialFile, ...]
    archives: tuple[Archive, ...]
    size: str
    """How much is downloaded, for a person."""

    @property
    def origin(self) -> str:
        """Where a person gets it: one address, or some names and the address of their folder."""
        urls = [archive.url for archive in self.archives]
        if len(urls) == 1:
            return urls[0]
        names = ", ".join(url.rpartition("/")[2] for url in urls)
        return f"{names} from {urls[0].rpartition('/')[0]}/"


def digest_of(data: bytes, kind: str, name: str) -> str:
    """Hex digest of `data`: md5, sha256, git-blob (SHA-1 as git does it) or gzip-sha256.

    The last is taken over the unpacked content, because the same content is distributed in
    differently compressed files. MD5 is what the authors published; it finds accidents, and the
    files that have no better digest are parsed as if they were hostile.
    """
    if kind == "md5":
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    if kind == "sha256":
        return hashlib.sha256(data).hexdigest()
    if kind == "git-blob":
        head = b"blob %d\0" % len(data)
        return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()
    if kind == "gzip-sha256":
        return hashlib.sha256(unpack_gzip(data, name)).hexdigest()
    raise InputError(f"digest kind {kind!r} of {name} is not known")


def check(data: bytes, digest: str, name: str, remedy: str) -> None:
    """Raise an `InputError` that calls `name` corrupt and says `remedy`, if the digest differs."""
    if not digest:
        return
    kind, _, expected = digest.partition(":")
    try:
        found = digest_of(data, kind, name)
    except InputError as error:
        raise InputError(f"{name} is corrupt ({error}); {remedy}") from None
    if found != expected:
        raise InputError(
            f"{name} is corrupt: its {kind} digest is {found[:12]}... but must be "
            f"{expected[:12]}...; {remedy}"
        )


def read(official: OfficialSet, folder: Path, path: str) -> bytes:
    """The bytes of one file of the set in `folder`, checked against its known digest."""
    file = next(file for file in official.files if file.path == path)
    where = folder / path
    try:
        data = where.read_bytes()
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from None
    remedy = (
        "delete the file and run again to download it, or put the official one there: "
        + official.origin
    )
    check(data, file.digest, str(where), remedy)
    return data


_ZALANDO = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"

OFFICIAL: dict[str, OfficialSet] = {
    "fashion-mnist": OfficialSet(
        name="fashion-mnist",
        folder="fashion-mnist",
        files=(
            OfficialFile(
                "train-images-idx3-ubyte.gz",
                "gzip-sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            OfficialFile(
                "train-labels-idx1-ubyte.gz",
                "gzip-sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            OfficialFile(
                "t10k-images-idx3-ubyte.gz",
                "gzip-sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            OfficialFile(
                "t10k-labels-idx1-ubyte.gz",
                "gzip-sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        archives=(
            Archive(
                _ZALANDO + "train-images-idx3-ubyte.gz",
                "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            ),
            Archive(
                _ZALANDO + "train-labels-idx1-ubyte.gz",
                "md5:25c81989df183df01b3e8a0aad5dffbe",
            ),
            Archive(
                _ZALANDO + "t10k-images-idx3-ubyte.gz",
                "md5:bef4ecab320f06d8554ea6380940ec79",
            ),
            Archive(
                _ZALANDO + "t10k-labels-idx1-ubyte.gz",
                "md5:bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        size="31 MB",
    ),
    "cifar-10": OfficialSet(
        name="cifar-10",
        folder="cifar-10-batches-py",
        files=(
            OfficialFile("data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
            OfficialFile("data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
            OfficialFile("data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
            OfficialFile("data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
            OfficialFile("data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
            OfficialFile("test_batch", "md5:40351d587109b95175f43aff81a1287e"),
        ),
        archives=(
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "md5:c58f30108f718f92721af3b95e74349a",
            ),
        ),
        size="170 MB",
    ),
    "har": OfficialSet(
        name="har",
        folder="UCI HAR Dataset",
        files=(
            OfficialFile("train/X_train.txt", "git-blob:8b6911d161333f14b6550c5b4737b94853d5d04b"),
            OfficialFile("train/y_train.txt"),
            OfficialFile("train/subject_train.txt"),
            OfficialFile("test/X_test.txt", "git-blob:14a4409a7ab6fe9b873015d87b720ef716b04363"),
            OfficialFile("test/y_test.txt"),
            OfficialFile("test/subject_test.txt"),
        ),
        archives=(
            Archive(
                "https://archive.ics.uci.edu/static/public/240/"
                "human+activity+recognition+using+smartphones.zip",
                "sha256:2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0",
                inner="UCI HAR Dataset.zip",
            ),
        ),
        size="61 MB",
    ),
}
