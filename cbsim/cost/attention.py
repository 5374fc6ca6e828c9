"""Attention of one layer by formula, in its three regimes: decodes, chunks of prompts, both in one launch.

The formulas stand in `cbsim/cost/form.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.cost.elementwise import cell_of, chosen, larger, over_columns, root, smaller
from cbsim.cost.interpolation import Axis, axis_of, check_line, risen
from cbsim.cost.step_columns import Floats, Ints, StepColumns, context_read

Coefficient = Annotated[float, Ge(0)]
Softness = Annotated[float, Ge(0), Le(4)]


def blend(a: Any, b: Any, softness: float) -> Any:
    """A smooth maximum: `max(a, b)` at softness 0, `a + b` at 4; homogeneous, monotone in both."""
    difference = a - b
    return 0.5 * ((a + b) + root(difference * difference + softness * a * b))


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
        seconds = over_columns(decode_attention_s)(
            self, columns.num_decodes, over_columns(context_read)(columns)
        )
        return np.where(columns.num_decodes > 0, seconds, 0.0)


class Spill(Section):
    """Streaming through memory what no longer fits in the L2 cache together, beside the work itself."""

    per_token_s: Coefficient
    cached_tokens: Coefficient
    """Queries, keys, values and outputs of this many tokens stay in the cache, of twice as many none do."""
    softness: Softness


NO_SPILL = Spill(per_token_s=0.0, cached_tokens=0.0, softness=0.0)
"""For kernels that spill nothing."""


class ChunkLengths(Section):
    """What a chunk of a certain length takes beyond the formula: kernels choose their tiles by length."""

    tokens: tuple[int, ...] = Field(min_length=1)
    """Lengths, rising, >= 1."""
    more_s: tuple[float, ...] = Field(min_length=1)
    """Seconds more, or fewer; linear between lengths and down to none at 0, level beyond the last."""

    @model_validator(mode="after")
    def _fits(self) -> ChunkLengths:
        check_line("lengths", self.tokens, "seconds", self.more_s)
        return self

    @property
    def line(self) -> tuple[Axis, Floats]:
        """The lengths from 0 on and the seconds at them."""
        return axis_of((0, *self.tokens)), np.array((0.0, *self.more_s))

    def at(self, tokens: Ints) -> Floats:
        """Seconds more of single chunks."""
        return over_columns(length_s)(*self.line, tokens)

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
        """Least seconds, by the formula, that one token more adds to a chunk of `tokens`."""
        rows = (self.tile // 2) * (tokens // self.tile + 1)
        return np.asarray(self.per_token_s + self.per_pair_s * rows.astype(np.float64))

    def at(self, columns: StepColumns) -> Floats:
        """Seconds; 0 without chunks."""
        more_s = 0.0 if self.lengths is None else self.lengths.together(columns)
        sizes = columns.prefill_tokens, columns.num_chunks, columns.longest_prefill
        seconds = over_columns(chunk_attention_s)(
            self, self.spill or NO_SPILL, columns.pairs(self.tile), more_s, *sizes
        )
        return np.where(columns.num_chunks > 0, seconds, 0.0)


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
        chunks = columns.pairs(tile), columns.prefill_tokens, columns.longest_prefill
        decodes = columns.num_decodes, over_columns(context_read)(columns), columns.max_decode_context
        return over_columns(fused_attention_s)(self, *chunks, *decodes)


class BesideChunks(Section):
    """What decodes cost beside chunks in one launch where that was not timed, in terms of what they cost
    alone, on top of the chunks.
    """

    decodes: tuple[int, ...] = Field(min_length=2)
    """Numbers of them, rising, >= 1."""
    factors: tuple[Coefficient, ...]
    """Times what they take alone; linear between, level beyond; never falling."""

    @model_validator(mode="after")
    def _rises(self) -> BesideChunks:
        check_line("decodes", self.decodes, "factors", self.factors)
        if any(np.diff(self.factors) < 0):
            raise ValueError("factors must not fall")
        return self


class SlidingAttention(Section):
    """Seconds of one layer's attention with a window, by formula: decodes and chunks in a launch each.

    The formulas are those of other layers, over the tokens in the window.
    """

    num_layers: int = Field(ge=1)
    """Layers with a window; the others reach back to the first token."""
    window: int = Field(ge=1)
    """Tokens that attention reaches back, the present one included."""
    decode: DecodeAttention
    prefill: PrefillAttention


def decode_attention_s(form: Any, num_decodes: Any, context: Any) -> Any:
    """Seconds of `A_dec` in `StepForm` for `num_decodes` >= 1 decodes whose contexts sum to `context`."""
    start_s = form.start_per_token_s * form.start_tokens
    stream_s = chosen(
        context < form.start_tokens,
        (form.per_token_s + form.start_per_token_s) * context,
        form.per_token_s * context + start_s,
    )
    work_s = blend(form.per_decode_s * num_decodes, stream_s, form.softness)
    return form.launch_s + blend(form.floor_s, work_s, form.floor_softness)


def spilled_s(spill: Any, num_tokens: Any) -> Any:
    """Seconds of `Spill` by the tokens of a launch."""
    return spill.per_token_s * smaller(num_tokens, 2.0 * larger(num_tokens - spill.cached_tokens, 0.0))


def length_s(axis: Any, more_s: Any, num_tokens: Any) -> Any:
    """Seconds more of a chunk of `ChunkLengths`, for its axis and the seconds at its knots."""
    found_s = risen(axis.knots, more_s, cell_of(axis, smaller(num_tokens, axis.high)), num_tokens)
    return chosen(num_tokens >= axis.high, more_s[len(more_s) - 1], found_s)


def chunk_attention_s(
    form: Any, spill: Any, num_pairs: Any, more_s: Any, num_tokens: Any, num_chunks: Any, longest: Any
) -> Any:
    """Seconds for chunks alone, at least one, `A_pre` of `StepForm`.

    `num_pairs` are their (query, key) pairs by tiles, `more_s` what their lengths add, `longest` the largest
    context of a chunk, its own tokens included. A spill of 0 seconds a token is none.
    """
    beyond = larger(num_tokens - form.beyond_tokens, 0.0)
    tokens_s = form.per_token_s * num_tokens + form.beyond_per_token_s * beyond
    work_s = form.per_pair_s * num_pairs + tokens_s + form.per_chunk_s * num_chunks + more_s
    spilled = blend(work_s, spilled_s(spill, num_tokens), spill.softness)
    work_s = chosen(spill.per_token_s > 0.0, spilled, work_s)
    work_s = blend(form.per_longest_token_s * longest, work_s, form.softness)
    return form.launch_s + blend(form.floor_s, work_s, form.floor_softness)


def fused_attention_s(
    form: Any,
    num_pairs: Any,
    num_tokens: Any,
    longest: Any,
    num_decodes: Any,
    context: Any,
    longest_decode: Any,
) -> Any:
    """Seconds for chunks and decodes in one launch, `fused` of `StepForm`."""
    work_s = (
        form.per_pair_s * num_pairs
        + form.per_token_s * num_tokens
        + form.per_decode_s * num_decodes
        + form.per_context_token_s * context
        + form.beyond_per_context_token_s * larger(context - form.beyond_context_tokens, 0.0)
    )
    chain_s = larger(form.per_longest_token_s * longest, form.per_longest_decode_token_s * longest_decode)
    return form.launch_s + blend(work_s, chain_s, form.softness)
