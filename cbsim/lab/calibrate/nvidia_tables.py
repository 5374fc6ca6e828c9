"""NvidiaTables: the kernel timings in the PyPI package `aiconfigurator-core`, read and never imported.

The package (NVIDIA, Apache-2.0) holds, for each system and serving framework, Parquet tables of measured
kernels: matrix products by m, n, k; attention of whole prompts by batch and length; attention of decodes by
batch and context; all-reduces by size. Times are in milliseconds, message sizes in elements.
"""

from __future__ import annotations

import io
import re
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MS_PER_S
from cbsim.cost.step_columns import Floats

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
