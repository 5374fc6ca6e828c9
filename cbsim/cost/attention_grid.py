"""AttentionGrid: attention as tables over measured sizes, where a whole grid of them was timed.

Up to three tables, as the three regimes are three kernels' worth of behaviour; all rise along every axis:

    decode   by the mean context KV / B of decodes and their number B
    prefill  by a chunk's tokens q and its context x
    mixed    by q, x, KV / B and B: one chunk and some decodes in one launch

Between knots a table is multilinear. Beyond them the formula that was fitted to the same timings takes over:
`table(nearest) + work(step) - work(nearest)`, `work` being the linear terms of that formula, so that time
stays monotone and grows linearly far out.

Of several chunks, `g` being the table of chunks alone and `g_min` its smallest value:

    chunks alone   g_min + sum_i (g_i - g_min)
    with decodes   max_i (mixed_i + crowding(B) max(0, sum_{j != i} (g_j - g_min)))

`crowding(B)` is how much dearer a chunk is among so many decodes than alone, medians over the grid.

Unequal contexts. The decodes of a launch that are still at work share the memory's bandwidth, and none walks
its context faster than a chain of `c` seconds a token; once fewer than `m = c R` are left, R being the tokens
a second of a full launch, bandwidth lies idle. With contexts of mean k whose longest is Kmax and whose tail
is exponential (its scale is then (Kmax - k) / (H_B - 1), H_B the harmonic number), the time lost is

    skew = c (Kmax - k) / (H_B - 1) (ln m + gamma - 1 + exp(-gamma) / m)    for B > m, else 0

and no launch ends before its longest decode does: max(mixed + skew, mixed(q_min, 0, Kmax, 1)). Launches of
decodes alone that are too few to fill a GPU split long contexts, and so have no such tail.

Where launches of unequal contexts were timed, a table by tokens of the chunks and number of decodes stands in
place of that theory: seconds lost for each token that Kmax is beyond k.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.cost.attention import Coefficient
from cbsim.cost.costrules import as_record
from cbsim.cost.elementwise import chosen, larger, over_columns
from cbsim.cost.interpolation import Axis, at_line, at_plane, at_space, axis_of, nearest
from cbsim.cost.step_columns import Floats

MAX_KNOT = 10_000_000
"""Tokens or decodes beyond what anybody times."""
_BY_AXES: dict[int, Callable[..., Any]] = {1: at_line, 2: at_plane, 4: at_space}
"""How tables are read, by their number of axes."""


class Table(Section):
    """Seconds (or a factor) over a rectangular grid of sizes, never falling along any axis."""

    axes: tuple[tuple[float, ...], ...] = Field(min_length=1)
    """The knots of each axis, rising whole numbers, at least two."""
    seconds: tuple[Coefficient, ...]
    """At every combination of knots, the last axis fastest."""

    @model_validator(mode="after")
    def _rises(self) -> Table:
        if len(self.seconds) != prod(len(axis) for axis in self.axes):
            raise ValueError(f"{len(self.seconds)} seconds for a grid of {self.shape}")
        values = self.values
        for number, axis in enumerate(self.axes):
            if len(axis) < 2 or any(np.diff(axis) <= 0):
                raise ValueError(f"axis {number} must have two or more knots that rise")
            if any(knot % 1 for knot in axis) or not 0 <= axis[0] <= axis[-1] <= MAX_KNOT:
                raise ValueError(f"knots of axis {number} must be whole numbers up to {MAX_KNOT:,}")
            if (np.diff(values, axis=number) < 0).any():
                raise ValueError(f"seconds must not fall along axis {number}")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Knots by axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def values(self) -> Floats:
        """The seconds as an array of that shape."""
        return np.array(self.seconds, dtype=np.float64).reshape(self.shape)

    def nearest(self, *sizes: Any) -> list[Floats]:
        """Sizes moved onto the grid where they lie beyond its ends."""
        return [over_columns(nearest)(axis, size) for size, axis in zip(sizes, self.known_axes, strict=True)]

    def at(self, *sizes: Any) -> Floats:
        """Seconds at sizes that lie on the grid, multilinear between its knots. One, two or four axes."""
        return over_columns(_BY_AXES[len(self.axes)])(self.values.ravel(), self.known_axes, *sizes)

    @property
    def known_axes(self) -> tuple[Axis, ...]:
        """The axes as formulas take them."""
        return tuple(map(axis_of, self.axes))


class Slopes(Section):
    """Seconds for more of a size than the grid has."""

    per_pair_s: Coefficient = 0.0
    per_token_s: Coefficient = 0.0
    per_decode_s: Coefficient = 0.0
    per_context_token_s: Coefficient = 0.0


def chunk_growth_s(slopes: Any, tokens: Any, context: Any) -> Any:
    """Seconds of `Slopes` for a chunk of `tokens` over a context."""
    return slopes.per_pair_s * (tokens * context + 0.5 * tokens * tokens) + slopes.per_token_s * tokens


def decodes_growth_s(slopes: Any, num_decodes: Any, mean_context: Any) -> Any:
    """Seconds of `Slopes` for decodes of a mean context."""
    return slopes.per_decode_s * num_decodes + slopes.per_context_token_s * (num_decodes * mean_context)


class UnequalTable(Section):
    """Seconds that decodes of unequal contexts lose, for each token that the longest is beyond the mean."""

    tokens: tuple[int, ...] = Field(min_length=2)
    """Of the chunks in the launch, rising."""
    decodes: tuple[int, ...] = Field(min_length=2)
    """In the launch, rising, >= 1."""
    lost_s_per_token: tuple[Coefficient, ...]
    """At every combination, decodes fastest; linear between, level beyond."""

    @model_validator(mode="after")
    def _fits(self) -> UnequalTable:
        for name in ("tokens", "decodes"):
            if any(np.diff(getattr(self, name)) <= 0):
                raise ValueError(f"{name} must rise")
        if len(self.lost_s_per_token) != len(self.tokens) * len(self.decodes):
            raise ValueError(f"{len(self.lost_s_per_token)} seconds for {self.tokens} by {self.decodes}")
        return self


class Skew(Section):
    """What unequal contexts add: as timed, else derived from timings of equal ones."""

    chain_s_per_token: Coefficient
    """c: one decode alone in a launch that doesn't split its context."""
    tokens_per_s: float = Field(gt=0)
    """R: of all decodes together in a full launch."""
    split_up_to: int = Field(ge=0)
    """Up to this number of decodes, contexts are split, and there is no tail."""
    timed: UnequalTable | None = None

    @property
    def record(self) -> np.void:
        """What rules take: c, c (ln m + gamma - 1 + exp(-gamma) / m), m, `split_up_to`, and whether a table
        says more.
        """
        left = max(self.chain_s_per_token * self.tokens_per_s, 1.0)
        tail = float(np.log(left) + np.euler_gamma - 1.0 + np.exp(-np.euler_gamma) / left)
        figures = {
            "chain_s_per_token": self.chain_s_per_token,
            "tail_s_per_token": self.chain_s_per_token * max(tail, 0.0),
            "num_left": left,
            "split_up_to": max(self.split_up_to, 1),
            "is_timed": self.timed is not None,
        }
        return as_record(figures)


def harmonic_numbers(last: int) -> Floats:
    """The harmonic numbers from 1 to `last`, each with 1 more; the one of 0 is 1."""
    return np.asarray(np.cumsum(1.0 / np.maximum(np.arange(last + 1), 1)))


def skew_factor_s(skew: Any, harmonic: Any, num_decodes: Any) -> Any:
    """Seconds for each token that the longest context is beyond the mean; `harmonic` is 1 + H_B."""
    has_tail = (num_decodes > skew.num_left) & (num_decodes > skew.split_up_to)
    return chosen(has_tail, skew.tail_s_per_token / larger(harmonic - 2.0, 0.5), 0.0)


class DecodeTable(Section):
    """Decodes alone."""

    table: Table
    """By mean context and number."""
    slopes: Slopes
    skew: Skew


class ChunkTable(Section):
    """Chunks alone."""

    table: Table
    """By tokens and context, of one chunk."""
    slopes: Slopes


class MixedTable(Section):
    """One chunk and some decodes in one launch."""

    table: Table
    """By tokens and context of the chunk, mean context and number of the decodes."""
    slopes: Slopes
    skew: Skew
    crowding: Table
    """By decodes: a factor, at least 1."""


class AttentionGrid(Section):
    """Seconds of one layer's attention by tables: of decodes, and of what else was timed over a grid."""

    decode: DecodeTable
    prefill: ChunkTable | None = None
    mixed: MixedTable | None = None
    """Only with `prefill`."""

    @model_validator(mode="after")
    def _axes_fit(self) -> AttentionGrid:
        for name, num_axes in {"decode": 2, "prefill": 2, "mixed": 4}.items():
            part = getattr(self, name)
            if part is not None and len(part.table.axes) != num_axes:
                raise ValueError(f"{name}.table must have {num_axes} axes")
        if self.mixed is not None and (self.prefill is None or len(self.mixed.crowding.axes) != 1):
            raise ValueError("mixed goes with prefill, and its crowding has one axis")
        return self
