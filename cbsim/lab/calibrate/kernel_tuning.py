"""Kernels timed against each other before the plan: ways to cut decodes, and those for chunks by size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from cbsim.lab.calibrate.timing_plan import Limits, PlanPoint
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice, PrefillChoice
from cbsim.lab.kernels.rig import Rig

Seconds = Callable[[PlanPoint], float]
"""Times a point of a plan; NaN where that can't run on the device."""

Sizes = Sequence[tuple[int, int]]

SIZES = ((64, 4096), (16, 16384), (256, 1024))
"""Decodes x context that ways to cut decodes are timed at."""
CHUNKS = (16, 128, 512, 2048, 8192)
CHUNK_CONTEXTS = (0, 2048, 32768)
"""Tokens of a chunk, and before it, that kernels for chunks are timed at."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuning and what it reaches."""

    tuning: DecodeTuning
    bytes_per_s: tuple[float, ...]
    """Of keys and values at each size timed; NaN where that can't run on the device."""

    @property
    def score(self) -> float:
        """The geometric mean of its rates; NaN if one is missing."""
        return math.exp(sum(map(math.log, self.bytes_per_s)) / len(self.bytes_per_s))


def first_tunings() -> list[DecodeTuning]:
    """A dozen that differ most, the default first."""
    cuts = (64, 4, 3), (64, 4, 4), (128, 8, 3), (64, 8, 3), (128, 4, 3), (32, 4, 5)
    return [
        DecodeTuning(*cut, programs_per_processor=programs)
        for programs in (DecodeTuning().programs_per_processor, 2)
        for cut in cuts
    ]


def compare_tunings(
    rig: Rig,
    seconds: Seconds,
    tunings: Sequence[DecodeTuning],
    progress: Callable[[int, int], None] | None = None,
    until_s: float = math.inf,
    sizes: Sizes = SIZES,
) -> list[Tuned]:
    """Time the decode kernel with each tuning, best first; the rig keeps the backend it had.

    At least one is timed, and none begun after `until_s`, an instant of `time.monotonic`.
    """
    backend = rig.backend
    tuned: list[Tuned] = []
    assert backend.choice is not None
    try:
        for count, tuning in enumerate(tunings, start=1):
            if tuned and time.monotonic() >= until_s:
                break
            rig.use(backend.with_choice(replace(backend.choice, decode=tuning)))
            tuned.append(Tuned(tuning, tuple(_rate(rig, seconds, *size) for size in sizes)))
            if progress is not None:
                progress(count, len(tunings))
    finally:
        rig.use(backend)
    return sorted(tuned, key=lambda row: -math.inf if math.isnan(row.score) else row.score, reverse=True)


def fastest_prefill(
    rig: Rig, seconds: Seconds, names: Sequence[str], limits: Limits, until_s: float
) -> PrefillChoice:
    """The fastest of some kernels by the size of a chunk; the rig keeps the backend it had."""
    backend = rig.backend
    timed = []
    try:
        for tokens, context in chunk_sizes(limits):
            if time.monotonic() >= until_s:
                break
            point = PlanPoint("prefill", chunks=((tokens, context),))
            taken: dict[str, float] = {}
            for name in names:
                if backend.choice is not None:
                    rig.use(backend.with_choice(backend.choice.with_prefill(name)))
                taken[name] = seconds(point)
            known = {name: value for name, value in taken.items() if not math.isnan(value)}
            if known:
                timed.append((tokens, context, min(known, key=known.__getitem__)))
    finally:
        rig.use(backend)
    return PrefillChoice(tuple(timed))


def decode_sizes(limits: Limits) -> Sizes:
    """`SIZES` as far as a device has room for them."""
    counts = [min(count, limits.max_decodes) for count, _ in SIZES]
    most = [min(limits.max_context, limits.max_kv_tokens // count) for count in counts]
    contexts = [min(context, each) for (_, context), each in zip(SIZES, most, strict=True)]
    return list(dict.fromkeys(zip(counts, contexts, strict=True)))


def chunk_sizes(limits: Limits) -> Sizes:
    """`CHUNKS` with each of `CHUNK_CONTEXTS`, those that a device has room for, and no smaller ones twice."""
    found = []
    for context, tokens in product(CHUNK_CONTEXTS, CHUNKS):
        count = min(tokens, limits.max_chunk_tokens)
        found.append((count, min(context, min(limits.max_context, limits.max_kv_tokens) - count)))
    return [size for size in dict.fromkeys(found) if size[1] >= 0]


def choose_kernels(
    rig: Rig,
    seconds: Seconds,
    limits: Limits,
    without: Sequence[str] = (),
    until_s: float = math.inf,
) -> KernelChoice | None:
    """The best way to cut decodes and the fastest kernel for chunks of each size, as far as there is time.

    None where the backend has nothing to choose. `without` names kernels and tunings, as `name_of` does, that
    are not tried: they brought a process down.
    """
    choice = rig.backend.choice
    if choice is None:
        return None
    tunings = [tuning for tuning in first_tunings() if name_of(tuning) not in without]
    half_s = until_s if math.isinf(until_s) else (time.monotonic() + until_s) / 2
    best = None
    if tunings:
        best = compare_tunings(rig, seconds, tunings, None, half_s, decode_sizes(limits))[0]
    names = [name for name in rig.backend.prefill_names if name not in without]
    prefill = fastest_prefill(rig, seconds, names, limits, until_s)
    is_better = best is not None and not math.isnan(best.score)
    return KernelChoice(best.tuning if best is not None and is_better else choice.decode, prefill)


def name_of(tuning: DecodeTuning) -> str:
    """A tuning in a word or two."""
    return (
        f"tile {tuning.tile}, {tuning.num_warps} warps, {tuning.num_stages} stages, "
        f"{tuning.programs_per_processor} programs"
    )


def _rate(rig: Rig, seconds: Seconds, num_decodes: int, context: int) -> float:
    moved = num_decodes * context * rig.shard.layer_kv_token_bytes
    return moved / seconds(PlanPoint("decode", contexts=(context,) * num_decodes))
