"""Digests: known answers, and what a person is told about a corrupt file."""

import gzip
import hashlib
from dataclasses import replace

import pytest

from skymask.data.official import OFFICIAL, Archive, OfficialFile, OfficialSet, digest_of, read
from skymask.errors import InputError


def test_digests_have_their_known_values():
    assert digest_of(b"", "md5", "it") == "d41d8cd98f00b204e9800998ecf8427e"
    assert digest_of(b"abc", "sha256", "it").startswith("ba7816bf8f01cfea")
    # `printf 'hello\n' | git hash-object --stdin`
    assert digest_of(b"hello\n", "git-blob", "it") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_gzip_digest_is_that_of_the_content():
    fast, small = gzip.compress(b"a" * 999, 1), gzip.compress(b"a" * 999, 9)
    assert fast != small
    assert digest_of(fast, "gzip-sha256", "it") == digest_of(small, "gzip-sha256", "it")


@pytest.fixture
def one_file() -> OfficialSet:
    digest = "sha256:" + hashlib.sha256(b"right").hexdigest()
    files = (OfficialFile("train/x.txt", digest), OfficialFile("y.txt"))
    return OfficialSet("it", "It", files, (Archive("http://example.org/it.zip", ""),), "1 kB")


def test_read_gives_the_bytes_of_an_intact_file(tmp_path, one_file):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.txt").write_bytes(b"right")
    (tmp_path / "y.txt").write_bytes(b"anything")
    assert read(one_file, tmp_path, "train/x.txt") == b"right"
    assert read(one_file, tmp_path, "y.txt") == b"anything"


def test_a_corrupt_file_is_named_with_both_digests_and_a_remedy(tmp_path, one_file):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "x.txt"
    path.write_bytes(b"wrong")
    with pytest.raises(InputError) as caught:
        read(one_file, tmp_path, "train/x.txt")
    message = str(caught.value)
    assert f"{path} is corrupt" in message
    assert hashlib.sha256(b"wrong").hexdigest()[:12] in message
    assert hashlib.sha256(b"right").hexdigest()[:12] in message
    assert "delete the file" in message
    assert "http://example.org/it.zip" in message


def test_garbage_where_a_gzip_file_should_be_is_corrupt(tmp_path, one_file):
    packed = replace(one_file, files=(OfficialFile("x.gz", "gzip-sha256:00"),))
    (tmp_path / "x.gz").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"x\.gz is corrupt .*gzip.* delete the file"):
        read(packed, tmp_path, "x.gz")


def test_a_missing_file_is_named(tmp_path, one_file):
    with pytest.raises(InputError, match=r"y\.txt cannot be read: No such file"):
        read(one_file, tmp_path, "y.txt")


def test_every_archive_comes_by_https_and_with_a_digest():
    for wanted in OFFICIAL.values():
        for archive in wanted.archives:
            assert archive.url.startswith("https://")
            assert archive.digest
