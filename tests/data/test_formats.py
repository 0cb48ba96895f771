"""The parsers read the official formats, and survive hostile bytes."""

import gzip
import math
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from skymask.data import formats
from skymask.data.formats import (
    read_cifar_batch,
    read_column,
    read_idx,
    read_table,
    unpack_gzip,
)
from skymask.errors import InputError


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(struct.pack(">I", length) for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def batch(**changes: object) -> bytes:
    """A CIFAR-10 batch of two images, written as numpy pickles an array."""
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    content = {b"data": pixels, b"labels": [3, 9]}
    return pickle.dumps(content | {key.encode(): v for key, v in changes.items()}, protocol=3)


@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=5)))
def test_idx_round_trip(array):
    assert np.array_equal(read_idx(idx(array), "it"), array)


@given(arrays(np.uint8, array_shapes(max_dims=3, max_side=4)), st.data())
def test_truncated_idx_is_refused(array, data):
    whole = idx(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InputError, match="images"):
        read_idx(whole[:cut], "images")


@given(st.binary(max_size=64))
def test_idx_from_any_bytes_is_an_array_or_an_input_error(data):
    try:
        array = read_idx(data, "it")
    except InputError:
        return
    assert idx(array) == data


@pytest.mark.parametrize("magic", [b"\0\0\x0d\x01", b"\x01\0\x08\x01", b"PK\x03\x04"])
def test_wrong_magic_is_named(magic):
    with pytest.raises(InputError, match=magic.hex()):
        read_idx(magic + b"\0\0\0\0", "it")


def test_idx_that_promises_terabytes_allocates_nothing():
    with pytest.raises(InputError, match="header says"):
        read_idx(b"\0\0\x08\x04" + b"\xff" * 16 + b"abc", "it")


@pytest.mark.parametrize(
    "lengths",
    [(0, *[2**32 - 1] * 4), [1] * 65],
    ids=["nothing, times more than a machine has", "more dimensions than numpy has"],
)
def test_idx_of_a_shape_that_no_array_has_is_refused(lengths):
    head = bytes([0, 0, 8, len(lengths)]) + b"".join(n.to_bytes(4, "big") for n in lengths)
    with pytest.raises(InputError, match=f"it cannot be an array: .* {len(lengths)} dimensions"):
        read_idx(head + b"x" * math.prod(lengths), "it")


@given(st.binary(max_size=200))
def test_gzip_round_trip(content):
    assert unpack_gzip(gzip.compress(content), "it") == content


@given(st.binary(max_size=200))
def test_gzip_from_any_bytes_is_refused(garbage):
    with pytest.raises(InputError, match="labels"):
        unpack_gzip(b"x" + garbage, "labels")


@given(st.binary(min_size=1, max_size=200), st.data())
def test_truncated_gzip_is_refused(content, data):
    whole = gzip.compress(content)
    with pytest.raises(InputError):
        unpack_gzip(whole[: data.draw(st.integers(0, len(whole) - 1))], "it")


def test_a_damaged_gzip_fails_its_own_checksum():
    whole = bytearray(gzip.compress(b"content"))
    whole[-6] ^= 1
    with pytest.raises(InputError, match="gzip"):
        unpack_gzip(bytes(whole), "it")


def test_a_gzip_bomb_is_cut_off(monkeypatch):
    monkeypatch.setattr(formats, "MAX_UNPACKED", 1000)
    with pytest.raises(InputError, match="more than 1,000"):
        unpack_gzip(gzip.compress(bytes(100_000)), "it")


def test_cifar_batch():
    images, labels = read_cifar_batch(batch(), "it")
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [3, 9]
    assert images.ravel().tolist() == [i % 256 for i in range(2 * 3072)]


def test_cifar_batch_as_python_2_wrote_it():
    """The official files: byte strings for text, numpy under its old module name."""
    pixels = bytes(range(256)) * 12
    text = b"".join(
        [
            b"\x80\x02}(U\x06labels](K\x07eU\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(pixels)) + pixels + b"tbu.",
        ]
    )
    images, labels = read_cifar_batch(text, "it")
    assert images.tobytes() == pixels
    assert labels.tolist() == [7]


class Runs:
    """Unpickling this calls `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_a_command_is_refused(tmp_path: Path):
    mark = tmp_path / "mark"
    with pytest.raises(InputError, match=r"batch_1 is not safe: .*system"):
        read_cifar_batch(pickle.dumps(Runs(os.system, f"touch {mark}")), "batch_1")
    assert not mark.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, __import__, np.load, np.frombuffer, pickle.loads, bytearray]
)
def test_a_pickle_may_name_no_function(function):
    with pytest.raises(InputError, match="not safe"):
        read_cifar_batch(batch(more=function), "it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [3, 10]}, "labels from 0 to 9"),
        ({"labels": [True, 1]}, "labels from 0 to 9"),
        ({"labels": "31"}, "labels from 0 to 9"),
        ({"labels": [3]}, "do not have shape"),
        ({"data": b"pixels"}, "no array"),
        ({"data": np.zeros((2, 3072))}, "unsigned bytes"),
        ({"data": np.zeros((2, 3072), np.int8)}, "unsigned bytes"),
        ({"data": np.zeros((2, 3071), np.uint8)}, "do not have shape"),
        ({"data": np.zeros((2, 3072), np.uint8, order="F")}, "row-major"),
        ({"data": np.array([None, None])}, "unsigned bytes"),
    ],
)
def test_a_batch_with_other_content_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        read_cifar_batch(batch(**changes), "it")


@given(st.integers(0, len(batch()) - 1))
def test_truncated_batch_is_refused(cut):
    with pytest.raises(InputError):
        read_cifar_batch(batch()[:cut], "it")


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), b"\x80\x05N."])
def test_a_pickle_of_something_else_is_refused(content):
    with pytest.raises(InputError, match="it "):
        read_cifar_batch(content, "it")


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=9))
def test_table_round_trip(rows):
    text = "\n".join(f"  {a:.17e}   {b:.17e}" for a, b in rows)
    assert read_table(text.encode(), 2, "it").tolist() == [list(row) for row in rows]


@pytest.mark.parametrize(
    "text", ["", " \n", "1 2\n3", "1 x\n", "1 nan", "1 inf", "1 1e999", "1,2", "# 1 2", "1 2 3"]
)
def test_anything_but_a_finite_table_is_refused(text):
    with pytest.raises(InputError, match="X_train"):
        read_table(text.encode(), 2, "X_train")


@given(st.binary(max_size=60))
def test_table_from_any_bytes_is_finite_or_an_input_error(data):
    try:
        table = read_table(data, 2, "it")
    except InputError:
        return
    assert np.isfinite(table).all()


def test_column_says_which_line_is_out_of_range():
    assert read_column(b"1\r\n6\r\n", 1, 6, "y").tolist() == [1, 6]
    for text in (b"1\n7\n", b"1\n0\n", b"1\n1.5\n"):
        with pytest.raises(InputError, match=r"y, line 2, .* from 1 to 6"):
            read_column(text, 1, 6, "y")


def shared(levels: int) -> bytes:
    """Tuples that hold the one before twice: a few bytes, and 2^levels steps to hash."""
    nested = b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))
    return b"\x80\x02})" + nested + b"Ns."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02Np4000000000\n.",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
        shared(60),
        shared(60).replace(b"\x80\x02})", b"\x80\x02}()").replace(b"Ns.", b"Nu."),
    ],
    ids=["memo", "memo in text", "bytearray", "shared tuples", "shared tuples, many at once"],
)
def test_a_small_pickle_that_asks_for_much_is_refused_at_once(content):
    with pytest.raises(InputError, match="it "):
        read_cifar_batch(content, "it")


def test_a_memo_of_any_number_costs_nothing():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="holds a NoneType"):
        read_cifar_batch(b"\x80\x02Nr\xff\xff\xff\x0f.", "it")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
