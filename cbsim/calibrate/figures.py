"""Figures: what the timed kernels reach of a GPU's peaks, and whether the parts of a step add up to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cbsim.calibrate.plan import PlanPoint
from cbsim.calibrate.point import Point
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.units import TERA

Seconds = Callable[[PlanPoint], float]
"""Times a point of a plan."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One kernel at one size: how much it moves or computes a second, and that as a share of the peak."""

    op: str
    size: str
    seconds: float
    rate: float
    """1e12 bytes a second for `decode`, else 1e12 FLOP a second."""
    share: float


def reached(
    points: Iterable[Point], model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1
) -> list[Reached]:
    """Of every decode with equal contexts, every single chunk and every dense point the rate it reaches.

    Decodes by the bytes of keys and values they read, the others by the FLOP they need, which is half of the
    square for causal attention.
    """
    peak_flop_per_s = gpu.peak_flop_per_s(model.dtype)
    rows = []
    for point in points:
        if point.split != "fit":
            continue
        if point.op == "dense":
            flop = point.tokens * model.dense_flop_per_token / model.num_layers / tensor_parallel
            rows.append(_row(point, f"T={point.tokens}", flop, peak_flop_per_s))
        elif point.op == "prefill" and len(point.chunks) == 1:
            ((tokens, context),) = point.chunks
            pairs = tokens * context + tokens * (tokens + 1) / 2
            flop = pairs * model.attention_flop_per_pair / model.num_layers / tensor_parallel
            rows.append(_row(point, f"q={tokens} x={context}", flop, peak_flop_per_s))
        elif point.op == "decode" and point.decode_context == point.num_decodes * point.max_decode_context:
            shards = min(tensor_parallel, model.num_kv_heads)
            moved = point.decode_context * model.kv_bytes_per_token / model.num_layers / shards
            size = f"B={point.num_decodes} context={point.max_decode_context}"
            rows.append(_row(point, size, moved, gpu.memory_bytes_per_s))
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


def additivity(mixed: Sequence[PlanPoint], seconds: Seconds) -> list[Sum]:
    """Time each mixed point, and its chunks and its decodes alone."""
    return [
        Sum(
            chunks=point.chunks,
            num_decodes=len(point.contexts),
            decode_context=sum(point.contexts),
            together_s=seconds(point),
            prefill_s=seconds(PlanPoint("prefill", chunks=point.chunks)),
            decode_s=seconds(PlanPoint("decode", contexts=point.contexts)),
        )
        for point in mixed
    ]


def reached_table(rows: Sequence[Reached]) -> str:
    """As a Markdown table."""
    lines = ["| op | size | time | rate | of peak |", "|---|---|---|---|---|"]
    for row in rows:
        unit = "TB/s" if row.op == "decode" else "TFLOP/s"
        lines.append(
            f"| {row.op} | {row.size} | {row.seconds:.3g} s | {row.rate:.3g} {unit} | {row.share:.0%} |"
        )
    return "\n".join(lines)


def additivity_sentence(sums: Sequence[Sum]) -> str:
    """Median and range of the excess."""
    excess = np.array([row.excess for row in sums])
    return (
        f"{len(sums)} mixes of chunks and decodes take {np.median(excess):+.1%} of the sum of their parts "
        f"more at the median (from {excess.min():+.1%} to {excess.max():+.1%})"
    )


def _row(point: Point, size: str, work: float, peak_per_s: float) -> Reached:
    per_s = work / point.t_median_s
    return Reached(point.op, size, point.t_median_s, per_s / TERA, per_s / peak_per_s)
