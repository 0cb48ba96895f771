"""Downloads: complete and checked, or nothing at all. The server is on this machine."""

import errno
import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from skymask.data import download as module
from skymask.data.download import download
from skymask.data.official import Archive, OfficialFile, OfficialSet
from skymask.errors import InputError

FILES = {"train/x.txt": b"1 2 3", "y.txt": b"4"}


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar_gz(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
    return stream.getvalue()


def zipped(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link[0])
            info.external_attr = 0o120777 << 16
            archive.writestr(info, link[1])
    return stream.getvalue()


PACKERS = {"it.tar.gz": tar_gz, "it.zip": zipped}
in_folder = {f"It/{path}": content for path, content in FILES.items()}


def wanted(*archives: Archive, files: dict[str, bytes] = FILES) -> OfficialSet:
    official = tuple(OfficialFile(path, sha(content)) for path, content in files.items())
    return OfficialSet("it", "It", official, archives, "1 kB")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fails(server, name: str, content: bytes, to: Path, message: str, digest: str = "") -> str:
    """Offer `content` as the archive `name`: it must be refused, without leaving a trace."""
    server.files[name] = content
    with pytest.raises(InputError, match=message) as caught:
        download(wanted(Archive(server.url(name), digest)), to)
    assert not to.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", PACKERS)
def test_an_archive_is_unpacked_to_the_official_layout(server, tmp_path, name, capfd):
    content = PACKERS[name](in_folder | {"It/readme.txt": b"not needed", "__MACOSX/x": b""})
    server.files[name] = content
    folder = download(wanted(Archive(server.url(name), sha(content))), tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "It"
    assert tree(tmp_path / "new" / "data") == in_folder
    assert capfd.readouterr() == ("", "")  # no progress bar where nobody looks


def test_a_zip_in_a_zip(server, tmp_path):
    inner = zipped(in_folder)
    server.files["outer+name.zip"] = zipped({"It.zip": inner, "It.names": b""})
    archive = Archive(server.url("outer+name.zip"), sha(inner), inner="It.zip")
    assert tree(download(wanted(archive), tmp_path)) == FILES
    server.files["outer+name.zip"] = zipped({"other.zip": inner})
    with pytest.raises(InputError, match=r"does not hold It\.zip"):
        download(wanted(archive), tmp_path / "again")


def test_plain_files(server, tmp_path):
    files = {"a.gz": b"a", "b.gz": b"b"}
    server.files |= files
    archives = [Archive(server.url(name), sha(content)) for name, content in files.items()]
    assert tree(download(wanted(*archives, files=files), tmp_path)) == files


def test_files_of_an_incomplete_set_are_replaced(server, tmp_path):
    server.files["it.zip"] = zipped(in_folder)
    (tmp_path / "It").mkdir()
    (tmp_path / "It" / "y.txt").write_bytes(b"old")
    (tmp_path / "It" / "mine.txt").write_bytes(b"kept")
    download(wanted(Archive(server.url("it.zip"), "")), tmp_path)
    assert tree(tmp_path / "It") == FILES | {"mine.txt": b"kept"}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize(
    "member", ["../evil.txt", "It/../../evil.txt", "/tmp/evil.txt", "It\\..\\..\\e", "C:\\e", "C:e"]
)
def test_a_member_that_leads_outside_is_refused(server, tmp_path, name, member):
    content = PACKERS[name](in_folder | {member: b"evil"})
    fails(server, name, content, tmp_path / "data", "not safe to unpack")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", PACKERS)
def test_a_link_is_refused(server, tmp_path, name):
    content = PACKERS[name](in_folder, link=("It/link", "/etc/passwd"))
    fails(server, name, content, tmp_path / "data", "not safe to unpack: its member 'It/link'")


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_refused(server, tmp_path, name, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNPACKED", 4)
    fails(server, name, PACKERS[name](in_folder), tmp_path / "data", "too large")


@pytest.mark.parametrize("name", PACKERS)
def test_an_archive_without_one_of_the_files_is_refused(server, tmp_path, name):
    content = PACKERS[name]({"It/y.txt": b"4", "It/x.txt": b"1 2 3"})
    fails(server, name, content, tmp_path / "data", r"lacks train/x\.txt")


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("cut", [0, 10, 100])
def test_a_damaged_archive_is_refused(server, tmp_path, name, cut):
    content = PACKERS[name](in_folder)[:cut]
    fails(server, name, content, tmp_path / "data", "not a readable|lacks|cannot be reached")


def test_another_archive_than_the_published_one_is_refused(server, tmp_path):
    content = zipped(in_folder)
    message = fails(server, "it.zip", content, tmp_path / "data", "corrupt", digest=sha(b"other"))
    assert sha(content)[7:19] in message
    assert sha(b"other")[7:19] in message


def test_another_file_than_the_known_one_is_refused(server, tmp_path):
    content = zipped(in_folder | {"It/y.txt": b"5"})
    fails(server, "it.zip", content, tmp_path / "data", r"y\.txt from .* is corrupt")


def test_a_download_that_ends_early_is_refused(server, tmp_path):
    server.lie = 7
    fails(server, "it.zip", zipped(in_folder), tmp_path / "data", "ended after")


def test_a_download_without_end_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOWNLOAD", 99)
    fails(server, "it.zip", zipped(in_folder), tmp_path / "data", "larger than 99 bytes")


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    server.stall = True
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    fails(server, "it.zip", b"", tmp_path / "data", "cannot be reached: timed out")


def test_a_missing_page_is_said(server, tmp_path):
    with pytest.raises(InputError, match="cannot be reached: Not Found"):
        download(wanted(Archive(server.url("it.zip"), "")), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_said_and_leaves_nothing(server, tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    content = zipped(in_folder)
    fails(server, "it.zip", content, tmp_path / "data", "cannot be written: No space left")


def test_a_data_directory_that_is_a_file_is_said(server, tmp_path):
    (tmp_path / "data").write_bytes(b"mine")
    server.files["it.zip"] = zipped(in_folder)
    with pytest.raises(InputError, match=r"data directory .*data cannot be written"):
        download(wanted(Archive(server.url("it.zip"), "")), tmp_path / "data")
    assert tree(tmp_path) == {"data": b"mine"}


def test_a_person_sees_a_progress_bar(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    server.files["it.zip"] = zipped(in_folder)
    download(wanted(Archive(server.url("it.zip"), "")), tmp_path)
    assert "it.zip" in sys.stderr.getvalue()
