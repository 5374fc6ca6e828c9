"""The plan of a calibration: which kernels are timed at which sizes, coarse to fine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cbsim.lab.calibrate.point import Op, Split
from cbsim.lab.calibrate.spread import coarse_to_fine, latin_hypercube, spread_contexts

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
MIN_QUICK_DENSE = 20
"""Of the dense layer, a table: between 10 points a known law is missed by up to 10 %, between 20 by 3 %."""


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """One thing to time: what a row of `points.csv` says of it, and each decode's own context."""

    op: Op
    chunks: tuple[tuple[int, int], ...] = ()
    """Prompt chunks `(tokens, context)`."""
    contexts: tuple[int, ...] = ()
    """Of each decode the tokens it attends to, itself included."""
    tokens: int = 0
    num_logits: int = 0
    split: Split = "fit"
    order: int = 0
    """Place in the plan: what a resumed run knows its finished rows by."""

    @property
    def num_kv_tokens(self) -> int:
        """KV entries that it reads."""
        return sum(self.contexts) + sum(tokens + context for tokens, context in self.chunks)


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
        is_step = point.op == "step"
        chunk_tokens = sum(tokens for tokens, _ in point.chunks)
        return (
            point.tokens <= self.max_tokens
            and chunk_tokens <= self.max_chunk_tokens
            and len(point.contexts) <= self.max_decodes
            and point.num_logits <= self.max_decodes
            and max((*point.contexts, *(sum(chunk) for chunk in point.chunks)), default=0) <= self.max_context
            and point.num_kv_tokens <= (self.max_step_kv_tokens if is_step else self.max_kv_tokens)
        )


def make_plan(name: PlanName, limits: Limits, seed: int = 0) -> list[PlanPoint]:
    """All points in the order in which they are timed; equal arguments give an equal plan.

    Every family goes from coarse to fine and all advance together, so an interrupted run can still be fitted.
    Whole steps and mixed attention come in the second half, repeats of earlier points last.
    """
    streams = np.random.SeedSequence(seed).spawn(4)
    unequal, several, mixed, steps = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
    fitted = [
        [PlanPoint("dense", tokens=tokens) for tokens in coarse_to_fine(DENSE_TOKENS)],
        [PlanPoint("dense", tokens=tokens) for tokens in EDGE_TOKENS],
        [PlanPoint("logits", num_logits=rows) for rows in coarse_to_fine(LOGITS_ROWS)],
        _equal_decodes(DECODES, DECODE_CONTEXTS),
        _equal_decodes(SERVING_DECODES, SERVING_CONTEXTS),
        _unequal_decodes(unequal, limits),
        _single_chunks(),
        _several_chunks(several, limits),
    ]
    checked = [_mixed(mixed, limits), _steps(steps, limits)]
    share = QUICK_SHARE if name == "quick" else 1.0
    least = [MIN_QUICK_DENSE, MIN_QUICK_EDGES, *[MIN_QUICK] * (len(fitted) - 2)]
    fitted = [
        _coarsest(filter(limits.allow, family), share, fewest)
        for family, fewest in zip(fitted, least, strict=True)
    ]
    checked = [
        _coarsest(filter(limits.allow, family), share, fewest)
        for family, fewest in zip(checked, (MIN_QUICK_MIXED, MIN_QUICK), strict=True)
    ]
    points = _interleave(fitted, 0.0) + _interleave(checked, 0.5)
    points.sort(key=lambda placed: placed[0])
    ordered = [point for _, point in points]
    ordered += _repeats(ordered, max(1, round(NUM_REPEATS * share)))
    return [replace(point, order=order) for order, point in enumerate(ordered)]


def _equal_decodes(decodes: Sequence[int], contexts: Sequence[int]) -> list[PlanPoint]:
    pairs = coarse_to_fine(decodes, contexts)
    return [PlanPoint("decode", contexts=(context,) * count) for count, context in pairs]


def _unequal_decodes(rng: np.random.Generator, limits: Limits) -> list[PlanPoint]:
    low, high = (8, 128), (min(256, limits.max_decodes), min(3000, limits.max_context / 4))
    sizes = latin_hypercube(rng, NUM_UNEQUAL, low, high)
    return [
        PlanPoint("decode", contexts=spread_contexts(rng, round(count), mean, limits.max_context))
        for count, mean in sizes
    ]


def _single_chunks() -> list[PlanPoint]:
    return [PlanPoint("prefill", chunks=(chunk,)) for chunk in coarse_to_fine(CHUNK_TOKENS, CHUNK_CONTEXTS)]


def _several_chunks(rng: np.random.Generator, limits: Limits) -> list[PlanPoint]:
    """From a pair of long ones to dozens of short ones, as far as they fit in a step together."""
    most = min(2048, limits.max_chunk_tokens / 4, limits.max_context / 2)
    rows = latin_hypercube(rng, NUM_SEVERAL, (2, 16, 1), (MAX_SEVERAL, most, most))
    return [
        PlanPoint(
            "prefill",
            chunks=_chunks(rng, count, min(tokens, limits.max_chunk_tokens / count), context),
        )
        for count, tokens, context in rows
    ]


def _mixed(rng: np.random.Generator, limits: Limits) -> list[PlanPoint]:
    """Chunks and decodes in one layer: is the sum the sum?"""
    most = min(2048, limits.max_chunk_tokens, limits.max_context / 2)
    low, high = (1, 64, 16, 1), (min(256, limits.max_decodes), min(4096, limits.max_context / 4), most, most)
    rows = latin_hypercube(rng, NUM_MIXED, low, high)
    return [
        PlanPoint(
            "mixed",
            chunks=_chunks(rng, 1, tokens, context),
            contexts=spread_contexts(rng, round(count), mean, limits.max_context),
        )
        for count, mean, tokens, context in rows
    ]


def _steps(rng: np.random.Generator, limits: Limits) -> list[PlanPoint]:
    """Whole steps, never fitted: a third decodes alone, a third prompts alone, a third both."""
    most = min(2048, limits.max_chunk_tokens / 2, limits.max_context / 2)
    high = (min(256, limits.max_decodes), min(4096, limits.max_context / 4), 4, most, most)
    points = []
    for place, row in enumerate(latin_hypercube(rng, NUM_STEPS, (1, 64, 1, 16, 1), high)):
        count, mean, num_chunks, tokens, context = row
        contexts: tuple[int, ...] = ()
        chunks: tuple[tuple[int, int], ...] = ()
        if place % 3 != 1:
            contexts = spread_contexts(rng, round(count), mean, limits.max_context)
        if place % 3 != 0:
            chunks = _chunks(rng, num_chunks, tokens, context)
        finishing = int(rng.integers(0, len(chunks) + 1))
        points.append(
            PlanPoint(
                "step",
                chunks=chunks,
                contexts=contexts,
                tokens=len(contexts) + sum(n for n, _ in chunks),
                num_logits=len(contexts) + finishing,
                split="unseen",
            )
        )
    return points


def _chunks(
    rng: np.random.Generator, count: float, tokens: float, context: float
) -> tuple[tuple[int, int], ...]:
    """About `count` chunks whose sizes vary twofold; half of them have no context."""
    sizes = tokens * rng.uniform(0.5, 1.0, round(count))
    contexts = context * rng.uniform(0.5, 1.0, round(count)) * (rng.random(round(count)) < 0.5)
    return tuple((max(2, round(n)), round(before)) for n, before in zip(sizes, contexts, strict=True))


def _coarsest(family: Iterable[PlanPoint], share: float, least: int) -> list[PlanPoint]:
    points = list(family)
    return points[: max(least, round(len(points) * share))]


def _interleave(families: Sequence[Sequence[PlanPoint]], start: float) -> list[tuple[float, PlanPoint]]:
    """Each point with its place between `start` and 1, families spread evenly."""
    return [
        (start + (1 - start) * (place + 0.5) / len(family), point)
        for family in families
        for place, point in enumerate(family)
    ]


def _repeats(points: Sequence[PlanPoint], count: int) -> list[PlanPoint]:
    """Earlier points again, taken evenly from the whole plan: how far two timings of one thing differ."""
    places = np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)
    return [replace(points[place], split="repeat") for place in places]
