"""Hostile bytes made of valid ones: what a file may be after an accident, or in bad hands.

`classics` are tried of every file; `mutated` draws one more, keyed by its `random.Random`. Text
that is JSON is also changed as JSON (a value replaced, a key dropped or repeated), so that the
input comes past the parser; of a safetensors file that goes for the header and the texts in it.
"""

import json
import random
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

DEEP = 100_000
"""Levels of lists inside one another, which a parser that calls itself cannot follow."""
NUMBERS = (
    *("0", "-1", "1", "2.5", "1e308", "1e999", "-1e999", "1e-320", "-0.0"),
    *("NaN", "Infinity", "-Infinity", "nan", "inf", "0x10", "1_000"),
    *(str(2**k + d) for k in (7, 31, 32, 53, 63, 64) for d in (-1, 0, 1)),
    *(str(-(2**k)) for k in (31, 63)),
    *("9" * 300, "9" * 4_000, "9" * 10_000),
)
VALUES = (
    *NUMBERS,
    *("null", "true", "false", '""', "[]", "{}", "[[]]", '[{"": null}]', "[1, [2]]"),
    *('"\\ud800"', '"\\u0000"', '"../../x"', '"1"', '"NaN"', '"' + "x" * 50_000 + '"'),
    *("[" * n + "]" * n for n in (60, 300, 900)),
    *('{"list":[' * n + "]}" * n for n in (60, 300, 450)),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MARK = '"\\u0001here\\u0001"'


def classics(valid: bytes) -> Iterator[bytes]:
    """The inputs that break parsers most often."""
    yield from (b"", b"\0", b"\n", b" ", b"\xff\xfe", b"\xef\xbb\xbf" + valid, b"\xff" * 64)
    yield from (valid[:cut] for cut in {0, 1, len(valid) // 2, max(len(valid) - 1, 0)})
    yield from (valid + valid, valid + b"\0", b"\0" + valid, valid.replace(b"\n", b"\r\n"))
    yield from (b"[" * DEEP, b'{"a":' * DEEP, b"(" * DEEP, b"[" * DEEP + b"]" * DEEP)
    yield from (b"(" * 2_000 + valid + b")" * 2_000, b"nnm:aggregator=" * 500 + b"median")
    yield from (b"9" * 10_000, b"-" * 10_000, b"1 " * 50_000, b"x" * 1_000_000, b"\n" * 50_000)
    yield from (token.encode() for token in VALUES)
    yield from (number.to_bytes(8, "little") + valid for number in (0, 2**31, 2**63 - 1, 2**64 - 1))
    yield b"\0\0\x08\x03" + b"\x80\0\0\0" * 3 + valid
    yield valid.replace(b'"', b'"\xff', 1)


def mutated(pool: Sequence[bytes], random: random.Random) -> bytes:
    """One of the valid files in `pool`, changed in one to three ways."""
    data = random.choice(pool)
    ways = [_flip, _cut, _repeat, _splice, _insert, _number, _lengths, _json, _json, _header]
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(ways)(data, pool, random)
    return data


def _place(data: bytes, random: random.Random) -> int:
    return random.randrange(len(data) + 1)


def _flip(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 16)) if data else 0):
        at = random.randrange(len(changed))
        changed[at] = random.choice((changed[at] ^ 1 << random.randrange(8), 0, 255, 0x80))
    return bytes(changed)


def _cut(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    start, end = sorted((_place(data, random), _place(data, random)))
    return random.choice((data[:start], data[start:], data[:start] + data[end:]))


def _repeat(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    start, end = sorted((_place(data, random), _place(data, random)))
    times = min(random.choice((2, 3, 100)), 1 + 200_000 // max(end - start, 1))
    return data[:start] + data[start:end] * times + data[end:]


def _splice(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    other = random.choice(pool)
    return data[: _place(data, random)] + other[_place(other, random) :]


def _insert(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    at = _place(data, random)
    token = random.choice(VALUES).encode() if random.random() < 0.7 else random.randbytes(4)
    return data[:at] + token + data[at:]


def _number(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    """Another number in the place of one that is written out."""
    found = [match.span() for match in _NUMBER.finditer(data[:20_000])]
    if not found:
        return _insert(data, pool, random)
    start, end = random.choice(found)
    return data[:start] + random.choice(NUMBERS).encode() + data[end:]


def _lengths(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    """A length near the beginning that claims too much, in any width and order of bytes."""
    at, width = random.randrange(min(len(data), 64) + 1), random.choice((1, 2, 4, 8))
    claim = random.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (4 * width)))
    order = random.choice(("<", ">"))
    letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    return data[:at] + struct.pack(order + letter, claim) + data[at + width :]


def _json(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    """Another value in one place of the JSON that a line is."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    try:
        lines[at] = changed_json(json.loads(lines[at]), random)
    except (ValueError, RecursionError):
        return _number(data, pool, random)
    return b"\n".join(lines)


def changed_json(value: Any, random: random.Random) -> bytes:
    """`value` as JSON with one part replaced by a hostile one, left out, or there twice."""
    places = [*_places(value, ())]
    path = random.choice(places)
    if not path:
        return random.choice(VALUES).encode()
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    last, way = path[-1], random.randrange(10)
    if way == 0:
        del parent[last]
    elif way == 1 and isinstance(parent, dict):
        name = random.choice(("", "x", "round", "clients", "tensor", str(last) + "\0"))
        parent[name] = parent.pop(last)
    elif way == 2:  # what is elsewhere in it
        source = value
        for step in random.choice(places):
            source = source[step]
        parent[last] = json.loads(json.dumps(source))
    else:
        parent[last] = json.loads(_MARK)
        text = json.dumps(value).replace(_MARK, random.choice(VALUES))
        if way == 3 and isinstance(parent, dict):  # the key twice
            key = json.dumps(last)
            text = text.replace(f"{key}: ", f"{key}: 1, {key}: ", 1)
        return text.encode()
    return json.dumps(value).encode()


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from _places(part, (*path, key))


def _header(data: bytes, pool: Sequence[bytes], random: random.Random) -> bytes:
    """A safetensors file with another header, whose length is told right."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError, OverflowError):
        return _flip(data, pool, random)
    if not isinstance(header, dict):
        return _flip(data, pool, random)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and metadata and random.random() < 0.7:
        name = random.choice([*metadata])
        try:
            metadata[name] = changed_json(json.loads(metadata[name]), random).decode()
        except (ValueError, TypeError, RecursionError):
            metadata[name] = random.choice(VALUES)
        changed = json.dumps(header).encode()
    else:
        changed = changed_json(header, random)
    return struct.pack("<Q", len(changed)) + changed + data[8 + size :]
