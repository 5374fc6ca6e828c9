"""Figures: what the timed kernels reach of a GPU's peaks, how near parts come to the whole, and how ways to
cut the decode kernel's work compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cbsim.base.units import TERA, markdown_table
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate.accuracy import Errors, predict
from cbsim.lab.calibrate.kernel_tuning import SIZES, Tuned, name_of
from cbsim.lab.calibrate.point import Op, Point, seconds_of
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.kernel_choice import DecodeTuning
from cbsim.specs import GpuSpec, ModelSpec

Seconds = Callable[[PlanPoint], float]
"""Times a point of a plan. Raises MemoryError if the device has too little memory for it."""

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reached:
    """One kernel at one size: how much it moves or computes a second, and that as a share of the peak."""

    op: Op
    batch: int
    """Decodes, or tokens of the chunk or of the dense layer."""
    context: int
    """Tokens that each decode attends to, or that stand before the chunk; 0 for the dense layer."""
    seconds: float
    rate: float
    """1e12 bytes of keys and values a second for `decode`, else 1e12 FLOP a second."""
    share: float | None
    """Of the peak; None where it isn't known."""


def reached(
    points: Iterable[Point], model: ModelSpec, gpu: GpuSpec | None, tensor_parallel: int = 1
) -> list[Reached]:
    """Of every decode with equal contexts, every single chunk and every dense point the rate it reaches.

    Decodes by the bytes of keys and values they read, the others by the FLOP they need, which is half of the
    square for causal attention.
    """
    rows = []
    for point in points:
        if point.split != "fit":
            continue
        if point.op == "dense":
            size = (point.tokens, 0)
            work = point.tokens * model.dense_flop_per_token / model.num_layers / tensor_parallel
        elif point.op == "prefill" and len(point.chunks) == 1:
            (size,) = point.chunks
            tokens, context = size
            pairs = tokens * context + tokens * (tokens + 1) / 2
            work = pairs * model.attention_flop_per_pair / model.num_layers / tensor_parallel
        elif point.op == "decode" and point.decode_context == point.num_decodes * point.max_decode_context:
            size = (point.num_decodes, point.max_decode_context)
            shards = min(tensor_parallel, model.num_kv_heads)
            work = point.decode_context * model.kv_bytes_per_token / model.num_layers / shards
        else:
            continue
        per_s = work / point.t_median_s
        share = None
        if gpu is not None:
            is_read = point.op == "decode"
            share = per_s / (gpu.memory_bytes_per_s if is_read else gpu.peak_flop_per_s(model.dtype))
        rows.append(Reached(point.op, *size, point.t_median_s, per_s / TERA, share))
    return rows


@dataclass(frozen=True, slots=True)
class Sum:
    """Attention of chunks and decodes in one layer, timed together and apart, seconds."""

    chunks: tuple[tuple[int, int], ...]
    num_decodes: int
    decode_context: int
    together_s: float
    prefill_s: float
    decode_s: float

    @property
    def excess(self) -> float:
        """How much more than the sum of its parts the whole takes; 0 is additive."""
        return self.together_s / (self.prefill_s + self.decode_s) - 1


def additivity(mixed: Iterable[PlanPoint], seconds: Seconds) -> list[Sum]:
    """Time each mixed point, and its chunks and its decodes alone; those that don't fit are left out."""
    sums = []
    for point in mixed:
        try:
            together_s = seconds(point)
            prefill_s = seconds(PlanPoint("prefill", chunks=point.chunks))
            decode_s = seconds(PlanPoint("decode", contexts=point.contexts))
        except MemoryError:
            continue
        decodes, context = len(point.contexts), sum(point.contexts)
        sums.append(Sum(point.chunks, decodes, context, together_s, prefill_s, decode_s))
    return sums


def step_errors(points: Sequence[Point], form: StepForm) -> dict[str, Errors]:
    """How far whole steps lie from a form that has never seen them, by what the steps hold."""
    steps = [point for point in points if point.op == "step" and point.split == "unseen"]
    kinds = {
        "decodes alone": [point for point in steps if not point.chunks],
        "chunks alone": [point for point in steps if not point.num_decodes],
        "chunks and decodes": [point for point in steps if point.chunks and point.num_decodes],
        "all": steps,
    }
    return {kind: Errors.of(predict(form, rows), seconds_of(rows)) for kind, rows in kinds.items() if rows}


def tunings_table(tuned: Iterable[Tuned]) -> str:
    """The best and the default, TB/s of keys and values, as Markdown."""
    rows = list(tuned)
    shown = [row for place, row in enumerate(rows) if place < NUM_SHOWN or row.tuning == DecodeTuning()]
    cells = [
        [
            name_of(row.tuning) + (" (default)" if row.tuning == DecodeTuning() else ""),
            *("can't run" if math.isnan(rate) else f"{rate / TERA:.3g}" for rate in row.bytes_per_s),
        ]
        for row in shown
    ]
    header = [f"the best of {len(rows)}", *(f"{batch} x {context:,}" for batch, context in SIZES)]
    return markdown_table(header, cells)
