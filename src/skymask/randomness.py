"""Randomness keyed by (seed, round, client): replay needs no hidden state.

Two kinds. `generator` makes a `torch.Generator` for one purpose, from words that name it.
`hashed` draws one 64-bit number for each of many counters at once (a counter-based generator,
Salmon et al. 2011, here with the splitmix64 finaliser of Steele et al. 2014), so that all clients'
mini-batches come from one vectorised call and are the same on every device, whatever clients
are drawn beside them.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # splitmix64's increment, as a signed 64-bit integer
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key(*words: int | str) -> int:
    """A 63-bit number that depends on every word: `key(seed, "batches", round)`."""
    text = "\0".join(f"{type(word).__name__}:{word}" for word in words)
    # A lone surrogate is part of no text, but a name from a file may hold one.
    encoded = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big") >> 1


def generator(*words: int | str) -> torch.Generator:
    """A CPU generator seeded by `key(*words)`; the same draws whatever device uses them."""
    return torch.Generator().manual_seed(key(*words))


def hashed(start: int | Tensor, *counters: Tensor) -> Tensor:
    """A 63-bit number (non-negative int64) for each element of the broadcast `counters`.

    `start` is a `key`, or an int64 scalar on the counters' device. Each counter is mixed in by one
    round of splitmix64: the result is a function of (start, counter_1, counter_2, ...) alone.
    """
    state = torch.as_tensor(start, dtype=torch.int64, device=counters[0].device)
    for counter in counters:
        state = _mix(state + (counter + 1) * _GOLDEN)
    return state & 0x7FFFFFFFFFFFFFFF


def _mix(z: Tensor) -> Tensor:
    """Splitmix64's finaliser on int64 tensors (whose products wrap around)."""
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without sign extension: torch's own shift copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
