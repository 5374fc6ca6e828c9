"""StepForm: the seconds of a step as a formula whose coefficients are fitted to measured kernels.

With L layers, T tokens, S rows of logits, chunks (q, x) of q tokens over x of context, B decodes over KV
tokens of context in all (those of shared blocks counted once, see `context_read`), and
`blend(a, b, s) = (a + b + sqrt((a - b)^2 + s a b)) / 2`, which runs from max(a, b) at s = 0 to a + b at
s = 4:

    t       = L g(T) + LM(S) + L A_dec + L A_pre
    g       = one layer outside attention: a piecewise-linear table, linear beyond its last knot, which rises
              unless timings clearly fall;
              T and S are counted by `Tiles`. Routed experts and collectives have tables of their own, by
              the tokens of all ranks, averaged over all layers
    LM      = fixed + per_row S + per_row_beyond_128 max(0, S - 128)
            + per_row_beyond_256 max(0, S - 256)
    A_dec   = launch + blend(blend(per_decode B, per_token KV + start_per_token min(KV, start), s),
                             floor, s')
    A_pre   = launch + blend(blend(W, per_longest_token X, s), floor, s')
    W       = per_pair P + per_token Q + per_chunk n + beyond_per_token max(0, Q - beyond)
    P       = sum of ceil(q / tile) tile (x + (q + tile) / 2),  Q = sum q,  X = max(x + q)
    fused   = launch + blend(per_pair P + per_token Q + per_decode B + per_context_token KV
                             + beyond_per_context_token max(0, KV - beyond),
                             max(per_longest_token X, per_longest_decode_token Kmax), s)

Where timings say so, W has more: first `+ sum more(q)`, a piecewise-linear table of what chunks of certain
lengths take beyond it; then it is `blend(W, per_token min(Q, 2 max(0, Q - cached)), s'')`, the second being
the launch's data streamed through memory once they outgrow the L2 cache.

Where a profile has the `fused` term, a step with chunks and decodes costs the largest of it, A_dec and A_pre
in place of their sum. Where nobody timed mixed launches and other GPUs' timings stand in, it costs
A_pre + factor(B) A_dec, no less than either. Where one of the three was timed over a whole grid, its table
(`attention_grid.py`) stands in its place. Layers with a window have formulas of their own, in which KV, P and
X count what lies in the window. No coefficient is negative, so where g rises the time is monotone in
everything; it is linear far out.
Sums, products, square roots and comparisons are exactly rounded everywhere, so the scalar and the vector form
agree to the bit; that is why `blend` stands where others write a p-norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_validator

from cbsim.config.section import Section
from cbsim.cost.attention import (
    BesideChunks,
    Coefficient,
    DecodeAttention,
    FusedAttention,
    PrefillAttention,
    SlidingAttention,
)
from cbsim.cost.attention_grid import AttentionGrid
from cbsim.cost.elementwise import (
    cell_of,
    chosen,
    larger,
    over_columns,
    power_of_two_from,
    rounded_up,
    smaller,
)
from cbsim.cost.interpolation import axis_of, check_line, risen
from cbsim.cost.step_columns import Floats, Ints


class Tiles(Section):
    """Rows are computed by tiles, the last of them partly empty (tile quantisation, NVIDIA's "Matrix
    Multiplication Background User's Guide").

    Kernels come in heights of powers of two; the lowest tile that holds all rows is taken, up to `height`.
    """

    height: int = Field(default=1, ge=1)
    """Rows of the largest tile, a power of two; 1 for none."""
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of its time that an empty row still takes."""

    @field_validator("height")
    @classmethod
    def _is_power_of_two(cls, height: int) -> int:
        if height & (height - 1):
            raise ValueError("must be a power of two")
        return height

    def counted(self, num_rows: Any) -> Floats:
        """Rows that count, for an array of numbers of rows."""
        return over_columns(counted_rows)(self, np.asarray(num_rows, np.float64))


def counted_rows(tiles: Any, num_rows: Any) -> Any:
    """Rows that count, empty ones by their share: `n + share (whole tiles - n)`. It rises with n."""
    lowest = power_of_two_from(larger(num_rows, 1.0))
    whole = chosen(num_rows <= tiles.height, lowest, rounded_up(num_rows / tiles.height) * tiles.height)
    return chosen(num_rows > 0, num_rows + tiles.share * (whole - num_rows), 0.0)


class DenseTable(Section):
    """Seconds of one layer outside attention by tokens, linear between knots and beyond the last.

    They rise as a rule. They may fall where timings do: cuBLAS 12 takes longer for 64 rows than for 128.
    """

    tiles: Tiles = Tiles()
    """How tokens are counted."""
    tokens: tuple[int, ...] = Field(min_length=1)
    """The knots, counted tokens, rising, >= 1."""
    seconds: tuple[Coefficient, ...] = Field(min_length=1)
    """At the knots."""
    tail_s_per_token: Coefficient
    """Slope beyond the last knot."""

    @model_validator(mode="after")
    def _rises(self) -> DenseTable:
        check_line("tokens", self.tokens, "seconds", self.seconds)
        return self

    def at(self, num_tokens: Ints | Floats) -> Floats:
        """Seconds at some token counts: none for 0, those of the first knot below it."""
        return over_columns(dense_s)(self.line, np.asarray(num_tokens, np.float64))

    @property
    def line(self) -> DenseLine:
        """The table as `dense_s` takes it."""
        axis, seconds = axis_of((0, *self.tokens)), np.array((self.seconds[0], *self.seconds))
        return DenseLine(self.tiles, axis, seconds, self.tail_s_per_token)


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
        return over_columns(logits_s)(self, self.tiles, np.asarray(num_rows, np.float64))


class DenseLine(NamedTuple):
    """A `DenseTable` as `dense_s` takes it."""

    tiles: Any
    axis: Any
    """Its knots, and 0 before them."""
    seconds: Any
    """At those; at 0 as at the first knot."""
    tail_s_per_token: float


def dense_s(line: Any, num_tokens: Any) -> Any:
    """Seconds of one layer outside attention: none for 0 tokens, those of the first knot below it."""
    axis, seconds = line.axis, line.seconds
    counted = counted_rows(line.tiles, num_tokens)
    inside_s = risen(axis.knots, seconds, cell_of(axis, smaller(counted, axis.high)), counted)
    beyond_s = seconds[len(seconds) - 1] + line.tail_s_per_token * (counted - axis.high)
    return chosen(counted > 0, chosen(counted >= axis.high, beyond_s, inside_s), 0.0)


def logits_s(form: Any, tiles: Any, num_rows: Any) -> Any:
    """Seconds of LM head and sampling, `LM` of `StepForm`; no rows take no time."""
    rows = counted_rows(tiles, num_rows)
    seconds = (
        form.fixed_s
        + form.per_row_s * rows
        + form.per_row_beyond_128_s * larger(rows - 128.0, 0.0)
        + form.per_row_beyond_256_s * larger(rows - 256.0, 0.0)
    )
    return chosen(num_rows > 0, seconds, 0.0)


class StepForm(Section):
    """A whole step on the GPU, host time apart."""

    num_layers: int = Field(ge=1)
    dense: DenseTable
    """One layer outside attention, by tokens: norms, projections, rotary positions, MLP, shared experts."""
    experts: DenseTable | None = None
    """Routed experts and their router, by the tokens of all ranks, averaged over all layers."""
    collectives: DenseTable | None = None
    """All-reduces and all-to-alls, by the tokens of all ranks, averaged over all layers."""
    logits: LogitsForm
    """LM head and sampling, by rows of logits."""
    decode: DecodeAttention
    prefill: PrefillAttention
    fused: FusedAttention | None = None
    beside: BesideChunks | None = None
    """In place of `fused`, an estimate."""
    grid: AttentionGrid | None = None
    """Tables of attention in place of some or all of the three formulas."""
    sliding: SlidingAttention | None = None
    """Attention of the layers with a window."""

    @model_validator(mode="after")
    def _layers_add_up(self) -> StepForm:
        if self.sliding is not None and self.sliding.num_layers > self.num_layers:
            raise ValueError(f"got {self.sliding.num_layers} sliding layers of {self.num_layers}")
        return self
