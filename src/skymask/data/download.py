"""Fetch an official archive, check it and unpack it: all of it, or nothing is left behind."""

import contextlib
import http.client
import io
import os
import struct
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from skymask.data.formats import MAX_UNPACKED
from skymask.data.official import Archive, OfficialSet, check
from skymask.errors import InputError

TIMEOUT = 30.0
"""Seconds that a server may stay silent."""

MAX_DOWNLOAD = 1 << 29
"""Bytes that one download may have: 512 MiB, three times the largest official archive."""

_CHUNK = 1 << 16
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, LookupError, OSError, OverflowError, RuntimeError, ValueError),
)
"""What the standard library raises on a damaged or encrypted archive."""


def download(wanted: OfficialSet, data_dir: Path) -> Path:
    """Download the data set's archives into `data_dir / wanted.folder`; returns that folder.

    Everything is collected and checked in a temporary folder in `data_dir`; only files that have
    their known digest are moved to where they belong. Raises `InputError` if the server cannot be
    reached, what comes is not what was published, or the disk cannot take it.
    """
    created = [folder for folder in (data_dir, *data_dir.parents) if not os.path.exists(folder)]
    try:
        return _download(wanted, data_dir)
    except BaseException as error:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise InputError(f"data directory {data_dir} cannot be written: {reason}") from None
        raise


def _download(wanted: OfficialSet, data_dir: Path) -> Path:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{wanted.name}-") as temporary:
        fresh = Path(temporary)
        for archive in wanted.archives:
            for path, content in _contents(archive, _get(archive.url), wanted).items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_bytes(content)
        for file in wanted.files:
            if not (fresh / file.path).is_file():
                raise InputError(f"what came from {wanted.archives[0].url} lacks {file.path}")
        folder = data_dir / wanted.folder
        for file in wanted.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / file.path, folder / file.path)
    return folder


def _get(url: str) -> bytes:
    """The bytes at `url`, with a progress bar if a person is looking."""
    from rich.console import Console  # slow to import, and only needed here
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    progress = Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    data = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply, progress:
            length = int(reply.headers.get("Content-Length") or 0)
            task = progress.add_task(url.rpartition("/")[2], total=length or None)
            while chunk := reply.read(_CHUNK):
                data.write(chunk)
                progress.update(task, advance=len(chunk))
                if data.tell() > MAX_DOWNLOAD:
                    raise InputError(f"{url} is larger than {MAX_DOWNLOAD:,} bytes")
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also the server's reply, and keeps the connection
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise InputError(f"{url} cannot be reached: {reason}") from None
    if length and data.tell() != length:
        raise InputError(f"{url} ended after {data.tell():,} of {length:,} bytes")
    return data.getvalue()


def _contents(archive: Archive, data: bytes, wanted: OfficialSet) -> dict[str, bytes]:
    """The data set's files in a download, by their path in its folder, each with its digest."""
    retry = "try again later, the download may have been damaged"
    source = archive.url
    if archive.inner:
        inner = _unzip(data, source, {archive.inner: archive.inner})
        if archive.inner not in inner:
            raise InputError(f"{source} does not hold {archive.inner}")
        data, source = inner[archive.inner], f"{archive.inner} in {source}"
    check(data, archive.digest, source, retry)
    members = {f"{wanted.folder}/{file.path}": file.path for file in wanted.files}
    if source.endswith(".tar.gz"):
        found = _untar(data, source, members)
    elif ".zip" in source:
        found = _unzip(data, source, members)
    else:
        found = {source.rpartition("/")[2]: data}
    digests = {file.path: file.digest for file in wanted.files}
    for path, content in found.items():
        check(content, digests.get(path, ""), f"{path} from {source}", retry)
    return {path: content for path, content in found.items() if path in digests}


def _safe(member: str, source: str, plain: bool, size: int) -> None:
    """Refuse an archive with a member that is a link or device, leads outside, or is a bomb.

    Only names that are known beforehand are ever written, so this is a second lock: an archive
    that tries is not the official one.
    """
    windows = PureWindowsPath(member)
    outside = PurePosixPath(member).is_absolute() or windows.drive or windows.root
    if outside or ".." in windows.parts or not plain:
        raise InputError(f"{source} is not safe to unpack: its member {member!r} leads elsewhere")
    if size > MAX_UNPACKED:
        raise InputError(f"{source} is not safe to unpack: its member {member!r} is too large")


def _untar(data: bytes, source: str, members: dict[str, str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                _safe(member.name, source, member.isfile() or member.isdir(), member.size)
                stream = tar.extractfile(member) if member.name in members else None
                if stream is not None:
                    found[members[member.name]] = stream.read()
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{source} is not a readable .tar.gz: {error}") from None
    return found


def _unzip(data: bytes, source: str, members: dict[str, str]) -> dict[str, bytes]:
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                kind = member.external_attr >> 28  # the file type of Unix; 0 if not from there
                _safe(member.filename, source, kind in (0, 4, 8), member.file_size)
                if member.filename in members:
                    found[members[member.filename]] = archive.read(member)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{source} is not a readable .zip: {error}") from None
    return found
