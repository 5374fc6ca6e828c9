"""Figures: what the timed kernels reach of a GPU's peaks, how near parts come to the whole, and how ways to
cut the decode kernel's work compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cbsim.base.units import TERA, markdown_table
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate.accuracy import Errors, predict
from cbsim.lab.calibrate.kernel_tuning import SIZES, Sizes, Tuned, name_of
from cbsim.lab.calibrate.point import Op, Point, seconds_of
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.kernel_choice import DecodeTuning
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.specs.model import Part
from cbsim.specs.precision import compute_dtype

Seconds = Callable[[PlanPoint], float]
"""Times a point of a plan. Raises MemoryError if the device has too little memory for it."""

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Attainable:
    """What a device attains at most, as measured on it."""

    bytes_per_s: float
    flop_per_s: float


@dataclass(frozen=True, slots=True)
class Reached:
    """One kernel at one size: how much it moves or computes a second, and that as a share of the peak."""

    op: Op
    batch: int
    """Decodes, or tokens of the chunk, of the dense layer or of the experts."""
    context: int
    """Tokens that each decode attends to, or that stand before the chunk; 0 for the others."""
    seconds: float
    rate: float
    """1e12 bytes of keys and values a second for `decode`, else 1e12 FLOP a second."""
    share: float | None
    """The rate over the data sheet's peak; None where that isn't known."""
    attained: float | None = None
    """The rate over what was measured to be attainable; None where nothing was measured."""


def reached(
    points: Iterable[Point],
    model: ModelSpec,
    gpu: GpuSpec | None,
    tensor_parallel: int = 1,
    attainable: Attainable | None = None,
) -> list[Reached]:
    """The rate that each decode with equal contexts, single chunk, dense and experts' point reaches.

    Decodes by the bytes of keys and values they read, the others by the FLOP they need, which is half of the
    square for causal attention.
    """
    rows = []
    for point in points:
        if point.split != "fit" or point.window:
            continue
        if point.op in ("dense", "experts"):
            size = (point.tokens, 0)
            num_used = sum(part.num_used for part in parts_of(model, point.op))
            work = 2 * point.tokens * num_used / model.num_layers / tensor_parallel
        elif point.op == "prefill" and len(point.chunks) == 1:
            (size,) = point.chunks
            tokens, context = size
            pairs = tokens * context + tokens * (tokens + 1) / 2
            flop_per_pair = sum(kind.num_layers * kind.flop_per_pair for kind in model.attention_kinds)
            work = pairs * flop_per_pair / model.num_layers / tensor_parallel
        elif point.op == "decode" and point.decode_context == point.num_decodes * point.max_decode_context:
            size = (point.num_decodes, point.max_decode_context)
            shards = min(tensor_parallel, model.num_kv_heads)
            work = point.decode_context * model.kv_bytes_per_token / model.num_layers / shards
        else:
            continue
        per_s = work / point.t_median_s
        is_read = point.op == "decode"
        share = attained = None
        weights = model.dtype if point.op == "prefill" else model.weight_dtype or model.dtype
        dtype = compute_dtype(weights, model.dtype)
        if gpu is not None:
            share = per_s / (gpu.memory_bytes_per_s if is_read else gpu.peak_flop_per_s(dtype))
        if attainable is not None and (is_read or dtype == model.dtype):
            attained = per_s / (attainable.bytes_per_s if is_read else attainable.flop_per_s)
        rows.append(Reached(point.op, *size, point.t_median_s, per_s / TERA, share, attained))
    return rows


def parts_of(model: ModelSpec, op: Op) -> list[Part]:
    """The weights that a dense layer, or its experts with their router, are timed with."""
    routed = ("experts", "router")
    names = routed if op == "experts" else ("attention", "mlp", "shared_experts")
    return [part for part in model.parts if part.name in names]


def read_bytes(model: ModelSpec, op: Op, tokens: int) -> float:
    """Bytes of weights that a layer must read at least, averaged over all; of experts those tokens go to."""
    total = 0.0
    for part in parts_of(model, op):
        share = 1.0
        if part.name == "experts" and model.experts is not None:
            reached = tokens * model.experts.num_experts_per_token
            share = min(1.0, reached / model.experts.num_experts)
        total += share * part.num_bytes
    return total / model.num_layers


@dataclass(frozen=True, slots=True)
class Sum:
    """Attention of chunks and decodes in one layer, timed together and apart, seconds."""

    chunks: tuple[tuple[int, int], ...]
    num_decodes: int
    decode_context: int
    together_s: float
    prefill_s: float
    decode_s: float
    is_timed: bool = True
    """Whether the parts were timed beside it; else they are a fitted form's."""

    @property
    def excess(self) -> float:
        """How much more than the sum of its parts the whole takes; 0 is additive."""
        return self.together_s / (self.prefill_s + self.decode_s) - 1


def additivity(mixed: Iterable[PlanPoint], seconds: Seconds, until_s: float = math.inf) -> list[Sum]:
    """Time each mixed point, and its chunks and its decodes alone; those that don't fit are left out.

    None is begun after `until_s`, an instant of `time.monotonic`.
    """
    sums = []
    for point in mixed:
        if time.monotonic() >= until_s:
            break
        try:
            together_s = seconds(point)
            prefill_s = seconds(PlanPoint("prefill", chunks=point.chunks))
            decode_s = seconds(PlanPoint("decode", contexts=point.contexts))
        except MemoryError:
            continue
        decodes, context = len(point.contexts), sum(point.contexts)
        sums.append(Sum(point.chunks, decodes, context, together_s, prefill_s, decode_s))
    return sums


def additivity_by_form(points: Iterable[Point], form: StepForm) -> list[Sum]:
    """Hold a plan's own mixed points against the sum of their chunks and decodes, as a form has these.

    For sessions that had no time left to time the parts.
    """
    mixed = [point for point in points if point.op == "mixed" and point.split == "fit" and not point.window]
    if not mixed:
        return []
    chunks = [replace(p, op="prefill", num_decodes=0, decode_context=0, max_decode_context=0) for p in mixed]
    decodes = [replace(point, op="decode", chunks=()) for point in mixed]
    parts = zip(mixed, predict(form, chunks).tolist(), predict(form, decodes).tolist(), strict=True)
    return [
        Sum(p.chunks, p.num_decodes, p.decode_context, p.t_median_s, prefill_s, decode_s, is_timed=False)
        for p, prefill_s, decode_s in parts
    ]


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


def tunings_table(tuned: Iterable[Tuned], sizes: Sizes = SIZES) -> str:
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
    header = [f"the best of {len(rows)}", *(f"{batch} x {context:,}" for batch, context in sizes)]
    return markdown_table(header, cells)
