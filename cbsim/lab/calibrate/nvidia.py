"""Points from NVIDIA's kernel tables, for any model on any of their systems."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MEGA, MS_PER_S
from cbsim.cost.costfile import model_shape
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.specs import ModelSpec

PACKAGE = "aiconfigurator-core"
ROOT = "aiconfigurator_core/systems"
BF16 = ("bfloat16", "float16")
Folder = Path | zipfile.Path
Phase = Literal["context", "generation"]
OPTIONS: dict[Phase, str] = {"context": "--framework", "generation": "--decode-framework"}
"""What names the framework whose attention is taken."""


class Heads(NamedTuple):
    """The attention heads of one GPU."""

    num_heads: int
    num_kv_heads: int
    """Copies included."""
    head_size: int


class NvidiaTables:
    """The tables of one system, from the installed package or from its wheel."""

    def __init__(self, system: str, wheel: Path | None = None) -> None:
        """Raises `CalibrationError` if the package or the system isn't there."""
        self.system = system
        self.folder, self.package_version = _open_package(wheel)
        systems = sorted(
            entry.name for entry in (self.folder / "data").iterdir() if (entry / "gemm").is_dir()
        )
        if system not in systems:
            raise CalibrationError(f"no system '{system}' in {PACKAGE}{did_you_mean(system, systems)}")
        figures = yaml.safe_load((self.folder / f"{system}.yaml").read_text(encoding="utf-8"))["gpu"]
        self.bytes_per_s = float(figures["mem_bw"]) * float(figures["mem_bw_empirical_scaling_factor"])
        """Bandwidth that small memory-bound kernels reach."""
        self.launch_s = float(figures["mem_empirical_constant_latency"])
        """Shortest time of a kernel."""

    def gemm(self) -> GemmTable:
        """Matrix products in bf16: cuBLAS in every framework, so all timings of the fullest tables count."""
        tables = []
        for framework in self._frameworks("gemm"):
            table = self._read("gemm", framework, "gemm_perf")
            tables.append(table.loc[table["gemm_dtype"].isin(BF16)])
        most = max(table["m"].nunique() for table in tables)
        return GemmTable(pd.concat(table for table in tables if table["m"].nunique() == most))

    def all_reduce(self, framework: str, num_gpus: int) -> tuple[Floats, Floats]:
        """Bytes and seconds of an all-reduce within one node, in a CUDA graph where that was timed."""
        table = self._read("comm", framework, "custom_allreduce_perf")
        timed = sorted({1, *table["num_gpus"].tolist()})
        if num_gpus not in timed:
            allowed = ", ".join(map(str, timed))
            raise CalibrationError(
                f"{self.system}: no all-reduce over {num_gpus} GPUs was timed; allowed: {allowed}"
            )
        table = table.loc[table["num_gpus"] == num_gpus]
        in_graph = table["kernel_source"].str.contains("graph")
        best = table.loc[in_graph if in_graph.any() else ~in_graph].groupby("message_size")["seconds"].min()
        return best.index.to_numpy(np.float64) * 2, best.to_numpy(np.float64)

    def attention(self, phase: Phase, framework: str, heads: Heads) -> pd.DataFrame:
        """`batch_size`, `isl`, `step`, `seconds`, `backend` of attention over bf16.

        In the phase `context` of whole prompts of `isl` tokens, in `generation` of decodes with `step` tokens
        before each.
        """
        table = self._timed_attention(phase, framework, heads)
        if table.empty:
            others = [
                other
                for other in self._frameworks("attention")
                if other != framework
                and self._versions("attention", other, f"{phase}_attention_perf")
                and not self._timed_attention(phase, other, heads).empty
            ]
            hint = f"; allowed: {OPTIONS[phase]} {' or '.join(others)}" if others else "; try another --tp"
            raise CalibrationError(
                f"{self.system}, {framework}: no {phase} attention with {heads.num_heads} query heads and "
                f"{heads.num_kv_heads} KV heads of size {heads.head_size} was timed{hint}"
            )
        usual = table["kernel_source"].mode().iloc[0]
        table = table[table["kernel_source"] == usual].rename(columns={"kernel_source": "backend"})
        keys = ["batch_size", "isl", "step", "backend"]
        best: pd.DataFrame = table.groupby(keys)["seconds"].min().reset_index()
        return best

    def _timed_attention(self, phase: Phase, framework: str, heads: Heads) -> pd.DataFrame:
        table = self._read("attention", framework, f"{phase}_attention_perf")
        table = table[table["kv_cache_dtype"].isin(BF16)]
        wanted = {"head_dim": heads.head_size, "window_size": 0, "attn_dtype": "bfloat16"}
        wanted |= {"num_heads": heads.num_heads, "num_key_value_heads": heads.num_kv_heads}
        for column, value in wanted.items():
            if column in table:
                table = table[table[column] == value]
        return table

    def _frameworks(self, op: str) -> list[str]:
        return sorted(entry.name for entry in (self.folder / "data" / self.system / op).iterdir())

    def _versions(self, op: str, framework: str, name: str) -> dict[tuple[int, ...], Folder]:
        """The files of a table, by version."""
        folder = self.folder / "data" / self.system / op / framework
        return {
            tuple(map(int, re.findall(r"\d+", version.name))): version / f"{name}.parquet"
            for version in (folder.iterdir() if folder.is_dir() else [])
            if (version / f"{name}.parquet").is_file()
        }

    def _read(self, op: str, framework: str, name: str) -> pd.DataFrame:
        found = self._versions(op, framework, name)
        if not found:
            allowed = [other for other in self._frameworks(op) if self._versions(op, other, name)]
            hint = did_you_mean(framework, allowed)
            raise CalibrationError(f"{self.system}: {PACKAGE} has no {name} table of '{framework}'{hint}")
        table = pd.read_parquet(io.BytesIO(found[max(found)].read_bytes()))
        return table.assign(seconds=table["latency"] / MS_PER_S)


class GemmTable:
    """Times of `[m, k] x [k, n]`: bilinear in n and k between widths measured, in proportion beyond them."""

    def __init__(self, table: pd.DataFrame) -> None:
        median = table.groupby(["m", "n", "k"])["seconds"].median()
        self.rows: list[int] = sorted(table["m"].unique().tolist())
        """The values of m."""
        self._by_rows = {m: median[m].unstack("k") for m in self.rows}

    def seconds(self, m: int, n: int, k: int) -> float:
        """Seconds at a measured m and any n and k."""
        table = self._by_rows[m].dropna(axis=0).sort_index()
        by_n = [_line(k, table.columns.to_numpy(np.float64), row) for row in table.to_numpy(np.float64)]
        return _line(n, table.index.to_numpy(np.float64), np.array(by_n))


def _line(at: float, knots: Floats, values: Floats) -> float:
    """Piecewise-linear through knots; beyond the last in proportion, which does not magnify its noise."""
    if at > knots[-1]:
        return float(values[-1] * at / knots[-1])
    return float(np.interp(at, knots, values))


def _open_package(wheel: Path | None) -> tuple[Folder, str]:
    if wheel is not None:
        try:
            folder = zipfile.Path(wheel) / ROOT
        except (OSError, zipfile.BadZipFile) as error:
            raise CalibrationError(f"{wheel}: can't be read as a wheel: {error}") from error
        if not folder.is_dir():
            raise CalibrationError(f"{wheel}: not a wheel of {PACKAGE}")
        return folder, wheel.name.split("-")[1]
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise CalibrationError(
            f"{PACKAGE} is not installed: pip install 'cbsim[nvidia]', or pass its wheel by --wheel"
        ) from error
    return Path(str(package.locate_file(ROOT))), package.version


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
    **dict.fromkeys(("b200_sxm", "gb200", "b300_sxm", "gb300"), System(None, 126 * MEGA)),
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
