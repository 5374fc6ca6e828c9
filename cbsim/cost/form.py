"""StepForm: the seconds of a step as a formula whose coefficients are fitted to measured kernels.

With L layers, T tokens, S rows of logits, chunks (q, x) of q tokens over x of context, B decodes over KV
tokens of context in all, and `blend(a, b, s) = (a + b + sqrt((a - b)^2 + s a b)) / 2`, which runs from
max(a, b) at s = 0 to a + b at s = 4:

    t       = L g(T) + LM(S) + L A_dec + L A_pre
    g       = one layer outside attention: a rising piecewise-linear table, linear beyond its last knot;
              T and S are counted by tiles (`cbsim/cost/tiles.py`)
    LM      = fixed + per_row S + per_row_beyond_128 max(0, S - 128)
            + per_row_beyond_256 max(0, S - 256)
    A_dec   = launch + blend(blend(per_decode B, per_token KV + start_per_token min(KV, start), s),
                             floor, s')
    A_pre   = launch + blend(blend(per_pair P + per_token Q + per_chunk n
                                   + beyond_per_token max(0, Q - beyond), per_longest_token X, s),
                             floor, s')
    P       = sum of ceil(q / tile) tile (x + (q + tile) / 2),  Q = sum q,  X = max(x + q)
    fused   = launch + blend(per_pair P + per_token Q + per_decode B + per_context_token KV
                             + beyond_per_context_token max(0, KV - beyond),
                             max(per_longest_token X, per_longest_decode_token Kmax), s)

Where a profile has the `fused` term, a step with chunks and decodes costs the largest of it, A_dec and A_pre
in place of their sum. Where one of the three was timed over a whole grid, its table (`cbsim/cost/grid.py`)
stands in its place. No coefficient is negative, so the time is monotone in everything and linear far out.
Sums, products, square roots and comparisons are exactly rounded everywhere, so the scalar and the vector form
agree to the bit; that is why `blend` stands where others write a p-norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.cost.base import StepShape
from cbsim.cost.grid import AttentionGrid
from cbsim.cost.tiles import Tiles

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Coefficient = Annotated[float, Ge(0)]
Softness = Annotated[float, Ge(0), Le(4)]


def blend(a: Any, b: Any, softness: float) -> Any:
    """A smooth maximum of arrays: `max(a, b)` at softness 0, `a + b` at 4; homogeneous, monotone in both."""
    difference = a - b
    return 0.5 * ((a + b) + np.sqrt(difference * difference + softness * a * b))


@dataclass(frozen=True)
class StepColumns:
    """Steps as columns of equal length, one row a step: what `StepForm` is a function of."""

    num_tokens: Ints
    num_logits: Ints
    num_chunks: Ints
    prefill_tokens: Ints
    longest_prefill: Ints
    """Largest context of a chunk, its own tokens included; 0 without chunks."""
    num_decodes: Ints
    decode_context: Ints
    max_decode_context: Ints
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    _pairs: dict[int, Ints] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_shapes(cls, shapes: Sequence[StepShape]) -> StepColumns:
        """The columns of some steps."""

        def column(values: list[int]) -> Ints:
            return np.array(values, dtype=np.int64)

        return cls(
            num_tokens=column([shape.num_tokens for shape in shapes]),
            num_logits=column([shape.num_logits for shape in shapes]),
            num_chunks=column([len(shape.chunks) for shape in shapes]),
            prefill_tokens=column([sum(tokens for tokens, _ in shape.chunks) for shape in shapes]),
            longest_prefill=column([max(map(sum, shape.chunks), default=0) for shape in shapes]),
            num_decodes=column([shape.num_decodes for shape in shapes]),
            decode_context=column([shape.decode_context for shape in shapes]),
            max_decode_context=column([shape.max_decode_context for shape in shapes]),
            chunks=tuple(shape.chunks for shape in shapes),
        )

    def take(self, places: Ints) -> StepColumns:
        """Some of the steps."""
        counts = {
            each.name: getattr(self, each.name)[places]
            for each in fields(self)
            if each.name not in ("chunks", "_pairs")
        }
        return StepColumns(**counts, chunks=tuple(self.chunks[place] for place in places.tolist()))

    def shapes(self) -> list[StepShape]:
        """The steps one by one."""
        counts = (self.num_decodes, self.decode_context, self.max_decode_context)
        finishing = (self.num_logits - self.num_decodes).tolist()
        rows = zip(self.chunks, finishing, *(count.tolist() for count in counts), strict=True)
        return [StepShape(*row) for row in rows]

    def pairs(self, tile: int) -> Ints:
        """(query, key) pairs of each step's chunks, computed tile by tile."""
        if tile not in self._pairs:
            counts = [num_pairs(chunks, tile) for chunks in self.chunks]
            self._pairs[tile] = np.array(counts, dtype=np.int64)
        return self._pairs[tile]


def num_pairs(chunks: Sequence[tuple[int, int]], tile: int) -> int:
    """(query, key) pairs computed for chunks `(tokens, context)` by tiles of `tile` (even) queries."""
    half_tile = tile // 2
    total = 0
    for tokens, context in chunks:
        total += -(-tokens // tile) * half_tile * (2 * context + tokens + tile)
    return total


class DenseTable(Section):
    """Seconds of one layer outside attention by tokens: rising, linear between knots and beyond the last."""

    tiles: Tiles = Tiles()
    """How tokens are counted."""
    tokens: tuple[int, ...] = Field(min_length=1)
    """The knots, counted tokens, rising, >= 1."""
    seconds: tuple[Coefficient, ...] = Field(min_length=1)
    """At the knots; never falling."""
    tail_s_per_token: Coefficient
    """Slope beyond the last knot."""

    @model_validator(mode="after")
    def _rises(self) -> DenseTable:
        if len(self.tokens) != len(self.seconds):
            raise ValueError(f"{len(self.tokens)} token counts for {len(self.seconds)} seconds")
        if self.tokens[0] < 1 or any(np.diff(self.tokens) <= 0):
            raise ValueError("tokens must be positive and rise")
        if any(np.diff(self.seconds) < 0):
            raise ValueError("seconds must not fall")
        return self

    def at(self, num_tokens: Ints | Floats) -> Floats:
        """Seconds at some token counts: none for 0, those of the first knot below it."""
        knots = np.array(self.tokens, dtype=np.float64)
        seconds = np.array(self.seconds)
        counted = self.tiles.counted(num_tokens)
        inside = np.interp(counted, knots, seconds)
        beyond = seconds[-1] + self.tail_s_per_token * (counted - knots[-1])
        return np.where(counted > 0, np.where(counted > knots[-1], beyond, inside), 0.0)


class LogitsForm(Section):
    """Seconds of LM head and sampling by rows of logits."""

    tiles: Tiles = Tiles()
    """How rows are counted."""
    fixed_s: Coefficient
    per_row_s: Coefficient
    per_row_beyond_128_s: Coefficient
    per_row_beyond_256_s: Coefficient

    def at(self, num_rows: Ints | Floats) -> Floats:
        """Seconds at row counts; no rows take no time."""
        rows = self.tiles.counted(num_rows)
        seconds: Floats = (
            self.fixed_s
            + self.per_row_s * rows
            + self.per_row_beyond_128_s * np.maximum(rows - 128, 0)
            + self.per_row_beyond_256_s * np.maximum(rows - 256, 0)
        )
        return np.where(num_rows > 0, seconds, 0.0)


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

    def at(self, columns: StepColumns) -> Floats:
        """Seconds; 0 without chunks."""
        work = (
            self.per_pair_s * columns.pairs(self.tile)
            + self.tokens_s(columns.prefill_tokens)
            + self.per_chunk_s * columns.num_chunks
        )
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
        work = (
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


class StepForm(Section):
    """A whole step on the GPU, host time apart."""

    num_layers: int = Field(ge=1)
    dense: DenseTable
    """One layer outside attention, by tokens: norms, projections, rotary positions, MLP, all-reduces."""
    logits: LogitsForm
    """LM head and sampling, by rows of logits."""
    decode: DecodeAttention
    prefill: PrefillAttention
    fused: FusedAttention | None = None
    grid: AttentionGrid | None = None
    """Tables of attention in place of some or all of the three formulas."""

    def attention_s(self, columns: StepColumns) -> tuple[Floats, Floats]:
        """Seconds of one layer's attention: the decodes', and the chunks' (or all of a mixed step)."""
        grid = self.grid
        decode = self.decode.at(columns) if grid is None else grid.decodes(columns)
        has_chunks = grid is not None and grid.prefill is not None
        prefill = grid.chunks(columns) if grid is not None and has_chunks else self.prefill.at(columns)
        if grid is not None and grid.mixed is not None:
            together = grid.chunks_among_decodes(columns)
        elif self.fused is not None:
            together = self.fused.at(columns, self.prefill.tile)
        else:
            return decode, prefill
        together = np.maximum(np.maximum(together, decode), prefill)
        mixed = (columns.num_chunks > 0) & (columns.num_decodes > 0)
        return np.where(mixed, 0.0, decode), np.where(mixed, together, prefill)

    def seconds(self, columns: StepColumns, dense_tokens: Ints | None = None) -> Floats:
        """Seconds of steps; `dense_tokens` replaces `num_tokens` in g(T) where CUDA graphs pad it."""
        decode, prefill = self.attention_s(columns)
        dense = self.dense.at(columns.num_tokens if dense_tokens is None else dense_tokens)
        layers = self.num_layers
        total: Floats = (
            (layers * dense + self.logits.at(columns.num_logits)) + layers * decode
        ) + layers * prefill
        return total
