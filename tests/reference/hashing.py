"""Splitmix64 (Steele et al. 2014) on Python's own integers."""

WORD = (1 << 64) - 1


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def hashed(start: int, *counters: int) -> int:
    state = start
    for counter in counters:
        state = mixed((state + (counter + 1) * 0x9E3779B97F4A7C15) & WORD)
    return state & (WORD >> 1)
