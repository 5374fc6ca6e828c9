"""Fits of attention: of decodes and of chunks alone, and of both in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from cbsim.cost.attention import ChunkLengths, DecodeAttention, FusedAttention, PrefillAttention, Spill
from cbsim.cost.step_columns import Floats, StepColumns, num_pairs
from cbsim.lab.calibrate.coefficients import (
    NUM_FOLDS,
    Fit,
    Mask,
    Search,
    Unknown,
    Values,
    can_be_left_out,
    clearly_best,
    is_beyond,
    left_out_loss,
    soft_loss,
)
from cbsim.lab.calibrate.point import Point, columns_of, seconds_of

SERVING_WEIGHT = 3.0
"""Weight of points where serving sits: 8 to 128 decodes with 256 to 3,000 tokens of context each."""
ODD_WEIGHT = 0.3
"""Weight of points where it hardly ever is: contexts under 16 tokens."""
NO_START = {"start_per_token_s": 0.0, "start_tokens": 0.0}
NOTHING_BEYOND = {"beyond_per_context_token_s": 0.0, "beyond_context_tokens": 0.0}
"""Of lines that don't bend."""


def fit_decode(points: Sequence[Point], rng: np.random.Generator) -> DecodeAttention:
    """Fit the attention of decodes."""
    columns, seconds = columns_of(points), seconds_of(points)
    shortest = float(seconds.min())
    context, decodes = columns.decode_context, columns.num_decodes
    longest, widest = int(context.argmax()), int(np.argmax(decodes / context))
    per_token_s = float(seconds[longest] / context[longest])
    unknowns = [
        Unknown("launch_s", 0.5 * shortest),
        Unknown("floor_s", 0.5 * shortest),
        Unknown("per_decode_s", 0.3 * float(seconds[widest] / decodes[widest])),
        Unknown("per_token_s", 0.9 * per_token_s),
        Unknown("start_per_token_s", 0.1 * per_token_s),
        Unknown("start_tokens", 0.1 * float(context[longest])),
        Unknown("softness", 1.0, upper=4.0),
        Unknown("floor_softness", 0.5, upper=4.0),
    ]

    def predict(values: Values) -> Floats:
        return DecodeAttention.model_construct(None, **values).at(columns)

    search = Search(seconds, _serving_weights(columns), rng)
    return DecodeAttention(**search.fit_bent(predict, unknowns, "start_tokens", NO_START, context))


def fit_fused(
    points: Sequence[Point], decode: DecodeAttention, prefill: PrefillAttention, rng: np.random.Generator
) -> FusedAttention:
    """Fit the attention of mixed steps; a step never costs less than its decodes or its chunks alone."""
    columns, seconds = columns_of(points), seconds_of(points)
    context = columns.decode_context
    alone = np.maximum(decode.at(columns), prefill.at(columns))
    longest_s = float(np.median(seconds / np.maximum(columns.longest_prefill, columns.max_decode_context)))
    unknowns = [
        Unknown("launch_s", 0.5 * float(seconds.min())),
        Unknown("per_pair_s", max(prefill.per_pair_s, 1e-15)),
        Unknown("per_token_s", max(prefill.per_token_s, 1e-12)),
        Unknown("per_decode_s", max(decode.per_decode_s, 1e-12)),
        Unknown("per_context_token_s", max(decode.per_token_s, 1e-15)),
        Unknown("beyond_per_context_token_s", max(decode.per_token_s, 1e-15)),
        Unknown("beyond_context_tokens", 0.3 * float(context.max())),
        Unknown("per_longest_token_s", 0.1 * longest_s),
        Unknown("per_longest_decode_token_s", 0.1 * longest_s),
        Unknown("softness", 1.0, upper=4.0),
    ]

    def predict(values: Values) -> Floats:
        form = FusedAttention.model_construct(None, **values)
        return np.maximum(form.at(columns, prefill.tile), alone)

    search = Search(seconds, _serving_weights(columns), rng)
    found = search.fit_bent(predict, unknowns, "beyond_context_tokens", NOTHING_BEYOND, context)
    return FusedAttention(**found)


def _serving_weights(columns: StepColumns) -> Floats:
    """More for decodes as servers have them, less for contexts that hardly occur."""
    decodes = columns.num_decodes
    mean_context = columns.decode_context / decodes
    weights = np.ones(len(decodes))
    usual = (decodes >= 8) & (decodes <= 128) & (mean_context >= 256) & (mean_context <= 3000)
    weights[usual] = SERVING_WEIGHT
    weights[mean_context < 16] = ODD_WEIGHT
    return weights


TILES = (16, 32, 64, 128)
"""Tile heights tried: FlashAttention kernels pack the heads of a group, so a tile holds fewer queries."""
SHORT_CHUNK = 64
SHORT_WEIGHT = 0.3
"""Weight of points whose chunks are shorter than that: they are hardly ever alone."""
GOOD_LOSS = 1.25
"""Of a formula that needs nothing more: errors as of timings that repeat within 1.5 %."""
PULL = 0.15
"""Towards no effect of a length: a factor of 1 + x counts as a relative error of this share of x."""
LENGTH_RATIO = 1.19
"""Lengths with an effect of their own are at least this ratio apart."""
NO_TOKENS_BEYOND = {"beyond_per_token_s": 0.0, "beyond_tokens": 0.0}
SPILL = "spill."
"""Begins the names of the coefficients of `Spill`."""

Memory = Literal["none", "beyond", "spill"]
"""How data that outgrow the L2 cache tell: not at all, by each token beyond a size, by streaming them all."""


class Variant(NamedTuple):
    """What the formula has beside its usual terms."""

    tile: int
    memory: Memory
    lengths: tuple[int, ...] = ()
    """Lengths with an effect of their own."""

    def attention(self, values: Any) -> PrefillAttention:
        """The form with some coefficients, or columns of them, unchecked; those of lengths are logarithms of
        factors.
        """
        form: dict[str, Any] = {"tile": self.tile, **NO_TOKENS_BEYOND}
        form |= {name: value for name, value in values.items() if name in PrefillAttention.model_fields}
        spill = {name: values[f"{SPILL}{name}"] for name in Spill.model_fields if f"{SPILL}{name}" in values}
        if spill:
            form["spill"] = Spill.model_construct(None, **spill)
        if self.lengths:
            logs = [np.atleast_1d(values[_effect(length)]) for length in self.lengths]
            plain = PrefillAttention.model_construct(None, **form)
            form["lengths"] = _chunk_lengths(plain, self.lengths, np.concatenate(logs, axis=-1))
        return PrefillAttention.model_construct(None, **form)

    def checked(self, values: Values) -> PrefillAttention:
        """The form with coefficients that were found."""
        return PrefillAttention(**self.attention(values).model_dump())


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of chunks alone, and fits of variants to all or some of them."""

    columns: StepColumns
    seconds: Floats
    rng: np.random.Generator

    def take(self, chosen: Mask) -> Timings:
        """Some of them."""
        return Timings(self.columns.take(np.flatnonzero(chosen)), self.seconds[chosen], self.rng)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of chunks, thinned."""
        kept: list[int] = []
        for length in np.unique(self.columns.flat_chunks[1]).tolist():
            if not kept or length >= LENGTH_RATIO * kept[-1]:
                kept.append(length)
        return tuple(kept)

    def fit(self, variant: Variant, start_at: Values | None = None) -> Fit:
        """The coefficients of a variant."""
        weights = np.ones(len(self.seconds))
        weights[self.columns.prefill_tokens < SHORT_CHUNK * self.columns.num_chunks] = SHORT_WEIGHT

        def predict(values: Values) -> Floats:
            return variant.attention(values).at(self.columns)

        return Search(self.seconds, weights, self.rng).fit(predict, self.unknowns(variant), start_at)

    def best_tile(self, memory: Memory) -> tuple[Variant, Fit]:
        """The variant whose tile height leaves the least loss."""
        fits = {(variant := Variant(tile, memory)): self.fit(variant) for tile in TILES}
        return min(fits.items(), key=lambda item: item[1].loss)

    def unknowns(self, variant: Variant) -> list[Unknown]:
        """The coefficients of a variant, with first guesses."""
        columns, seconds = self.columns, self.seconds
        shortest, tokens = float(seconds.min()), columns.prefill_tokens
        pairs = columns.pairs(variant.tile)
        largest, widest = int(pairs.argmax()), int(np.argmax(tokens / columns.pairs(2)))
        per_token_s = float(seconds[widest] / tokens[widest])
        memory: dict[Memory, list[Unknown]] = {
            "none": [],
            "beyond": [
                Unknown("beyond_per_token_s", 0.1 * per_token_s),
                Unknown("beyond_tokens", 0.5 * float(tokens.max())),
            ],
            "spill": [
                Unknown(f"{SPILL}per_token_s", 0.5 * per_token_s),
                Unknown(f"{SPILL}cached_tokens", 0.3 * float(tokens.max())),
                Unknown(f"{SPILL}softness", 1.0, upper=4.0),
            ],
        }
        return [
            Unknown("launch_s", 0.5 * shortest),
            Unknown("floor_s", 0.5 * shortest),
            Unknown("per_pair_s", 0.8 * float(seconds[largest] / pairs[largest])),
            Unknown("per_token_s", 0.3 * per_token_s),
            Unknown("per_chunk_s", 0.1 * shortest),
            *memory[variant.memory],
            Unknown("per_longest_token_s", 0.1 * float(seconds[largest] / columns.longest_prefill[largest])),
            Unknown("softness", 1.0, upper=4.0),
            Unknown("floor_softness", 1.0, upper=4.0),
            *(Unknown(_effect(n), 0.0, upper=1.0, lower=-1.0, pull=PULL) for n in variant.lengths),
        ]


def fit_prefill(
    points: Sequence[Point], rng: np.random.Generator, *, with_lengths: bool = True
) -> PrefillAttention:
    """Fit the attention of prompt chunks.

    The tile height is the one that leaves the least loss. Data that spill from the cache and effects of
    lengths (which `with_lengths` allows) stay out unless cross-validation finds timings clearly nearer with
    them; so does whatever would begin where hardly anything was timed.
    """
    timings = Timings(columns_of(points), seconds_of(points), rng)
    tokens = timings.columns.prefill_tokens
    plain, plain_fit = timings.best_tile("beyond")
    if is_beyond(plain_fit.values["beyond_tokens"], tokens):
        plain, plain_fit = timings.best_tile("none")
    form = plain.checked(plain_fit.values)
    errors = np.log(form.at(timings.columns) / timings.seconds)
    if soft_loss(errors) < GOOD_LOSS or not can_be_left_out(len(points)):
        return form
    candidates = [(plain, plain_fit)]
    spilling, spilling_fit = timings.best_tile("spill")
    if not is_beyond(spilling_fit.values[f"{SPILL}cached_tokens"], tokens):
        candidates.append((spilling, spilling_fit))
    lengths = timings.lengths if with_lengths else ()
    no_effects = {_effect(length): 0.0 for length in lengths}
    for variant, fit in list(candidates) if lengths else []:
        own = variant._replace(lengths=lengths)
        candidates.append((own, timings.fit(own, fit.values | no_effects)))
    fold = rng.permutation(np.arange(len(points)) % NUM_FOLDS)

    def loss(variant: Variant, fit: Fit) -> float:
        def predict(kept: Mask) -> Floats:
            found = timings.take(kept).fit(variant, fit.values)
            return variant.attention(found.values).at(timings.take(~kept).columns)

        return left_out_loss(timings.seconds, fold, predict)

    best, best_fit = candidates[clearly_best([loss(*each) for each in candidates])]
    return best.checked(best_fit.values)


class _EachLengths(NamedTuple):
    """Several `ChunkLengths`, for as many values of each coefficient."""

    each: tuple[ChunkLengths, ...]

    def together(self, columns: StepColumns) -> Floats:
        """Seconds more of all chunks of each step, a row for each of them."""
        return np.stack([lengths.together(columns) for lengths in self.each])


def _chunk_lengths(
    plain: PrefillAttention, lengths: tuple[int, ...], logs: Floats
) -> ChunkLengths | _EachLengths:
    """Effects by length, as far as a longer chunk does not take less for them; `logs` may be rows of them."""
    tokens = np.array(lengths)
    pairs = np.array([num_pairs(((length, 0),), plain.tile) for length in lengths])
    formula = plain.per_pair_s * pairs + plain.per_token_s * tokens + plain.per_chunk_s
    more = formula * np.expm1(logs)
    starts = np.concatenate([[0], tokens[:-1]])
    falls = plain.least_slope(starts) * (tokens - starts)
    last: Any = 0.0
    for place in range(len(lengths)):
        more[..., place] = last = np.maximum(more[..., place], last - falls[..., place])
    rows = [
        ChunkLengths.model_construct(None, tokens=lengths, more_s=tuple(row))
        for row in np.atleast_2d(more).tolist()
    ]
    return rows[0] if more.ndim == 1 else _EachLengths(tuple(rows))


def _effect(length: int) -> str:
    """The name of a length's coefficient."""
    return f"x{length}"
