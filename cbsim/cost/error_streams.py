"""Standard normal numbers, the first of each of many random streams, without making every stream's objects.

What `numpy.random.Generator(PCG64(SeedSequence(seed, spawn_key=key))).standard_normal()` gives for each key:
the seed sequence's hash (O'Neill, "Developing a seed_seq alternative", 2015) is computed for all keys at once
and the state that it leads to is put into one generator, some five times as fast. numpy promises that neither
changes; a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_POOL = 4
_NUM_WORDS = 8
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_WORD = 0xFFFFFFFF
_PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_STATE = (1 << 128) - 1


def first_normals(seed: int, keys: Sequence[NDArray[np.int64] | int]) -> list[float]:
    """Of the streams with these spawn keys: `keys` are their words, each a column or the same for all."""
    size = max(len(np.atleast_1d(key)) for key in keys)
    seeds = [np.full(size, word, dtype=np.uint32) for word in _seed_words(seed)]
    spawned = [np.broadcast_to(np.asarray(key, dtype=np.uint32), size) for key in keys]
    starts, streams = _state_words([*seeds, *spawned])
    generator = np.random.Generator(np.random.PCG64(0))
    source: Any = generator.bit_generator
    told: dict[str, Any] = {"bit_generator": "PCG64", "has_uint32": 0, "uinteger": 0}
    normals = []
    for start, stream in zip(starts, streams, strict=True):
        increment = (stream << 1 | 1) & _STATE
        state = ((increment + start) * _PCG_MULTIPLIER + increment) & _STATE
        source.state = told | {"state": {"state": state, "inc": increment}}
        normals.append(generator.standard_normal())
    return normals


def _seed_words(seed: int) -> list[int]:
    """A seed as words, the lowest first, filled up to the size of the pool."""
    words = [seed >> shift & _WORD for shift in range(0, max(seed.bit_length(), 1), 32)]
    return words + [0] * (_POOL - len(words))


class _Hash:
    """A multiplicative hash whose constant changes with every use."""

    def __init__(self, constant: int, multiplier: int) -> None:
        self._constant, self._multiplier = constant, multiplier

    def __call__(self, words: Words) -> Words:
        hashed = words ^ np.uint32(self._constant)
        self._constant = self._constant * self._multiplier & _WORD
        hashed = hashed * np.uint32(self._constant)
        shifted: Words = hashed ^ hashed >> np.uint32(16)
        return shifted


def _state_words(entropy: list[Words]) -> tuple[list[int], list[int]]:
    """The two halves of the state that a seed sequence leads to, for each row of its words."""
    hashed = _Hash(_INIT_A, _MULT_A)
    pool = [hashed(words) for words in entropy[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for words in entropy[_POOL:]:
        for target in range(_POOL):
            pool[target] = _mixed(pool[target], hashed(words))
    drawn = _Hash(_INIT_B, _MULT_B)
    rows = [drawn(pool[place % _POOL]).tolist() for place in range(_NUM_WORDS)]
    # Two words make a number of 64 bits, the low one first; two of those one of 128, the high one first.
    quarters = [
        [low | high << 32 for low, high in zip(*rows[at : at + 2], strict=True)] for at in (0, 2, 4, 6)
    ]
    first, second = (
        [high << 64 | low for high, low in zip(*quarters[at : at + 2], strict=True)] for at in (0, 2)
    )
    return first, second


def _mixed(left: Words, right: Words) -> Words:
    mixed = left * _MIX_LEFT - right * _MIX_RIGHT
    shifted: Words = mixed ^ mixed >> np.uint32(16)
    return shifted
