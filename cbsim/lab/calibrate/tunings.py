"""Tunings: ways to cut the decode kernel's work, timed against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from cbsim.base.markdown import markdown_table
from cbsim.base.units import TERA
from cbsim.lab.calibrate.reached_peaks import Seconds
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.rig import Rig
from cbsim.lab.kernels.triton_backend import DecodeTuning, TritonBackend, cannot_run

SIZES = ((64, 4096), (16, 16384), (256, 1024))
"""Decodes x context that are timed."""
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuning and what it reaches."""

    tuning: DecodeTuning
    bytes_per_s: tuple[float, ...]
    """Of keys and values at each of `SIZES`; NaN where that can't run on the device."""

    @property
    def score(self) -> float:
        """The geometric mean of its rates; NaN if one is missing."""
        return math.exp(sum(map(math.log, self.bytes_per_s)) / len(self.bytes_per_s))


def all_tunings() -> list[DecodeTuning]:
    """The default first, then a grid about it."""
    tiles, warps, stages, programs = (64, 128), (4, 8), (2, 3, 5), (3, 4, 8)
    rest = (DecodeTuning(*values) for values in product(tiles, warps, stages, programs))
    return list(dict.fromkeys((DecodeTuning(), *rest)))


def compare_tunings(
    rig: Rig,
    seconds: Seconds,
    tunings: Sequence[DecodeTuning],
    progress: Callable[[int, int], None] | None = None,
) -> list[Tuned]:
    """Time the Triton decode kernel with each tuning, best first; the rig keeps the backend it had."""
    backend = rig.backend
    tuned = []
    try:
        for count, tuning in enumerate(tunings, start=1):
            rig.backend = TritonBackend(rig.shard, rig.device, tuning)
            tuned.append(Tuned(tuning, tuple(_rate(rig, seconds, *size) for size in SIZES)))
            if progress is not None:
                progress(count, len(tunings))
    finally:
        rig.backend = backend
    return sorted(tuned, key=lambda row: -math.inf if math.isnan(row.score) else row.score, reverse=True)


def tunings_table(tuned: Iterable[Tuned]) -> str:
    """The best and the default, TB/s of keys and values, as Markdown."""
    rows = list(tuned)
    shown = [row for place, row in enumerate(rows) if place < NUM_SHOWN or row.tuning == DecodeTuning()]
    cells = [
        [
            f"tile {row.tuning.tile}, {row.tuning.num_warps} warps, {row.tuning.num_stages} stages, "
            f"{row.tuning.programs_per_processor} programs"
            + (" (default)" if row.tuning == DecodeTuning() else ""),
            *("can't run" if math.isnan(rate) else f"{rate / TERA:.3g}" for rate in row.bytes_per_s),
        ]
        for row in shown
    ]
    header = [f"the best of {len(rows)}", *(f"{batch} x {context:,}" for batch, context in SIZES)]
    return markdown_table(header, cells)


def _rate(rig: Rig, seconds: Seconds, num_decodes: int, context: int) -> float:
    moved = num_decodes * context * rig.shard.layer_kv_token_bytes
    try:
        return moved / seconds(PlanPoint("decode", contexts=(context,) * num_decodes))
    except MemoryError:
        return math.nan
    except Exception as error:
        if cannot_run(error):
            return math.nan
        raise
