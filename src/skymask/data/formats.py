"""The official file formats: bytes in, arrays out.

Nothing here trusts its input: every length is checked before it is used, and a pickle can build
nothing but plain containers and one array of bytes. `name` is what an error calls the data.
"""

import io
import pickle
import zlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skymask.errors import InputError

MAX_UNPACKED = 1 << 28
"""Bytes that one file may unpack to: 256 MiB, four times the largest official file."""

_CIFAR_PIXELS = 3 * 32 * 32


def unpack_gzip(data: bytes, name: str) -> bytes:
    """The content of a gzip file; at most `MAX_UNPACKED` bytes, so that a bomb stays harmless."""
    unpacker = zlib.decompressobj(wbits=31)  # 31: gzip header and trailer, with their checksum
    try:
        content = unpacker.decompress(data, MAX_UNPACKED)
    except zlib.error as error:
        raise InputError(f"{name} is not a valid gzip file: {error}") from None
    if not unpacker.eof:
        raise InputError(
            f"{name} is cut short, or unpacks to more than {MAX_UNPACKED:,} bytes: "
            f"{len(content):,} bytes came out of it"
        )
    return content


def read_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, whatever its number of dimensions.

    Layout: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each
    dimension as a big-endian 32-bit number, then the values in row-major order.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise InputError(
            f"{name} starts with {data[:4].hex() or 'nothing'} but an IDX file of bytes must start "
            "with 000008 and its number of dimensions"
        )
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise InputError(f"{name} is cut short: its IDX header must have {start} bytes")
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    size = 1
    for length in shape:
        size *= length
    if len(data) - start != size:
        raise InputError(
            f"{name} holds {len(data) - start:,} values but its IDX header says {size:,}"
        )
    try:
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    except ValueError:  # a length of 0 beside enormous ones, or more dimensions than numpy has
        raise InputError(
            f"{name} cannot be an array: its IDX header tells of {len(shape)} dimensions of up to "
            f"{max(shape):,} values"
        ) from None


class _PickledArray:
    """Stands in for numpy's array while unpickling: keeps the state, runs none of numpy's code."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object) -> None:
        """Ignore what numpy would be called with: the state says it all again."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _PickledType:
    """Stands in for numpy's dtype while unpickling."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: meaningless for single bytes."""


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
}


_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_DICT, pickle.SETITEMS, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.REDUCE, pickle.BUILD, pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT),
    *(pickle.BINGET, pickle.LONG_BINGET),
)
"""What a batch is made with. Others could make a few bytes allocate gigabytes."""


_PYTHON: Any = pickle._Unpickler  # its inner parts have no declared types


class _Unpickler(_PYTHON):  # type: ignore[misc]
    """Finds the three names that a pickled numpy array needs, and nothing else.

    It is the unpickler in Python: that in C allocates what a pickle says it will need.
    """

    dispatch: ClassVar[dict[int, Any]] = {code[0]: _PYTHON.dispatch[code[0]] for code in _OPCODES}

    def load_setitems(self) -> None:
        """Fill a dict that has names for keys: tuples of tuples take for ever to hash."""
        items: list[Any] = self.pop_mark()
        names = items[::2]
        if not all(type(name) in (bytes, str) for name in names):
            raise ValueError("it has a dict whose keys are not text")
        self.stack[-1].update(zip(names, items[1::2], strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"the pickle asks for {module}.{name}, which a CIFAR-10 batch has no use for: "
                "it was not loaded"
            ) from None


def read_cifar_batch(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) and labels (N,) of a CIFAR-10 batch in its Python version.

    The file is a pickle, and a pickle may run any code when it is loaded. This one is loaded by an
    unpickler that knows no function but harmless stand-ins for numpy's array and type.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{name} is not safe: {error}") from None
    except Exception as error:  # the unpickler raises nearly anything on hostile bytes
        told = f"{type(error).__name__} {error}"
        raise InputError(f"{name} is not a readable pickle of a CIFAR-10 batch: {told}") from None
    if not isinstance(batch, dict):
        raise InputError(f"{name} holds a {type(batch).__name__} but must hold a dict")
    array, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(array, _PickledArray) or len(array.state) != 5:
        raise InputError(f"{name} has no array under 'data'")
    _, shape, kind, fortran, pixels = array.state
    if not (isinstance(kind, _PickledType) and kind.code in (b"u1", "u1")) or fortran:
        raise InputError(f"{name} must hold unsigned bytes in row-major order under 'data'")
    if not isinstance(labels, list) or not all(type(k) is int and 0 <= k <= 9 for k in labels):
        raise InputError(f"{name} must hold a list of labels from 0 to 9 under 'labels'")
    want = (len(labels), _CIFAR_PIXELS)
    if shape != want or not isinstance(pixels, bytes) or len(pixels) != want[0] * want[1]:
        raise InputError(f"{name} has {want[0]:,} labels but its images do not have shape {want}")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
    return images, np.array(labels, np.uint8)


def read_table(data: bytes, columns: int, name: str) -> NDArray[np.float64]:
    """Rows of `columns` finite numbers separated by blanks, (N, columns)."""
    try:
        if not data.decode("ascii").strip():  # as text: str knows more blanks than bytes does
            raise ValueError("it is empty")
        table = np.loadtxt(io.BytesIO(data), comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"{name} is not a table of numbers: {error}") from None
    if table.shape[1] != columns:
        raise InputError(f"{name} has {table.shape[1]} columns but must have {columns}")
    if not np.isfinite(table).all():
        raise InputError(f"{name} holds a number that is not finite")
    return table


def read_column(data: bytes, low: int, high: int, name: str) -> NDArray[np.int64]:
    """One whole number a line, each between `low` and `high`, (N,)."""
    table = read_table(data, 1, name)[:, 0]
    bad = (table < low) | (table > high) | (table != np.floor(table))
    if bad.any():
        line = int(bad.argmax())
        raise InputError(
            f"{name}, line {line + 1}, is {table[line]:g} but must be a whole number "
            f"from {low} to {high}"
        )
    return table.astype(np.int64)
