"""Between Flower's arrays and the vectors that a rule sees.

An `ArrayRecord` is usually a model's `state_dict`: trained parameters, batch norm's running
statistics, counters, weights that the model does not train, and second names of tied weights. A
rule compares trained parameters (d,) and floating-point buffers (b,); the rest must come back from
a client as it went out, or an attacker would hide there.
"""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from skymask.errors import InputError
from skymask.flat import FlatModel, flat_model

Arrays = dict[str, NDArray[np.generic]]

_NUMBERS = re.compile(r"[<>|=]?[fiub]\d{1,2}")
"""How the dtypes of plain numbers are written."""
_LONGEST_HEADER = 10_000
"""In bytes; an honest one has about a hundred."""


class Malformed(ValueError):
    """Why a client's reply cannot be used, in words that follow the client's name."""


@dataclass(frozen=True)
class Layout:
    """Where each array of the global model lies in the (d,) parameters and (b,) buffers."""

    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    """numpy's letter of each array's kind of number ("f": floating-point); a server optimiser may
    turn float32 into float64, so the exact dtype is free."""
    params: dict[str, slice]
    """Key of each trained array, and where it lies in (d,)."""
    buffers: dict[str, slice]
    """Key of each floating-point buffer, and where it lies in (b,)."""
    aliases: dict[str, str]
    """Second name of a tied weight, and the key that its values are under."""
    fixed: tuple[str, ...]
    """Keys of floating-point arrays that the model does not train."""
    model: FlatModel | None
    """The module that the arrays belong to, with the frozen arrays loaded."""
    dtype: torch.dtype

    def vectors(self, arrays: Arrays) -> tuple[Tensor, Tensor]:
        """The trained parameters (d,) and the floating-point buffers (b,) in `arrays`."""
        return self._joined(arrays, self.params), self._joined(arrays, self.buffers)

    def _joined(self, arrays: Arrays, places: Mapping[str, slice]) -> Tensor:
        size = max((at.stop for at in places.values()), default=0)
        vector = torch.empty(size, dtype=self.dtype)
        for key, at in places.items():
            vector[at] = torch.from_numpy(np.ascontiguousarray(arrays[key]).ravel())
        return vector

    def record(self, params: Tensor, buffers: Tensor, rest: ArrayRecord) -> ArrayRecord:
        """An `ArrayRecord` of `params` (d,) and `buffers` (b,); all other arrays are `rest`'s."""
        arrays = {}
        for key in self.shapes:
            source = self.aliases.get(key, key)
            if source in self.params:
                part = params[self.params[source]]
            elif source in self.buffers:
                part = buffers[self.buffers[source]]
            else:
                arrays[key] = rest[key]
                continue
            arrays[key] = Array(part.reshape(self.shapes[key]).cpu().numpy())
        return ArrayRecord(arrays)

    def decoded(self, record: ArrayRecord, globals_: Arrays) -> Arrays:
        """The arrays of a client's `record`, each checked before its bytes are trusted.

        `globals_` are the arrays that went out. Raises `Malformed` for other keys, shapes or kinds
        of numbers, bytes that are no array, and values that are not finite or that a client cannot
        have changed by training: frozen weights, tied weights that differ.
        """
        if set(record) != set(self.shapes):
            raise Malformed(_keys_told(set(record), set(self.shapes)))
        arrays = {}
        for key, shape in self.shapes.items():
            array = decode(key, record[key])
            if array.shape != shape:
                raise Malformed(f"its {key!r} has shape {array.shape}, not {shape}")
            # A mean of counters is no whole number: who sends back what it got sends that too.
            if array.dtype.kind not in (self.kinds[key], globals_[key].dtype.kind):
                raise Malformed(
                    f"its {key!r} has dtype {array.dtype}, not of the kind {self.kinds[key]!r}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Malformed(f"its {key!r} is not finite")
            arrays[key] = array
        for key in self.fixed:
            if not np.allclose(arrays[key], globals_[key], rtol=1e-3, atol=1e-6):
                raise Malformed(f"its {key!r} changed, which the model does not train")
        for key, source in self.aliases.items():
            if not np.array_equal(arrays[key], arrays[source]):
                raise Malformed(f"its {key!r} differs from {source!r}, which it is tied to")
        return arrays


def layout(arrays: ArrayRecord, module: nn.Module | None) -> Layout:
    """How the global model `arrays` maps to vectors, by the names in `module`.

    The keys are the names in `module.state_dict()` (all that are trained, at least), or "0", "1",
    ... in its order, as `ArrayRecord(list_of_ndarrays)` has them. Without a module every
    floating-point array counts as trained parameters. The module is loaded with `arrays`.

    Raises `InputError` where the two do not fit.
    """
    decoded = {key: decode(key, array) for key, array in arrays.items()}
    shapes = {key: array.shape for key, array in decoded.items()}
    kinds = {key: str(array.dtype.kind) for key, array in decoded.items()}
    floating = [key for key, kind in kinds.items() if kind == "f"]
    if not floating:
        raise InputError(
            "initial_arrays holds no floating-point array; SkyMask protects models made of weights "
            "(not, for example, trees that are sent as bytes)"
        )
    if module is None:
        params = _places(floating, shapes)
        widest = max((decoded[key].dtype for key in floating), key=lambda dtype: dtype.itemsize)
        dtype = torch.float64 if widest.itemsize > 4 else torch.float32
        return Layout(shapes, kinds, params, {}, {}, (), None, dtype)
    state = module.state_dict(keep_vars=True)
    keys = _keys_of(list(state), arrays)
    with torch.no_grad():
        for name, tensor in state.items():
            if name in keys:
                key = keys[name]
                if tuple(tensor.shape) != shapes[key]:
                    raise InputError(
                        f"initial_arrays[{key!r}] has shape {shapes[key]} but {name!r} of model "
                        f"{type(module).__name__} has {tuple(tensor.shape)}"
                    )
                tensor.copy_(torch.from_numpy(np.array(decoded[key])))
    flat = flat_model(module)
    missing = [name for name in flat.layers if name not in keys]
    if missing:
        raise InputError(
            f"initial_arrays lacks {missing[0]!r}, which model {type(module).__name__} trains"
        )
    first = {id(state[name]): keys[name] for name in reversed(state) if name in keys}
    first |= {id(state[name]): keys[name] for name in flat.layers}
    aliases = {
        keys[name]: first[id(tensor)]
        for name, tensor in state.items()
        if name in keys and keys[name] != first[id(tensor)]
    }
    params = {keys[name]: at for name, at in flat.layers.items()}
    buffers = _places(
        [keys[name] for name in flat.buffer_layers if name in keys],
        shapes,
    )
    if len(buffers) not in (0, len(flat.buffer_layers)):
        raise InputError(
            f"initial_arrays holds {len(buffers)} of the {len(flat.buffer_layers)} floating-point "
            f"buffers of model {type(module).__name__}; send all of them or none"
        )
    known = {*params, *buffers, *aliases}
    fixed = tuple(key for key in floating if key not in known)
    dtype = next(iter(flat.module.parameters())).dtype
    return Layout(shapes, kinds, params, buffers, aliases, fixed, flat, dtype)


def decode(key: str, array: Array) -> NDArray[np.generic]:
    """The array in `array.data`, which came over the network.

    The header is read and held against the number of bytes before anything is allocated; objects
    are refused. Raises `Malformed`.
    """
    if array.stype != "numpy.ndarray":
        raise Malformed(f"its {key!r} is serialised as {array.stype[:40]!r}, not as a numpy array")
    try:
        return _array(array.data)
    except (ValueError, LookupError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed(f"its {key!r} does not decode as an array") from error


def _array(data: bytes) -> NDArray[np.generic]:
    """The array of numbers in npy bytes (format 1.0 to 3.0). Raises `ValueError` and the like.

    numpy's own reader takes more than this: pickled objects, headers of Python 2, archives.
    """
    wide = 2 if data[6:7] == b"\x01" else 4
    start = 8 + wide + int.from_bytes(data[8 : 8 + wide], "little")
    if data[:6] != b"\x93NUMPY" or start > min(len(data), _LONGEST_HEADER):
        raise ValueError("no npy header")
    header = ast.literal_eval(data[8 + wide : start].decode("latin1").strip())
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not _NUMBERS.fullmatch(descr) or not all(type(k) is int and k >= 0 for k in shape):
        raise ValueError(f"shape {shape} of {descr}")
    dtype, count = np.dtype(descr), math.prod(shape)
    if count * dtype.itemsize != len(data) - start:
        raise ValueError(f"{len(data) - start} bytes for shape {shape} of {dtype}")
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _keys_of(names: list[str], arrays: ArrayRecord) -> dict[str, str]:
    """Under which key of `arrays` each name of the module's state is, where it is there."""
    keys = list(arrays)
    if set(keys) <= set(names):
        return {key: key for key in keys}
    if len(keys) == len(names) and keys == [str(i) for i in range(len(keys))]:
        return dict(zip(names, keys, strict=True))
    strange = sorted(set(keys) - set(names))
    raise InputError(
        f"initial_arrays has {strange[0]!r}, which is not in the state_dict of the model "
        f"(it has {', '.join(repr(name) for name in names[:4])}, ...); make them with "
        "ArrayRecord(model.state_dict())"
    )


def _keys_told(sent: set[str], expected: set[str]) -> str:
    if lacking := sorted(expected - sent):
        return f"its arrays lack {lacking[0]!r}"
    return f"its arrays have {min(sent - expected)!r}, which the model has not"


def _places(keys: list[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, slice]:
    places, start = {}, 0
    for key in keys:
        stop = start + int(np.prod(shapes[key], dtype=np.int64))
        places[key], start = slice(start, stop), stop
    return places
