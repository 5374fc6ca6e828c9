"""What steps compute: one as a `StepShape`, many as `StepColumns`, and both as rules take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.base.records import record_class
from cbsim.cost.elementwise import larger, over_columns, smaller

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Chunks = tuple[tuple[int, int], ...]
"""Prompt chunks `(tokens, context)`: tokens computed now, tokens whose KV is there already."""


class StepShape(NamedTuple):
    """What a step computes, as far as its time depends on it."""

    chunks: Chunks
    num_finishing_chunks: int
    """Chunks that complete their prompt and so need a row of logits."""
    num_decodes: int
    decode_context: int
    """Sum over the decodes of the tokens each attends to, the one computed now included."""
    max_decode_context: int
    """The longest of them; 0 without decodes."""
    windowed_context: int = 0
    """`decode_context` with no decode counted beyond the window of sliding layers; 0 if unknown."""
    num_other_tokens: int = 0
    """Tokens that the other ranks of a data-parallel replica send through the experts in the same step."""
    num_shared_tokens: int = 0
    """Tokens of `decode_context` in KV blocks that were read already for another request that holds them."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the dense layers."""
        return sum(tokens for tokens, _ in self.chunks) + self.num_decodes

    @property
    def num_logits(self) -> int:
        """Rows of logits computed, one for each token sampled."""
        return self.num_finishing_chunks + self.num_decodes

    @property
    def num_requests(self) -> int:
        """Requests (or, in padded batches, slots) in the step."""
        return len(self.chunks) + self.num_decodes


_COUNTS = StepShape._fields[1:]
SHAPE = np.dtype([(name, np.int64) for name in ("num_chunks", "num_prefill_tokens", *_COUNTS)])
"""What a step computes, chunks apart: the fields of `StepShape`, and the sum of its chunks' tokens."""
CHUNK = np.dtype([("num_tokens", np.int64), ("num_computed_tokens", np.int64)])
"""A prompt chunk: tokens computed now, tokens whose KV is there already."""

_make_shape, _make_chunk = record_class(SHAPE), record_class(CHUNK)


def split_shape(shape: StepShape) -> tuple[Any, list[Any]]:
    """A `StepShape` as a rule takes it, interpreted: its counts, its chunks."""
    chunks, *counts = shape
    num_tokens = sum([tokens for tokens, _ in chunks])
    return _make_shape(len(chunks), num_tokens, *counts), [_make_chunk(*chunk) for chunk in chunks]


L2_SPEED = 1.3
"""How many times as fast as memory KV is read from the L2 cache, at least. NVIDIA's timings of 16 decodes
(`aiconfigurator` 0.12.0) with KV of up to 0.6 and of over 4 times the cache say 1.3 for A100 and H200, 1.8 to
2.0 for RTX PRO 6000, B200 and H100, 3.3 for L40S."""
_NONE: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class StepColumns:
    """Many steps: the fields of `StepShape` as columns of equal length, one row a step."""

    chunks: Sequence[Chunks]
    num_finishing_chunks: Ints
    num_decodes: Ints
    decode_context: Ints
    max_decode_context: Ints
    windowed_context: Ints = field(default_factory=lambda: _NONE)
    num_other_tokens: Ints = field(default_factory=lambda: _NONE)
    num_shared_tokens: Ints = field(default_factory=lambda: _NONE)
    window: int = field(default=0, kw_only=True)
    """Tokens that attention reaches back in `pairs` and `longest_prefill`; 0 for all."""
    _pairs: dict[int, Ints] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Without windows, other ranks and shared blocks these columns are zeros."""
        for name in ("windowed_context", "num_other_tokens", "num_shared_tokens"):
            if len(getattr(self, name)) != len(self.chunks):
                object.__setattr__(self, name, np.zeros(len(self.chunks), dtype=np.int64))

    @classmethod
    def from_shapes(cls, shapes: Sequence[StepShape]) -> StepColumns:
        """The columns of some steps."""
        chunks, counts = [shape.chunks for shape in shapes], [shape[1:] for shape in shapes]
        return cls(chunks, *np.array(counts, dtype=np.int64).reshape(-1, len(_COUNTS)).T)

    @cached_property
    def num_chunks(self) -> Ints:
        """Prompt chunks."""
        return np.array([len(chunks) for chunks in self.chunks], dtype=np.int64)

    @cached_property
    def prefill_tokens(self) -> Ints:
        """Tokens of the chunks."""
        steps, tokens, _ = self.flat_chunks
        return self._summed(steps, tokens)

    @cached_property
    def longest_prefill(self) -> Ints:
        """Largest context of a chunk, its own tokens included; 0 without chunks."""
        steps, tokens, context = self.flat_chunks
        longest = np.zeros(len(self.chunks), dtype=np.int64)
        reach = tokens + context
        np.maximum.at(longest, steps, np.minimum(reach, self.window + tokens) if self.window else reach)
        return longest

    @property
    def num_tokens(self) -> Ints:
        """Tokens that go through the dense layers."""
        return self.prefill_tokens + self.num_decodes

    @property
    def num_logits(self) -> Ints:
        """Rows of logits computed."""
        return self.num_finishing_chunks + self.num_decodes

    def take(self, places: Ints) -> StepColumns:
        """Some of the steps."""
        chunks = [self.chunks[place] for place in places.tolist()]
        columns = {name: getattr(self, name)[places] for name in _COUNTS}
        return StepColumns(chunks, **columns, window=self.window)

    def records(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The steps as rules take them: records of `SHAPE`, and those of `CHUNK`, step after step."""
        shapes = np.zeros(len(self.chunks), dtype=SHAPE)
        shapes["num_chunks"], shapes["num_prefill_tokens"] = self.num_chunks, self.prefill_tokens
        for name in _COUNTS:
            shapes[name] = getattr(self, name)
        _, tokens, before = self.flat_chunks
        chunks = np.zeros(len(tokens), dtype=CHUNK)
        chunks["num_tokens"], chunks["num_computed_tokens"] = tokens, before
        return shapes, chunks

    def plain_steps(self) -> list[tuple[Any, list[Any]]]:
        """The steps one by one, as interpreted rules take them."""
        return [split_shape(shape) for shape in self.shapes()]

    def shapes(self) -> list[StepShape]:
        """The steps one by one."""
        counts = (getattr(self, name).tolist() for name in _COUNTS)
        return [StepShape(*row) for row in zip(self.chunks, *counts, strict=True)]

    @cached_property
    def flat_chunks(self) -> tuple[Ints, Ints, Ints]:
        """All chunks, one row a chunk: its step, its tokens, its context."""
        flat = [chunk for chunks in self.chunks for chunk in chunks]
        tokens, context = np.array(flat, dtype=np.int64).reshape(-1, 2).T
        return np.repeat(np.arange(len(self.chunks)), self.num_chunks), tokens, context

    def pairs(self, tile: int) -> Ints:
        """(query, key) pairs of each step's chunks, computed tile by tile."""
        if tile not in self._pairs:
            steps, tokens, context = self.flat_chunks
            pairs = chunk_pairs(tile, tokens, context)
            if self.window:
                pairs = over_columns(window_pairs)(tile, tokens, context, self.window)
            self._pairs[tile] = self._summed(steps, pairs)
        return self._pairs[tile]

    def _summed(self, steps: Ints, figures: Ints) -> Ints:
        """The sum over each step's chunks."""
        sums = np.zeros(len(self.chunks), dtype=np.int64)
        np.add.at(sums, steps, figures)
        return sums


def num_pairs(chunks: Chunks, tile: int) -> int:
    """(query, key) pairs computed for chunks `(tokens, context)` by tiles of `tile` (even) queries."""
    return sum(chunk_pairs(tile, tokens, context) for tokens, context in chunks)


def chunk_pairs(tile: Any, num_tokens: Any, before: Any) -> Any:
    """(query, key) pairs computed for one chunk over a context of `before`, `P` of `StepForm`."""
    return -(-num_tokens // tile) * (tile // 2) * (2 * before + num_tokens + tile)


def context_read(shape: Any) -> Any:
    """Tokens whose KV decodes read from memory, where attention reaches back to the first one: blocks that
    requests share once, unless the L2 cache, from which the others read them, takes longer.
    """
    return larger(shape.decode_context - shape.num_shared_tokens, shape.decode_context / L2_SPEED)


def context_in_window(shape: Any, window: Any) -> Any:
    """Tokens that decodes attend to in layers with a window; where nobody counted, as if all were alike."""
    if shape.windowed_context > 0:
        return shape.windowed_context
    return min(shape.decode_context, shape.num_decodes * window)


def window_pairs(tile: Any, num_tokens: Any, before: Any, window: Any) -> Any:
    """(query, key) pairs computed for one chunk by tiles of queries, which reach back `window` tokens each.

    A tile computes all keys that any of its queries sees. With a tile of 1 these are the pairs themselves.
    """
    num_tiles, reach = -(-num_tokens // tile), window + tile - 1
    num_short = smaller(num_tiles, larger((reach - before) // tile, 0))
    short_pairs = tile * (num_short * before + tile * (num_short * (num_short + 1) // 2))
    return short_pairs + (num_tiles - num_short) * tile * reach
