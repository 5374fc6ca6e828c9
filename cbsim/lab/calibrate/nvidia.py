"""Points from NVIDIA's kernel tables, for any model on any of their systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cbsim.base.errors import CalibrationError
from cbsim.base.units import MEGA
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.meta import Meta
from cbsim.lab.calibrate.nvidia_tables import PACKAGE, GemmTable, Heads, NvidiaTables
from cbsim.lab.calibrate.point import Point
from cbsim.specs import ModelSpec

MIN_LENGTH = 16
"""Shorter prompts and contexts are no load worth fitting."""
MAX_STEP_TOKENS = 16_384
MAX_SEQS = 1024
"""Larger steps and batches than serving engines are set to."""
COLD_SHARE = 0.05
"""A timing with KV in L2 still counts if reading it from memory would take less than this share of it."""
L2_MARGIN = 1.3
"""KV of this many times the L2 cache is surely read from memory."""
SAMPLING_KERNELS = 8
SAMPLING_BYTES_PER_LOGIT = 10
"""bf16 logits read, written as float32 and read again."""


class System(NamedTuple):
    """A system of the tables: the GPU's name here, and its L2 cache."""

    gpu: str | None = None
    l2_bytes: int = 0


SYSTEMS = {
    "h200_sxm": System("h200", 50 * MEGA),
    "h100_sxm": System("h100", 50 * MEGA),
    "a100_sxm": System("a100-80g", 40 * MEGA),
    "l40s": System("l40s", 96 * MEGA),
    "rtx_pro_6000_server": System("rtxpro6000", 128 * MEGA),
    "b200_sxm": System(None, 126 * MEGA),
    "gb200": System(None, 126 * MEGA),
    "b300_sxm": System(None, 126 * MEGA),
    "gb300": System(None, 126 * MEGA),
}
"""L2 sizes from NVIDIA's architecture white papers (Ampere, Hopper, Ada, Blackwell)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to take from the tables."""

    model: ModelSpec
    tensor_parallel: int = 1
    framework: str = "vllm"
    """Whose kernels: prefill attention and all-reduces."""
    decode_framework: str = "vllm"
    """Whose decode attention."""

    @property
    def heads(self) -> Heads:
        """Those of one GPU."""
        model, gpus = self.model, self.tensor_parallel
        return Heads(model.num_heads // gpus, max(1, model.num_kv_heads // gpus), model.head_size)


def import_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    """The tables' kernels put together to one GPU's share of a layer, its attention and the LM head.

    Raises `CalibrationError` if the tables lack something.
    """
    model, gpus = wanted.model, wanted.tensor_parallel
    problems = [
        f"model {model.name}: {name} {size} can't be split over {gpus} GPUs"
        for name, size in (("num_heads", model.num_heads), ("intermediate_size", model.intermediate_size))
        if size % gpus
    ]
    if model.dtype != "bfloat16":
        problems.append(f"model {model.name}: tables are read for bfloat16 alone, got {model.dtype}")
    if problems:
        raise CalibrationError(*problems)
    gemm = tables.gemm()
    return [
        *_dense_points(tables, gemm, wanted),
        *_logits_points(tables, gemm, wanted),
        *_prefill_points(tables, wanted),
        *_decode_points(tables, wanted),
    ]


def import_meta(tables: NvidiaTables, wanted: Wanted, date: str) -> Meta:
    """Where imported points come from, and what of them is estimated."""
    warnings = [
        "matrix products are cuBLAS's, the median over frameworks, interpolated between the widths measured",
        "norms, rotary positions and activation are estimated by their bytes and a launch time each, "
        f"sampling by {SAMPLING_KERNELS} launches and its bytes; none of them was measured",
        "attention was timed with a warm L2 cache: decode points whose KV fits in it are left out",
    ]
    if wanted.tensor_parallel > 1:
        warnings.append("the all-gather of the logits is left out")
    frameworks = wanted.framework
    if wanted.decode_framework != wanted.framework:
        frameworks += f" (decode attention: {wanted.decode_framework})"
    return Meta(
        device=tables.system,
        gpu=SYSTEMS.get(tables.system, System()).gpu,
        model=model_shape(wanted.model),
        tensor_parallel=wanted.tensor_parallel,
        source=f"{PACKAGE} {tables.package_version}, kernels of {frameworks} on {tables.system}",
        licence="Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES",
        date=date,
        command=f"cbsim calibrate import nvidia --system {tables.system} --model {wanted.model.name} "
        f"--tp {wanted.tensor_parallel} --framework {wanted.framework} "
        f"--decode-framework {wanted.decode_framework}",
        warnings=warnings,
    )


def _dense_points(tables: NvidiaTables, gemm: GemmTable, wanted: Wanted) -> list[Point]:
    model, gpus = wanted.model, wanted.tensor_parallel
    hidden, heads = model.hidden_size, wanted.heads.num_heads * model.head_size
    kv_heads = wanted.heads.num_kv_heads * model.head_size
    width = model.intermediate_size // gpus
    products = [(heads + 2 * kv_heads, hidden), (hidden, heads), (2 * width, hidden), (hidden, width)]
    small_kernels = 5 if model.qk_norm else 4
    rotated = 2 * (heads + kv_heads) * (2 if model.qk_norm else 1)
    element_bytes_per_token = (8 * hidden + rotated + 3 * width) * model.element_bytes
    message_bytes, message_s = np.zeros(1), np.zeros(1)
    if gpus > 1:
        message_bytes, message_s = tables.all_reduce(wanted.framework, gpus)
    points = []
    for tokens in (count for count in gemm.rows if count <= MAX_STEP_TOKENS):
        seconds = sum(gemm.seconds(tokens, n, k) for n, k in products)
        seconds += small_kernels * tables.launch_s + tokens * element_bytes_per_token / tables.bytes_per_s
        seconds += 2 * float(np.interp(tokens * hidden * model.element_bytes, message_bytes, message_s))
        points.append(Point("dense", seconds, tokens=tokens, backend="gemm", l2="warm"))
    return points


def _logits_points(tables: NvidiaTables, gemm: GemmTable, wanted: Wanted) -> list[Point]:
    model = wanted.model
    points = []
    for rows in (count for count in gemm.rows if count <= MAX_SEQS):
        seconds = gemm.seconds(rows, model.vocab_size // wanted.tensor_parallel, model.hidden_size)
        seconds += SAMPLING_KERNELS * tables.launch_s
        seconds += rows * model.vocab_size * SAMPLING_BYTES_PER_LOGIT / tables.bytes_per_s
        points.append(Point("logits", seconds, num_logits=rows, backend="gemm", l2="warm"))
    return points


def _prefill_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    table = tables.attention("context", wanted.framework, wanted.heads)
    table = table[(table["isl"] >= MIN_LENGTH) & (table["batch_size"] * table["isl"] <= MAX_STEP_TOKENS)]
    rows = table[["seconds", "batch_size", "isl", "backend"]].itertuples(index=False)
    return [
        Point.attention(seconds, ((length, 0),) * batch, backend=backend, l2="warm")
        for seconds, batch, length, backend in rows
    ]


def _decode_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    table = tables.attention("generation", wanted.decode_framework, wanted.heads)
    table = table.assign(context=table["step"] + 1)
    table = table[(table["context"] >= MIN_LENGTH) & (table["batch_size"] <= MAX_SEQS)]
    token_bytes = 2 * wanted.heads.num_kv_heads * wanted.model.head_size * wanted.model.element_bytes
    kv_bytes = table["batch_size"] * table["context"] * token_bytes
    may_be_cached = kv_bytes < L2_MARGIN * SYSTEMS.get(tables.system, System()).l2_bytes
    matters = kv_bytes / tables.bytes_per_s > COLD_SHARE * table["seconds"]
    table = table.assign(split=np.where(may_be_cached & matters, "warm", "fit"))
    rows = table[["seconds", "batch_size", "context", "backend", "split"]].itertuples(index=False)
    return [
        Point.attention(seconds, (), batch, context, backend=backend, l2="warm", split=split)
        for seconds, batch, context, backend, split in rows
    ]
