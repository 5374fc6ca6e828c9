"""NvidiaTables: the kernel timings in the PyPI package `aiconfigurator-core`, read and never imported.

The package (NVIDIA, Apache-2.0) holds, for each system and serving framework, Parquet tables of measured
kernels: matrix products by m, n, k and dtype; attention of whole prompts by batch and length; attention of
decodes by batch and context; routed experts by tokens; collectives by size. Times are in milliseconds,
message sizes in elements.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml

from cbsim.base.errors import CalibrationError
from cbsim.base.paths import install_extra
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MS_PER_S
from cbsim.cost.step_columns import Floats
from cbsim.specs.model import ExpertsSpec

PACKAGE = "aiconfigurator-core"
ROOT = "aiconfigurator_core/systems"
BF16 = ("bfloat16", "float16")
INT4 = dict.fromkeys(("int4", "int4_block"), ("int4_wo",))
GEMM_DTYPES = {**dict.fromkeys(BF16, BF16), "int8": ("int8_wo",), **INT4}
"""What matrix products of a weight dtype are called, where it is not as here."""
EXPERT_DTYPES = {**INT4, "mxfp4": ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4")}
"""The same of experts, best first: products of 8 bits where any framework timed them on a system, since
engines ask for them there (vLLM by `VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8`)."""
HOST_TIME_IN_GEMM = (("vllm", "fp8_block"),)
"""Timings that hold the host's as well: 60 us on Hopper and more on Blackwell for a kernel of 10."""
OWN_PRODUCTS = {
    ("trtllm", "fp8"): ("scale_matrix", "computescale"),
    ("vllm", "fp8"): ("scale_matrix",),
    ("vllm", "nvfp4"): (),
    ("trtllm", "fp8_block"): (),
    ("sglang", "fp8_block"): (),
}
"""By framework and dtype: where a framework's own products count, and tables of what quantising took in them.

aiconfigurator's collectors call whole linear layers with activations in 16 bits, which these quantise first,
TensorRT-LLM's in FP8 with a scale that it finds each time. With a scale that the checkpoint holds its engine
does that where it reduces and normalises, activates and attends (`RESIDUAL_RMS_NORM_QUANT_FP8` of its
`modeling_llama.py`), vLLM where Inductor generates norm and activation. aiconfigurator takes the same tables
off (its mode `fp8_static`). In blocks of FP8 engines quantise by a kernel of their own, as the collectors do.
SGLang's tables in FP8 time another kernel than its products' collector calls; TensorRT-LLM's products in
nvfp4 take 20 us whatever their width, as nobody chose a tactic for them.
"""
IN_ONE_NODE = {"gb200": "b200_sxm", "gb300": "b300_sxm"}
"""Systems of trays of four GPUs on one NVLink network, and the nodes of eight with the same GPUs and NVLink:
all-reduces over four take as long in both, TensorRT-LLM's and SGLang's within 5 % from 512 KiB on, and below
that up to 25 % less in trays (1 us), vLLM's on GB200s up to 39 % less (7 us)."""
TRAY_GPUS, NODE_GPUS = 4, 8
EXCHANGED_IN = {"nvfp4": "nvfp4"}
"""What tokens are sent to experts in, by the experts' dtype, where it isn't bf16: TensorRT-LLM quantises
before for nvfp4 alone (`use_postquant_alltoall` of its `fused_moe_wide_ep.py`)."""
FURTHER, HICCUP = 3, 1.4
"""A timing this many times as long as one of the next sizes with more rows is none of a kernel's alone."""
TIMED_BY_RELEASE = ("mla", "moe", "comm")
"""Tables that tell a framework's releases apart. TensorRT-LLM's products repeat within 2 % from 1.0.0rc3 to
1.3.0rc20, in FP8 but for the quantising that is taken off; its older timings of grouped queries read a cache
faster than memory can (128 decodes of 4096 tokens 2.1 GB in 375 us on an H100)."""
UNSTEADY_EXPERTS = ("moe_torch_flow_min_latency", "1.0.0rc6")
"""A kernel and the release whose timings of it contradict each other: one token's eight experts take 24 us
among those of one spread, 54 among those of the other."""
NEWEST_EXPERTS = ("w4a16_mxfp4",)
"""Experts' dtypes of no release but the newest: on Hopper 1.2.0rc5's are sliced to 90 columns, which are not
the Triton kernel's that gpt-oss's scripts ask for (`backend: TRITON`) and the newest timed whole."""
SPARSE = 4
"""Tables before TensorRT-LLM 1.3.0rc20 spread tokens over experts by rounding, and gave what that left to the
fullest or to one GPU (`power_law_logits_v3` of aiconfigurator's collectors): four tokens reach 19 of
DeepSeek-R1's experts, where drawing from the same power law gives 28. From as many choices as a quarter of
the experts on those two agree; later collectors give what is left to experts without any."""
EVEN = "balanced"
"""The spread that all versions agree on."""
OLDER_ROOT = "aiconfigurator/systems"
OLDER_NAMES = {"gb200": "gb200_sxm"}
"""Systems that had another name when the tables came with `aiconfigurator` itself, as text."""
EXPERT_KERNELS = {
    "TRTLLM": ("moe_torch_flow_min_latency",),
    "CUTLASS": ("moe_torch_flow", "moe_torch_flow_cutlass"),
}
"""What the tables call the kernels of TensorRT-LLM's `moe_config.backend`."""
Folder = Path | zipfile.Path
Phase = Literal["context", "generation"]
OPTIONS: dict[Phase, str] = {"context": "--framework", "generation": "--decode-framework"}
"""What names the framework whose attention is taken."""


class Release(NamedTuple):
    """A release of a framework, whose kernels are wanted."""

    framework: str
    version: tuple[int, ...]
    """All numbers in its name: 1, 1, 0, 2 of 1.1.0rc2."""


class Heads(NamedTuple):
    """The attention heads of one GPU."""

    num_heads: int
    num_kv_heads: int
    """Copies included."""
    head_size: int
    kv_dtype: str = "bfloat16"
    window: int = 0
    """Tokens that attention reaches back; 0 for all."""


class ExpertsTable(NamedTuple):
    """Which routed experts are wanted of the tables."""

    experts: ExpertsSpec
    hidden_size: int
    dtype: str
    tensor: int
    """GPUs that share each expert."""
    parallel: int
    """Groups of GPUs that experts are dealt out to."""
    distribution: str
    kernel: str | None = None
    """The only kernel that counts, one of `EXPERT_KERNELS`; null for the fastest."""


class NvidiaTables:
    """The tables of one system, from the installed package or from its wheel."""

    def __init__(
        self,
        system: str,
        wheel: Path | None = None,
        older: Path | None = None,
        release: Release | None = None,
    ) -> None:
        """`older` is a wheel of an earlier release of NVIDIA's, for tables that the package no longer has,
        `release` whose kernels are wanted (`TIMED_BY_RELEASE`); without one the newest tables count.

        Raises `CalibrationError` if the package or the system isn't there.
        """
        self.system = system
        self.release = release
        self._wheel, self._older = wheel, older
        self.folder, self.package_version = open_package(wheel)
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
        self.notes: list[str] = []
        """What had to be taken from another framework than the one asked for."""

    def gemm(self, dtype: str = "bfloat16", framework: str | None = None) -> GemmTable:
        """Matrix products of a weight dtype as a framework's engine runs them.

        Where frameworks' kernels differ they are its own. Else those with the fullest tables count: in bf16
        they are cuBLAS's everywhere, so the median; of others the fastest, which engines are near.
        """
        names = GEMM_DTYPES.get(dtype, (dtype,))
        tables = {}
        for name in self._frameworks("gemm"):
            table = self._read("gemm", name, "gemm_perf")
            if (name, dtype) not in HOST_TIME_IN_GEMM:
                tables[name] = table.loc[table["gemm_dtype"].isin(names)]
        most = max((table["m"].nunique() for table in tables.values()), default=0)
        if not most:
            raise CalibrationError(f"{self.system}: no matrix products in {dtype} were timed")
        full = {name: table for name, table in tables.items() if table["m"].nunique() == most}
        if framework in full and (framework, dtype) in OWN_PRODUCTS:
            full = {framework: self._own_products(framework, dtype, full[framework])}
        return GemmTable(pd.concat(full.values()), "median" if dtype in BF16 else "min")

    def _own_products(self, framework: str, dtype: str, products: pd.DataFrame) -> pd.DataFrame:
        """A framework's products, less what quantising took in them as far as it was timed apart.

        Timings of far more than what more rows took do not count.
        """
        products = products.sort_values(["n", "k", "m"])
        by_rows = products.groupby(["n", "k"])["seconds"]
        least = pd.concat([by_rows.shift(-place) for place in range(1, FURTHER + 1)], axis=1).min(axis=1)
        products = products[~(products["seconds"] > HICCUP * least)]
        seconds, sizes = products["seconds"].to_numpy(), pd.MultiIndex.from_frame(products[["m", "k"]])
        for name in OWN_PRODUCTS[framework, dtype]:
            if self._versions("quantize", framework, f"{name}_perf"):
                table = self._read("quantize", framework, f"{name}_perf")
                quantising = table.loc[table["quant_dtype"] == dtype].groupby(["m", "k"])["seconds"].min()
                seconds = seconds - quantising.reindex(sizes).fillna(0.0).to_numpy()
                seconds = np.maximum(seconds, self.launch_s)
        return products.assign(seconds=seconds)

    def all_reduce(self, framework: str, num_gpus: int) -> Line:
        """Seconds of an all-reduce within one node by its bytes, in a CUDA graph where that was timed.

        It is the framework's own kernel, or NCCL's where that was not timed over so many GPUs; of the newest
        release, or of one that is named: `vllm/0.19.0`.
        """
        table = self._read("comm", framework, "custom_allreduce_perf")
        own = table.loc[table["num_gpus"] == num_gpus]
        if own.empty:
            whole = self._in_one_node(num_gpus)
            return whole.all_reduce(framework, num_gpus) if whole else self.nccl("all_reduce", num_gpus)
        in_graph = own["kernel_source"].str.contains("graph")
        return _line_of(own.loc[in_graph if in_graph.any() else ~in_graph], "message_size", scale=2)

    def nccl(self, op: str, num_gpus: int) -> Line:
        """Seconds of one of NCCL's collectives by the bytes of the whole message."""
        tables = [
            table.loc[(table["op_name"] == op) & (table["nccl_dtype"] == "half")]
            for table in self._all("comm", ("nccl", "trtllm"), "nccl_perf")
        ]
        timed = sorted({1}.union(*(table["num_gpus"].tolist() for table in tables)))
        if num_gpus not in timed:
            if whole := self._in_one_node(num_gpus):
                return whole.nccl(op, num_gpus)
            told = f"no {op.replace('_', '-')} over {num_gpus} GPUs was timed"
            raise CalibrationError(f"{self.system}: {told}; allowed: {', '.join(map(str, timed))}")
        newest = next(table for table in tables if num_gpus in set(table["num_gpus"]))
        return _line_of(newest.loc[newest["num_gpus"] == num_gpus], "message_size", scale=2)

    def _in_one_node(self, num_gpus: int) -> NvidiaTables | None:
        """Where collectives over more GPUs than a tray has were timed, None for nowhere."""
        if self.system not in IN_ONE_NODE or not TRAY_GPUS < num_gpus <= NODE_GPUS:
            return None
        whole = IN_ONE_NODE[self.system]
        self._note(
            f"collectives over {num_gpus} GPUs are those of {whole}, since none over two trays was timed"
        )
        return self._of(whole)

    def all_to_all(self, experts: ExpertsSpec, hidden_size: int, dtype: str, num_ranks: int) -> Line | None:
        """Seconds to send tokens to their experts on other ranks and to get results back, by the tokens of
        one rank: over the NVLink of several trays, TensorRT-LLM's kernels. None if not timed.
        """
        sizes = {
            "kernel_source": "NVLinkTwoSided",
            "moe_dtype": EXCHANGED_IN.get(dtype, "bfloat16"),
            "hidden_size": hidden_size,
            "topk": experts.num_experts_per_token,
            "num_experts": experts.num_experts,
            "moe_ep_size": num_ranks,
        }
        tables = self._of("gb200") if self.system == "gb300" else self
        for table in tables._all("comm", ("trtllm",), "trtllm_alltoall_perf"):
            for column, size in sizes.items():
                table = table[table[column] == size]
            passes = table[table["op_name"] != "alltoall_combine_low_precision"]
            if not passes.empty:
                return _line_of(passes.groupby("num_tokens")["seconds"].sum().reset_index(), "num_tokens")
        return None

    def attention(self, phase: Phase, framework: str, heads: Heads) -> pd.DataFrame:
        """`batch_size`, `isl`, `step`, `seconds`, `backend` of grouped-query attention.

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
            window = f" with a window of {heads.window}" if heads.window else ""
            raise CalibrationError(
                f"{self.system}, {framework}: no {phase} attention with {heads.num_heads} query heads and "
                f"{heads.num_kv_heads} KV heads of size {heads.head_size} in {heads.kv_dtype}{window} was "
                f"timed{hint}"
            )
        usual = table["kernel_source"].mode().iloc[0]
        return _best(table[table["kernel_source"] == usual].rename(columns={"kernel_source": "backend"}))

    def _timed_attention(self, phase: Phase, framework: str, heads: Heads) -> pd.DataFrame:
        table = self._read("attention", framework, f"{phase}_attention_perf")
        kv_dtypes = BF16 if heads.kv_dtype in BF16 else (heads.kv_dtype,)
        table = table[table["kv_cache_dtype"].isin(kv_dtypes)]
        wanted = {"head_dim": heads.head_size, "window_size": heads.window}
        wanted |= {"num_heads": heads.num_heads, "num_key_value_heads": heads.num_kv_heads}
        for column, value in wanted.items():
            if column in table:
                table = table[table[column] == value]
        if "attn_dtype" in table:
            computed = heads.kv_dtype if (table["attn_dtype"] == heads.kv_dtype).any() else "bfloat16"
            table = table[table["attn_dtype"] == computed]
        return table

    def latent_attention(self, phase: Phase, framework: str, num_heads: int, kv_dtype: str) -> pd.DataFrame:
        """The same of latent attention with DeepSeek-V3's widths, projections apart.

        A framework without such tables takes TensorRT-LLM's. With an FP8 cache the faster of FP8 and bf16
        counts: some FP8 kernels were timed untuned.
        """
        name = f"{phase}_mla_perf"
        theirs = framework if self._versions("mla", framework, name) else "trtllm"
        if theirs != framework:
            self._note(f"latent attention is that of {theirs}, since {framework}'s was not timed apart")
        table = self._read("mla", theirs, name)
        kv_dtypes = BF16 if kv_dtype in BF16 else (*BF16, kv_dtype)
        table = table[(table["num_heads"] == num_heads) & table["kv_cache_dtype"].isin(kv_dtypes)]
        if table.empty:
            raise CalibrationError(
                f"{self.system}: no latent {phase} attention with {num_heads} heads was timed; "
                "try another --tp"
            )
        return _best(table.rename(columns={"kernel_source": "backend"}).assign(backend="mla"))

    def latent_products(self, framework: str, num_heads: int) -> Line | None:
        """Seconds of the products before and after latent attention that decodes have for unpacking, by their
        number: in 16 bits, which SGLang and vLLM make of any weights (`w_kc` and `w_vc` of SGLang's
        `deepseek_v2.py`). None if not timed, and of TensorRT-LLM, whose whole layers were (`latent_modules`).
        """
        if framework == "trtllm":
            return None
        for table in self._all("mla_bmm", (framework,), "mla_bmm_perf"):
            chosen = table[(table["num_heads"] == num_heads) & (table["bmm_dtype"] == "bfloat16")]
            if not chosen.empty:
                least = chosen.groupby(["op_name", "num_tokens"])["seconds"].min().unstack("op_name")
                return _line_of(least.sum(axis=1).reset_index(name="seconds"), "num_tokens")
        return None

    def latent_modules(self, num_heads: int, kv_dtype: str, weight_dtype: str) -> pd.DataFrame:
        """Decodes through whole layers of latent attention, projections and all: `batch_size`, `context`, the
        decode included, and `seconds`.

        They are TensorRT-LLM's, since vLLM's hold the host's time on most systems; none if nothing was timed.
        """
        name = "mla_generation_module_perf"
        if not self._versions("mla", "trtllm", name):
            return pd.DataFrame({"batch_size": [], "context": [], "seconds": []})
        table = self._read("mla", "trtllm", name)
        chosen = (table["num_heads"] == num_heads) & (table["gemm_type"] == weight_dtype)
        table = table[chosen & table["kv_cache_dtype"].isin((kv_dtype, *BF16))]
        table = table.rename(columns={"step": "context"})
        return table.groupby(["batch_size", "context"])["seconds"].min().reset_index()

    def experts(self, framework: str, wanted: ExpertsTable) -> Line:
        """Seconds of one layer's routed experts on one GPU by the tokens of all ranks; the fastest kernel.

        Where the framework's newest version timed no such experts an earlier one counts. Where none did and
        experts are sliced, the framework's own with whole experts dealt out over as many GPUs stand in, which
        read as many weights; else the least of the other frameworks'.
        """
        others = [name for name in self._frameworks("moe") if name != framework]
        whole = wanted._replace(tensor=1, parallel=wanted.tensor * wanted.parallel)
        dtypes = BF16 if wanted.dtype in BF16 else EXPERT_DTYPES.get(wanted.dtype, (wanted.dtype,))
        for dtype in dtypes:
            own = self._timed_experts(framework, wanted, dtype)
            if own is None and wanted.tensor > 1:
                own = self._timed_experts(framework, whole, dtype)
                if own is not None:
                    self._note(f"experts are whole ones dealt out, since {framework}'s slices were not timed")
            if own is not None:
                return _line_of(own, "num_tokens")
            found = {name: self._timed_experts(name, wanted, dtype) for name in others}
            tables = {name: table for name, table in found.items() if table is not None}
            if tables:
                least = "the least of " if len(tables) > 1 else ""
                named = " and ".join(f"those of {name}" for name in tables)
                self._note(f"experts are {least}{named}, since {framework}'s were not timed")
                return _line_of(pd.concat(tables.values()), "num_tokens")
        experts = wanted.experts
        raise CalibrationError(
            f"{self.system}: no {experts.num_experts} experts of {experts.intermediate_size}, "
            f"{experts.num_experts_per_token} a token, in {wanted.dtype} over {wanted.tensor} x "
            f"{wanted.parallel} GPUs (tensor x expert) with {wanted.distribution} were timed"
        )

    def _timed_experts(self, framework: str, wanted: ExpertsTable, dtype: str) -> pd.DataFrame | None:
        """The rows of the first version that timed such experts, None if there is none.

        Of a release they are the newest's, as many times as long as with tokens spread evenly, as far as it
        timed those; where another near it did, with few tokens alone.
        """
        newest = self.newest._experts_of_first(framework, wanted, dtype)
        if dtype in NEWEST_EXPERTS or not self._is_of_release("moe", framework):
            return newest
        found = self._experts_of_first(framework, wanted, dtype)
        if found is None or newest is None:
            return found
        even = wanted._replace(distribution=EVEN)
        then, now = (tables._experts_of_first(framework, even, dtype) for tables in (self, self.newest))
        fewest = wanted.experts.num_experts / (wanted.experts.num_experts_per_token * SPARSE)
        if then is not None and now is not None:
            times = [table.groupby("num_tokens")["seconds"].min() for table in (then, now)]
            longer = newest["num_tokens"].map(times[0] / times[1]).fillna(1.0)
            newest = newest.assign(seconds=newest["seconds"] * longer)
            if then["version"].iloc[0] == found["version"].iloc[0]:
                fewest = np.inf
        return pd.concat([newest[newest["num_tokens"] < fewest], found[found["num_tokens"] >= fewest]])

    def _experts_of_first(self, framework: str, wanted: ExpertsTable, dtype: str) -> pd.DataFrame | None:
        sizes = {
            "moe_dtype": dtype,
            "distribution": wanted.distribution,
            "hidden_size": wanted.hidden_size,
            "inter_size": wanted.experts.intermediate_size,
            "topk": wanted.experts.num_experts_per_token,
            "num_experts": wanted.experts.num_experts,
            "moe_tp_size": wanted.tensor,
            "moe_ep_size": wanted.parallel,
        }
        for table in self._all("moe", (framework,), "moe_perf"):
            for column, size in sizes.items():
                table = table[table[column] == size]
            kernel, release = UNSTEADY_EXPERTS
            table = table[(table["kernel_source"] != kernel) | (table.get("version") != release)]
            if wanted.kernel is not None:
                table = table[table["kernel_source"].isin(EXPERT_KERNELS[wanted.kernel])]
            if not table.empty:
                return table
        return None

    @property
    def newest(self) -> NvidiaTables:
        """The system's newest tables, whatever release is wanted here."""
        return self if self.release is None else NvidiaTables(self.system, self._wheel)

    def _of(self, system: str) -> NvidiaTables:
        """The tables of another system."""
        return NvidiaTables(system, self._wheel, self._older, self.release)

    def _is_of_release(self, op: str, framework: str) -> bool:
        """Whether releases of a framework's table are told apart."""
        return self.release is not None and framework == self.release.framework and op in TIMED_BY_RELEASE

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _frameworks(self, op: str) -> list[str]:
        folder = self.folder / "data" / self.system / op
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def _versions(self, op: str, framework: str, name: str) -> dict[tuple[int, ...], Folder]:
        """The files of a table, by version."""
        folders = [(self.folder / "data" / self.system / op / framework, f"{name}.parquet")]
        if self._older is not None and self._is_of_release(op, framework):
            older = open_wheel(self._older, OLDER_ROOT) / "data" / OLDER_NAMES.get(self.system, self.system)
            folders.insert(0, (older / framework, f"{name}.txt"))
        return {
            numbers_of(version.name): version / file
            for folder, file in folders
            for version in (folder.iterdir() if folder.is_dir() else [])
            if (version / file).is_file()
        }

    def _all(self, op: str, frameworks: Iterable[str], name: str) -> Iterable[pd.DataFrame]:
        """The tables of all versions, the newest first; where a release is wanted, those that share its first
        two numbers first, of them and of others the newest that is no newer, then those after it.
        """
        for framework in frameworks:
            found = self._versions(op, framework, name)
            versions = sorted(found, reverse=True)
            if self.release is not None and self._is_of_release(op, framework):
                wanted = self.release.version
                later = [version for version in reversed(versions) if version > wanted]
                versions = [version for version in versions if version <= wanted] + later
                versions.sort(key=lambda version: version[:2] != wanted[:2])
            for version in versions:
                yield _table(found[version])

    def _read(self, op: str, framework: str, name: str) -> pd.DataFrame:
        framework, _, release = framework.partition("/")
        releases = self._versions(op, framework, name)
        if release and releases:
            wanted = numbers_of(release)
            if wanted in releases:
                return _table(releases[wanted])
            allowed = [".".join(map(str, version)) for version in sorted(releases)]
            told = f"no {name} table of {framework} {release}; allowed: {', '.join(allowed)}"
            raise CalibrationError(f"{self.system}: {PACKAGE} has {told}")
        for newest in self._all(op, (framework,), name):
            return newest
        allowed = [other for other in self._frameworks(op) if self._versions(op, other, name)]
        hint = did_you_mean(framework, allowed)
        raise CalibrationError(f"{self.system}: {PACKAGE} has no {name} table of '{framework}'{hint}")


@cache
def _table(path: Folder) -> pd.DataFrame:
    content = io.BytesIO(path.read_bytes())
    if path.name.endswith(".txt"):
        table = pd.read_csv(content).replace("float16", "bfloat16")
    else:
        table = pd.read_parquet(content)
    return table.assign(seconds=table["latency"] / MS_PER_S)


def _best(table: pd.DataFrame) -> pd.DataFrame:
    """Of each size the fastest timing."""
    by = ["batch_size", "isl", "step", "backend"]
    best: pd.DataFrame = table.groupby(by)["seconds"].min().reset_index()
    return best


class Line(NamedTuple):
    """Seconds by a size, piecewise linear between sizes timed."""

    sizes: Floats
    seconds: Floats

    def at(self, size: float) -> float:
        """Seconds; beyond the last size the last segment goes on, below the first nothing changes."""
        if size > self.sizes[-1] and len(self.sizes) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.sizes[-1] - self.sizes[-2])
            return float(self.seconds[-1] + max(0.0, slope) * (size - self.sizes[-1]))
        return float(np.interp(size, self.sizes, self.seconds))


def _line_of(table: pd.DataFrame, column: str, scale: int = 1) -> Line:
    """The fastest timing of each size."""
    best = table.groupby(column)["seconds"].min()
    return Line(best.index.to_numpy(np.float64) * scale, best.to_numpy(np.float64))


class GemmTable:
    """Times of `[m, k] x [k, n]`: bilinear in n and k between widths measured, in proportion beyond them."""

    def __init__(self, table: pd.DataFrame, of_several: str = "median") -> None:
        chosen = table.groupby(["m", "n", "k"])["seconds"].agg(of_several)
        self.rows: list[int] = sorted(table["m"].unique().tolist())
        """The values of m."""
        tables = {m: chosen[m].unstack("k").sort_index() for m in self.rows}
        self._by_rows = {
            m: [np.asarray(part, np.float64) for part in (table.index, table.columns, table)]
            for m, table in tables.items()
        }
        """By m: the values of n, the values of k, and the seconds at each pair, NaN where none were timed."""

    def seconds(self, m: int, n: float, k: float) -> float:
        """Seconds at a measured m and any n and k."""
        widths, depths, times = self._by_rows[m]
        timed = ~np.isnan(times)
        by_n = [_line(k, depths[known], row[known]) for row, known in zip(times, timed, strict=True)]
        return _line(n, widths, np.array(by_n))


def _line(at: float, knots: Floats, values: Floats) -> float:
    """Piecewise-linear through knots; beyond the last in proportion, which does not magnify its noise."""
    if at > knots[-1]:
        return float(values[-1] * at / knots[-1])
    return float(np.interp(at, knots, values))


def open_package(wheel: Path | None) -> tuple[Folder, str]:
    """The package's folder of systems, installed or in a wheel, and its version.

    Raises `CalibrationError` if it isn't there.
    """
    if wheel is not None:
        return open_wheel(wheel, ROOT), wheel.name.split("-")[1]
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise CalibrationError(
            f"{PACKAGE} is not installed: {install_extra('nvidia')}, or pass its wheel by --wheel"
        ) from error
    return Path(str(package.locate_file(ROOT))), package.version


def open_wheel(wheel: Path, root: str) -> Folder:
    """The folder of systems of a wheel, packed or not. Raises `CalibrationError` if it isn't there."""
    try:
        folder = (wheel if wheel.is_dir() else zipfile.Path(wheel)) / root
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{wheel}: can't be read as a wheel: {error}") from error
    if not folder.is_dir():
        raise CalibrationError(f"{wheel}: not a wheel of {PACKAGE if root == ROOT else root.split('/')[0]}")
    return folder


def numbers_of(version: str) -> tuple[int, ...]:
    """All numbers in a version's name: 1, 1, 0, 2 of 1.1.0rc2."""
    return tuple(map(int, re.findall(r"\d+", version)))
