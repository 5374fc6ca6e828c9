"""Attention of one layer by formula, in its three regimes: decodes, chunks of prompts, both in one launch.

The formulas stand in `cbsim/cost/form.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.cost.step_columns import Floats, Ints, StepColumns

Coefficient = Annotated[float, Ge(0)]
Softness = Annotated[float, Ge(0), Le(4)]


def blend(a: Any, b: Any, softness: float) -> Any:
    """A smooth maximum of arrays: `max(a, b)` at softness 0, `a + b` at 4; homogeneous, monotone in both."""
    difference = a - b
    return 0.5 * ((a + b) + np.sqrt(difference * difference + softness * a * b))


class DecodeAttention(Section):
    """Seconds of one layer's attention over paged KV for decodes alone."""

    launch_s: Coefficient
    floor_s: Coefficient
    per_decode_s: Coefficient
    per_token_s: Coefficient
    start_per_token_s: Coefficient
    """More for each of the first `start_tokens` tokens: bandwidth rises with the length of the stream."""
    start_tokens: Coefficient
    softness: Softness
    floor_softness: Softness

    def at(self, columns: StepColumns) -> Floats:
        """Seconds; 0 without decodes."""
        seconds = self.seconds(columns.num_decodes, columns.decode_context)
        return np.where(columns.num_decodes > 0, seconds, 0.0)

    def seconds(self, num_decodes: Ints | int, context: Ints) -> Floats:
        """Seconds of so many decodes, at least one, over a context in all."""
        start_s = self.start_per_token_s * self.start_tokens
        stream = np.where(
            context < self.start_tokens,
            (self.per_token_s + self.start_per_token_s) * context,
            self.per_token_s * context + start_s,
        )
        work = blend(self.per_decode_s * num_decodes, stream, self.softness)
        total: Floats = self.launch_s + blend(self.floor_s, work, self.floor_softness)
        return total


class Spill(Section):
    """Streaming through memory what no longer fits in the L2 cache together, beside the work itself."""

    per_token_s: Coefficient
    cached_tokens: Coefficient
    """Queries, keys, values and outputs of so many tokens stay in the cache, and of twice as many none do."""
    softness: Softness

    def at(self, num_tokens: Ints) -> Floats:
        """Seconds by the tokens of a launch."""
        streamed = np.minimum(num_tokens, 2.0 * np.maximum(num_tokens - self.cached_tokens, 0.0))
        seconds: Floats = self.per_token_s * streamed
        return seconds


class ChunkLengths(Section):
    """What a chunk of a certain length takes beyond the formula: kernels choose their tiles by length."""

    tokens: tuple[int, ...] = Field(min_length=1)
    """Lengths, rising, >= 1."""
    more_s: tuple[float, ...] = Field(min_length=1)
    """Seconds more, or fewer; linear between lengths and down to none at 0, level beyond the last."""

    @model_validator(mode="after")
    def _fits(self) -> ChunkLengths:
        if len(self.tokens) != len(self.more_s):
            raise ValueError(f"{len(self.tokens)} lengths for {len(self.more_s)} seconds")
        if self.tokens[0] < 1 or any(np.diff(self.tokens) <= 0):
            raise ValueError("lengths must be positive and rise")
        return self

    def at(self, tokens: Ints) -> Floats:
        """Seconds more of single chunks."""
        found: Floats = np.interp(tokens, np.array((0, *self.tokens)), np.array((0.0, *self.more_s)))
        return found

    def together(self, columns: StepColumns) -> Floats:
        """Seconds more of all chunks of each step."""
        steps, tokens, _ = columns.flat_chunks
        found = np.bincount(steps, weights=self.at(tokens), minlength=len(columns.num_chunks))
        return found.astype(np.float64, copy=False)


class PrefillAttention(Section):
    """Seconds of one layer's attention for prompt chunks alone."""

    launch_s: Coefficient
    floor_s: Coefficient
    per_pair_s: Coefficient
    per_token_s: Coefficient
    per_chunk_s: Coefficient
    beyond_per_token_s: Coefficient
    """More for each token beyond `beyond_tokens`: queries and outputs that no longer fit in the L2 cache."""
    beyond_tokens: Coefficient
    per_longest_token_s: Coefficient
    """For each token of the longest context: the chain of tiles that nothing runs beside."""
    softness: Softness
    floor_softness: Softness
    tile: int = Field(ge=2, multiple_of=2)
    """Queries of a tile, an even number."""
    lengths: ChunkLengths | None = None
    spill: Spill | None = None

    @model_validator(mode="after")
    def _rises(self) -> PrefillAttention:
        if self.lengths is None:
            return self
        tokens = np.array((0, *self.lengths.tokens))
        slopes = np.diff((0.0, *self.lengths.more_s)) / np.diff(tokens)
        if (slopes < -(1.0 + 1e-9) * self.least_slope(tokens[:-1])).any():
            raise ValueError("a chunk must not take less for more tokens")
        return self

    def least_slope(self, tokens: Ints) -> Floats:
        """Seconds that each token more than so many adds to a chunk at least, by the formula."""
        rows = (self.tile // 2) * (tokens // self.tile + 1)
        slope: Floats = self.per_token_s + self.per_pair_s * rows.astype(np.float64)
        return slope

    def at(self, columns: StepColumns) -> Floats:
        """Seconds; 0 without chunks."""
        work: Any = (
            self.per_pair_s * columns.pairs(self.tile)
            + self.tokens_s(columns.prefill_tokens)
            + self.per_chunk_s * columns.num_chunks
        )
        if self.lengths is not None:
            work += self.lengths.together(columns)
        if self.spill is not None:
            work = blend(work, self.spill.at(columns.prefill_tokens), self.spill.softness)
        work = blend(self.per_longest_token_s * columns.longest_prefill, work, self.softness)
        seconds = self.launch_s + blend(self.floor_s, work, self.floor_softness)
        return np.where(columns.num_chunks > 0, seconds, 0.0)

    def tokens_s(self, num_tokens: Ints) -> Floats:
        """Seconds for tokens, whatever they attend to."""
        beyond = np.maximum(num_tokens - self.beyond_tokens, 0.0)
        seconds: Floats = self.per_token_s * num_tokens + self.beyond_per_token_s * beyond
        return seconds


class FusedAttention(Section):
    """Seconds of one layer's attention when chunks and decodes share a launch."""

    launch_s: Coefficient
    per_pair_s: Coefficient
    per_token_s: Coefficient
    per_decode_s: Coefficient
    per_context_token_s: Coefficient
    beyond_per_context_token_s: Coefficient
    """More for each token of the decodes' context beyond `beyond_context_tokens`: bandwidth falls there."""
    beyond_context_tokens: Coefficient
    per_longest_token_s: Coefficient
    per_longest_decode_token_s: Coefficient
    softness: Softness

    def at(self, columns: StepColumns, tile: int) -> Floats:
        """Seconds of mixed steps, chunks in tiles as of prefill; for pure steps it has no meaning."""
        work: Any = (
            self.per_pair_s * columns.pairs(tile)
            + self.per_token_s * columns.prefill_tokens
            + self.per_decode_s * columns.num_decodes
            + self.per_context_token_s * columns.decode_context
            + self.beyond_per_context_token_s
            * np.maximum(columns.decode_context - self.beyond_context_tokens, 0.0)
        )
        chain = np.maximum(
            self.per_longest_token_s * columns.longest_prefill,
            self.per_longest_decode_token_s * columns.max_decode_context,
        )
        seconds: Floats = self.launch_s + blend(work, chain, self.softness)
        return seconds
