"""Own kernels over those of NVIDIA's tables: how many times as long they take, by kind and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbsim.base.units import markdown_table
from cbsim.cost.costfile import Box, find_cost_file, read_cost_file, shipped_profile
from cbsim.lab.calibrate.accuracy import predict
from cbsim.lab.calibrate.point import Op, Point, seconds_of
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

KINDS: dict[Op, str] = {
    "dense": "dense layer, tokens",
    "experts": "experts, tokens",
    "logits": "LM head, rows",
    "prefill": "chunks, tokens",
    "decode": "decodes, context in all",
}
"""What is compared, and the size that it is compared by."""
BOUNDS = (16, 128, 1024, 16384, 262144)
"""Sizes that part one column from the next."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Own seconds over the table's, of one kind and a range of sizes."""

    op: Op
    below: int
    """The sizes are up to this, and beyond the bound before."""
    num_points: int
    median: float
    low: float
    high: float
    """The middle 80 %."""


def against_table(
    points: Sequence[Point], model: ModelSpec, gpu: GpuSpec | None, tensor_parallel: int
) -> list[str]:
    """The chapter of a report: a table, or why there is none."""
    title = "### Own over NVIDIA's table: times as long, median (middle 80 %)"
    name = None if gpu is None else shipped_profile(model, gpu, ParallelSpec(tensor=tensor_parallel))
    if name is None:
        return [title, "No profile of this model and GPU is shipped: there is nothing to compare with."]
    file = read_cost_file(find_cost_file(name))
    rows = ratios(points, predict(file.form, points), file.box)
    columns = sorted({row.below for row in rows})
    cells = [
        [
            label,
            *(_cell(next((row for row in rows if (row.op, row.below) == (op, at)), None)) for at in columns),
        ]
        for op, label in KINDS.items()
        if any(row.op == op for row in rows)
    ]
    header = ["", *(f"up to {below:,}" for below in columns)]
    said = (
        f"The table is `{name}`: kernels of an engine on the same GPU, by the form fitted to them, within "
        "the sizes measured. More than 1 is slower than that engine."
    )
    return [title, said, markdown_table(header, cells)]


def ratios(points: Sequence[Point], theirs: np.ndarray, box: Box) -> list[Ratio]:
    """Ratios by kind and size; points beyond the table's sizes, and those with a window, are left out."""
    own = seconds_of(points)
    found = []
    for op in KINDS:
        places = [
            place for place, point in enumerate(points) if point.op == op and _is_comparable(point, box)
        ]
        sizes = np.array([_size(points[place]) for place in places])
        column = np.searchsorted(BOUNDS, sizes)
        for at, below in enumerate((*BOUNDS, 10**9)):
            inside = np.array(places)[column == at] if places else np.array([], dtype=int)
            if len(inside):
                times = own[inside] / theirs[inside]
                low, high = np.quantile(times, (0.1, 0.9))
                row = Ratio(op, below, len(inside), float(np.median(times)), float(low), float(high))
                found.append(row)
    return found


def _size(point: Point) -> int:
    """What a kind is compared by."""
    if point.op == "prefill":
        return sum(tokens for tokens, _ in point.chunks)
    return point.decode_context if point.op == "decode" else point.size


def _is_comparable(point: Point, box: Box) -> bool:
    keys = point.decode_context + sum(map(sum, point.chunks))
    pairs = sum(tokens * context + tokens * (tokens + 1) // 2 for tokens, context in point.chunks)
    return (
        point.split == "fit"
        and not point.window
        and point.tokens <= box.max_tokens
        and point.num_logits <= box.max_logits
        and point.num_decodes <= box.max_decodes
        and keys <= box.max_context_tokens
        and pairs <= box.max_attention_pairs
    )


def _cell(row: Ratio | None) -> str:
    return "" if row is None else f"{row.median:.2f} ({row.low:.2f} to {row.high:.2f})"
