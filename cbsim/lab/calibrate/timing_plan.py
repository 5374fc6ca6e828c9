"""The plan of a calibration: which kernels are timed at which sizes, coarse to fine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbsim.lab.calibrate.point import Chunks, Op, Point, Split

PlanName = Literal["quick", "full"]

DENSE_TOKENS = (
    *(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *(640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 8192, 10240),
    *(12288, 16384),
)
EDGE_TOKENS = (129, 513, 257, 1025, 65, 2049, 385, 33, 769)
"""One more than fills the tiles of a matrix product: what tells a staircase from a slope."""
LOGITS_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 129, 192, 256, 257, 320, 384, 512)
DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DECODE_CONTEXTS = (16, 64, 256, 1024, 4096, 16384, 65536, 131072)
SERVING_DECODES = (24, 40, 48, 56, 80, 96, 112)
"""Between the powers of two, where the largest errors of a fit lie."""
SERVING_CONTEXTS = (256, 512, 1024, 2048, 3072)
CHUNK_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNK_CONTEXTS = (0, 256, 1024, 4096, 16384, 65536)
NUM_UNEQUAL, NUM_SEVERAL, NUM_MIXED, NUM_STEPS, NUM_REPEATS = 30, 30, 40, 120, 25
MAX_SEVERAL = 64
"""Chunks of one launch."""
QUICK_SHARE = 0.25
"""How much of each family the quick plan has, its coarsest points."""
MIN_QUICK = 8
"""How many it has at least: what a fit, and one without the points held out, can do with."""
MIN_QUICK_EDGES = 4
MIN_QUICK_MIXED = 24
"""Of mixed attention, whose ten coefficients say nothing of ten points."""
MIN_QUICK_WINDOWED = 16
"""Of decodes and of chunks with a window, which no table helps."""
MIN_QUICK_DENSE = 20
"""Of the dense layer, a table: between 10 points a known law is missed by up to 10 %, between 20 by 3 %."""


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """One thing to time: what a row of `points.csv` says of it, and each decode's own context."""

    op: Op
    chunks: Chunks = ()
    contexts: tuple[int, ...] = ()
    """Of each decode the tokens it attends to, itself included."""
    tokens: int = 0
    num_logits: int = 0
    window: int = 0
    """Tokens that attention reaches back in the layer timed; 0 for all."""
    split: Split = "fit"
    order: int = 0
    """Place in the plan: what a resumed run knows its finished rows by."""

    @property
    def num_kv_tokens(self) -> int:
        """KV entries that it reads."""
        return sum(self.contexts) + sum(map(sum, self.chunks))

    @property
    def told(self) -> str:
        """What it is, in words: `point 7 (decode: 64 decodes over 262,144 tokens)`."""
        of = []
        if self.contexts:
            of.append(f"{len(self.contexts):,} decodes over {sum(self.contexts):,} tokens")
        if self.chunks:
            tokens, context = (sum(each) for each in zip(*self.chunks, strict=True))
            of.append(f"{len(self.chunks):,} chunks of {tokens:,} tokens over {context:,}")
        if not of:
            of.append(f"{self.tokens:,} tokens" if self.tokens else f"{self.num_logits:,} rows")
        return f"point {self.order} ({self.op}: {', '.join(of)})"

    def timed(self, median_s: float, **how: Any) -> Point:
        """Its timing; `how` are the further attributes of a `Point`."""
        decodes = (len(self.contexts), sum(self.contexts), max(self.contexts, default=0))
        what = (self.chunks, *decodes, self.tokens, self.num_logits)
        how |= {"order": self.order, "split": self.split, "window": self.window}
        return Point(self.op, median_s, *what, **how)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest sizes that fit a device; a plan leaves out what is beyond them. In tokens."""

    max_tokens: int = 16384
    max_chunk_tokens: int = 16384
    max_context: int = 131072
    max_kv_tokens: int = 2**21
    """KV entries of one layer."""
    max_step_kv_tokens: int = 2**18
    """KV entries of a whole step, held in every layer."""
    max_decodes: int = 512

    def allow(self, point: PlanPoint) -> bool:
        """Whether a point fits."""
        longest = max((*point.contexts, *map(sum, point.chunks)), default=0)
        return (
            point.tokens <= self.max_tokens
            and sum(tokens for tokens, _ in point.chunks) <= self.max_chunk_tokens
            and max(len(point.contexts), point.num_logits) <= self.max_decodes
            and longest <= self.max_context
            and point.num_kv_tokens <= (self.max_step_kv_tokens if point.op == "step" else self.max_kv_tokens)
        )


def make_plan(
    name: PlanName, limits: Limits, seed: int = 0, *, ops: Sequence[Op] = (), window: int = 0
) -> list[PlanPoint]:
    """All points in the order in which they are timed; equal arguments give an equal plan.

    `ops` are what is timed by tokens beside the dense layer: experts, collectives. With a `window` attention
    is timed both with it and without. Every family goes from coarse to fine and all advance together, so an
    interrupted run can still be fitted. Whole steps and mixed attention come in the second half, repeats of
    earlier points last.
    """
    streams = np.random.SeedSequence(seed).spawn(5)
    unequal, several, mixed, steps, sliding = (
        np.random.Generator(np.random.PCG64(stream)) for stream in streams
    )
    share = QUICK_SHARE if name == "quick" else 1.0
    placed: list[tuple[float, PlanPoint]] = []

    def spread(family: Iterable[PlanPoint], *, least: int = MIN_QUICK, start: float = 0.0) -> None:
        """Give the coarsest points of a family places from `start` to 1."""
        allowed = list(filter(limits.allow, family))
        points = allowed[: max(least, round(len(allowed) * share))]
        places = start + (1 - start) * (np.arange(len(points)) + 0.5) / max(1, len(points))
        placed.extend(zip(places.tolist(), points, strict=True))

    by_tokens: tuple[Op, ...] = ("dense", *ops)
    for op in by_tokens:
        spread((PlanPoint(op, tokens=n) for (n,) in coarse_to_fine(DENSE_TOKENS)), least=MIN_QUICK_DENSE)
        spread((PlanPoint(op, tokens=n) for n in EDGE_TOKENS), least=MIN_QUICK_EDGES)
    spread(PlanPoint("logits", num_logits=rows) for (rows,) in coarse_to_fine(LOGITS_ROWS))
    spread(_equal_decodes(DECODES, DECODE_CONTEXTS))
    spread(_equal_decodes(SERVING_DECODES, SERVING_CONTEXTS))
    spread(_unequal_decodes(unequal, limits))
    spread(_single_chunks(CHUNK_CONTEXTS))
    spread(_several_chunks(several, limits))
    if window:
        for family in _windowed(sliding, limits, window):
            spread((replace(point, window=window) for point in family), least=MIN_QUICK_WINDOWED)
    spread(_mixed(mixed, limits), least=MIN_QUICK_MIXED, start=0.5)
    spread(_steps(steps, limits), start=0.5)
    ordered = [point for _, point in sorted(placed, key=itemgetter(0))]
    # Repeats are taken evenly from the whole plan: how far two timings of one thing differ.
    num_repeats = min(len(ordered), max(1, round(NUM_REPEATS * share)))
    places = np.linspace(0, len(ordered) - 1, num_repeats).round().astype(int)
    ordered += [replace(ordered[place], split="repeat") for place in places]
    return [replace(point, order=order) for order, point in enumerate(ordered)]


def _single_chunks(contexts: Sequence[int]) -> Iterator[PlanPoint]:
    for tokens, context in coarse_to_fine(CHUNK_TOKENS, contexts):
        yield PlanPoint("prefill", chunks=((tokens, context),))


def _equal_decodes(counts: Sequence[int], contexts: Sequence[int]) -> Iterator[PlanPoint]:
    for count, context in coarse_to_fine(counts, contexts):
        yield PlanPoint("decode", contexts=(context,) * count)


def _unequal_decodes(rng: np.random.Generator, limits: Limits) -> Iterator[PlanPoint]:
    high = (min(256, limits.max_decodes), min(3000, limits.max_context / 4))
    for count, mean in latin_hypercube(rng, NUM_UNEQUAL, (8, 128), high):
        yield PlanPoint("decode", contexts=spread_contexts(rng, round(count), mean, limits.max_context))


def _several_chunks(rng: np.random.Generator, limits: Limits) -> Iterator[PlanPoint]:
    """From a pair of long ones to dozens of short ones, as far as they fit in a step together."""
    most = min(2048, limits.max_chunk_tokens / 4, limits.max_context / 2)
    for count, tokens, context in latin_hypercube(rng, NUM_SEVERAL, (2, 16, 1), (MAX_SEVERAL, most, most)):
        chunks = _chunks(rng, count, min(tokens, limits.max_chunk_tokens / count), context)
        yield PlanPoint("prefill", chunks=chunks)


def _windowed(rng: np.random.Generator, limits: Limits, window: int) -> Iterator[Iterable[PlanPoint]]:
    """Attention with a window: contexts up to it, of which kernels take all, and a few beyond."""
    contexts = sorted({*(context for context in DECODE_CONTEXTS if context < window), window, 4 * window})
    yield _equal_decodes(DECODES, contexts)
    yield _single_chunks(sorted({0, window // 2, window, 4 * window}))
    yield _several_chunks(rng, limits)


def _mixed(rng: np.random.Generator, limits: Limits) -> Iterator[PlanPoint]:
    """Chunks and decodes in one layer: is the sum the sum?"""
    most = min(2048, limits.max_chunk_tokens, limits.max_context / 2)
    high = (min(256, limits.max_decodes), min(4096, limits.max_context / 4), most, most)
    for count, mean, tokens, context in latin_hypercube(rng, NUM_MIXED, (1, 64, 16, 1), high):
        chunks = _chunks(rng, 1, tokens, context)
        contexts = spread_contexts(rng, round(count), mean, limits.max_context)
        yield PlanPoint("mixed", chunks=chunks, contexts=contexts)


def _steps(rng: np.random.Generator, limits: Limits) -> Iterator[PlanPoint]:
    """Whole steps, never fitted: a third decodes alone, a third prompts alone, a third both."""
    most = min(2048, limits.max_chunk_tokens / 2, limits.max_context / 2)
    high = (min(256, limits.max_decodes), min(4096, limits.max_context / 4), 4, most, most)
    for place, row in enumerate(latin_hypercube(rng, NUM_STEPS, (1, 64, 1, 16, 1), high)):
        count, mean, num_chunks, tokens, context = row
        contexts: tuple[int, ...] = ()
        chunks: Chunks = ()
        if place % 3 != 1:
            contexts = spread_contexts(rng, round(count), mean, limits.max_context)
        if place % 3 != 0:
            chunks = _chunks(rng, num_chunks, tokens, context)
        num_tokens = len(contexts) + sum(n for n, _ in chunks)
        num_logits = len(contexts) + int(rng.integers(0, len(chunks) + 1))
        yield PlanPoint("step", chunks, contexts, num_tokens, num_logits, split="unseen")


def _chunks(rng: np.random.Generator, count: float, tokens: float, context: float) -> Chunks:
    """About `count` chunks whose sizes vary twofold; half of them have no context."""
    sizes = tokens * rng.uniform(0.5, 1.0, round(count))
    contexts = context * rng.uniform(0.5, 1.0, round(count)) * (rng.random(round(count)) < 0.5)
    return tuple((max(2, round(n)), round(before)) for n, before in zip(sizes, contexts, strict=True))


def coarse_to_fine(*axes: Sequence[int]) -> list[tuple[int, ...]]:
    """The grid of some ranges, their ends first, then their middles, their quarters and so on."""
    depths = [_depths(len(axis)) for axis in axes]
    places = product(*(range(len(axis)) for axis in axes))
    ordered = sorted(places, key=lambda at: (sum(of[i] for of, i in zip(depths, at, strict=True)), at))
    return [tuple(axis[i] for axis, i in zip(axes, at, strict=True)) for at in ordered]


def latin_hypercube(
    rng: np.random.Generator, count: int, low: Sequence[float], high: Sequence[float]
) -> list[list[float]]:
    """`count` points between `low` and `high`, positive, evenly spread over the logarithm of each axis.

    McKay, Beckman and Conover, Technometrics 21(2), 1979: cut into `count` shares, each axis has a point in
    every share.
    """
    bottom, top = np.log(np.array(low, dtype=float)), np.log(np.maximum(low, high))
    shares = np.stack([rng.permutation(count) for _ in low], axis=1)
    places: NDArray[np.float64] = (shares + rng.random(shares.shape)) / count
    rows: list[list[float]] = np.exp(bottom + places * (top - bottom)).tolist()
    return rows


def spread_contexts(rng: np.random.Generator, count: int, mean: float, max_context: int) -> tuple[int, ...]:
    """Log-normal contexts, the longest 2 to 3.5 times the mean in a large batch, as in recorded traffic."""
    sigma = rng.uniform(0.35, 0.6)
    drawn = rng.lognormal(0.0, sigma, max(1, count))
    scaled = np.clip(np.rint(drawn / drawn.mean() * mean), 1, max_context)
    return tuple(int(context) for context in scaled)


def _depths(count: int) -> list[int]:
    """Of each place how many halvings it takes to reach it; 0 for the two ends."""
    depths = [0] * count

    def halve(first: int, last: int, depth: int) -> None:
        if last - first >= 2:
            middle = (first + last) // 2
            depths[middle] = depth
            halve(first, middle, depth + 1)
            halve(middle, last, depth + 1)

    halve(0, count - 1, 1)
    return depths
