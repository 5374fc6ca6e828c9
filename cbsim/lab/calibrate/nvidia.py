"""Points from NVIDIA's kernel tables, for any model on any of their systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cbsim.base.errors import CalibrationError
from cbsim.base.units import MEGA
from cbsim.cost.collectives import num_layer_reduces, num_norm_reduces
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.engine_kernels import (
    ENGINES,
    Engine,
    attention_kernels,
    small_kernels,
)
from cbsim.lab.calibrate.estimates import Estimate
from cbsim.lab.calibrate.nvidia_tables import (
    OWN_PRODUCTS,
    PACKAGE,
    ExpertsTable,
    GemmTable,
    Heads,
    Line,
    NvidiaTables,
    Phase,
)
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.specs import ModelSpec, ParallelSpec
from cbsim.specs.model import AttentionKind, MlaSpec
from cbsim.specs.parallel import ONE_GPU
from cbsim.specs.precision import BYTES_PER_ELEMENT

MIN_LENGTH = 16
"""Shorter prompts and contexts are no load worth fitting."""
MAX_STEP_TOKENS = 16_384
MAX_SEQS = 1024
"""Larger steps and batches than serving engines are set to."""
SQUARES_BYTES = 8
"""Of a token's queries and keys, a float32 each."""
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
    num_multiprocessors: int | None = None
    """Of GPUs on which vLLM runs FlashAttention 2, which `estimates.py` knows of: not Hopper's, whose third
    reads the keys of a KV head once for all its query heads beside chunks too (`get_pack_gqa` of its
    `heuristics.h`), nor Blackwell's of data centres, where FlashInfer launches chunks and decodes apart."""


SYSTEMS = {
    "h200_sxm": System("h200", 50 * MEGA),
    "h100_sxm": System("h100", 50 * MEGA),
    "a100_sxm": System("a100-80g", 40 * MEGA, 108),
    "l40s": System("l40s", 96 * MEGA, 142),
    "rtx_pro_6000_server": System("rtxpro6000", 128 * MEGA, 188),
    "b200_sxm": System("b200", 126 * MEGA),
    "gb200": System("gb200", 126 * MEGA),
    "b300_sxm": System("b300", 126 * MEGA),
    "gb300": System("gb300", 126 * MEGA),
}
"""L2 sizes and multiprocessors from NVIDIA's architecture white papers (Ampere, Hopper, Ada, Blackwell)."""


DISTRIBUTION = "power_law_1.2"
"""How tokens are spread over experts unless said otherwise: the most uneven that all frameworks timed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to take from the tables."""

    model: ModelSpec
    parallel: ParallelSpec = ONE_GPU
    framework: str = "vllm"
    """Whose kernels: prefill attention, experts and all-reduces."""
    decode_framework: str = "vllm"
    """Whose decode attention."""
    distribution: str = DISTRIBUTION
    """Of tokens over experts, by the tables' name."""
    experts_framework: str | None = None
    """Whose experts, where an engine was told to run another's kernels; null takes `framework`'s."""
    experts_kernel: str | None = None
    """The kernel of experts that an engine was told to run, one of `EXPERT_KERNELS`; null for the fastest."""
    reduces_with_norms: bool | None = None
    """Whether all-reduces normalise too; null takes the framework's habit."""

    @property
    def engine(self) -> Engine:
        """The framework's habits; vLLM's of one that nobody looked at."""
        engine = ENGINES.get(self.framework, ENGINES["vllm"])
        told = self.reduces_with_norms
        return engine if told is None else engine._replace(reduces_with_norms=told)

    @property
    def gpus(self) -> int:
        """GPUs that share each layer."""
        return self.parallel.tensor

    def heads(self, kind: AttentionKind) -> Heads:
        """Those of one GPU in some layers."""
        kv_heads = max(1, kind.num_kv_heads // self.gpus)
        kv_dtype = self.model.kv_dtype or self.model.dtype
        return Heads(kind.num_heads // self.gpus, kv_heads, kind.query_size, kv_dtype, kind.window)


def import_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    """The tables' kernels put together to one GPU's share of a layer, its attention and the LM head.

    Raises `CalibrationError` if the tables lack something.
    """
    model, gpus, kinds = wanted.model, wanted.gpus, wanted.model.attention_kinds
    widths = [("num_heads", kind.num_heads) for kind in kinds]
    if model.num_expert_layers < model.num_layers:
        widths.append(("intermediate_size", model.intermediate_size))
    problems = [
        f"model {model.name}: {name} {size} can't be split over {gpus} GPUs"
        for name, size in dict.fromkeys(widths)
        if size % gpus
    ]
    if model.dtype not in ("bfloat16", "float16"):
        problems.append(f"model {model.name}: tables have activations in 16 bits alone, got {model.dtype}")
    if len({kind.window for kind in kinds}) < len(kinds):
        problems.append(f"model {model.name}: layers of one window differ in heads")
    if problems:
        raise CalibrationError(*problems)
    return [
        *_dense_points(tables, wanted),
        *_experts_points(tables, wanted),
        *collectives_points(tables, wanted),
        *_logits_points(tables, wanted),
        *(point for kind in kinds for point in _prefill_points(tables, wanted, kind)),
        *(point for kind in kinds for point in _decode_points(tables, wanted, kind)),
    ]


def import_meta(tables: NvidiaTables, wanted: Wanted, date: str) -> Meta:
    """Where imported points come from, and what of them is estimated."""
    model, parallel = wanted.model, wanted.parallel
    dtypes = {part.dtype for part in model.parts if part.name not in ("experts", "head", "router")}
    products = "cuBLAS's, the median" if dtypes <= {model.dtype} else "the fastest (16 bits: the median)"
    warnings = [
        f"matrix products are {products} over frameworks, interpolated between the widths measured",
        f"norms, rotary positions and activation, as far as {wanted.framework} launches kernels of their own "
        "for them, are estimated by their bytes and a launch time each, "
        f"sampling by {SAMPLING_KERNELS} launches and its bytes; none of them was measured",
        "attention was timed with a warm L2 cache: decode points whose KV fits in it are left out",
    ]
    own = [dtype for dtype in sorted(dtypes) if (wanted.framework, dtype) in OWN_PRODUCTS]
    if own:
        warnings.append(f"products in {' and '.join(own)} are those of {wanted.framework} alone")
    if model.mla is not None:
        warnings.append("unpacking the latent vector, or absorbing it if not timed, is taken for one product")
    if model.experts is not None:
        warnings.append(f"tokens were spread over experts by {wanted.distribution}")
    if tables.release is not None:
        release = ".".join(map(str, tables.release.version))
        warnings.append(
            f"experts, latent attention and collectives are those timed next to {tables.release.framework} "
            f"{release}, as far as they were"
        )
    if parallel.tensor > 1 and _gathered(tables, wanted) is None:
        warnings.append("the all-gather of the logits is left out")
    if parallel.data > 1:
        exchange = "NCCL's all-gather and reduce-scatter"
        if _sent(tables, wanted) is not None:
            exchange = "all-to-all, as timed with tokens spread evenly over experts"
        warnings.append(f"ranks exchange tokens by {exchange}")
    frameworks = wanted.framework
    of_others = {"decode attention": wanted.decode_framework, "experts": wanted.experts_framework}
    apart = [f"{what}: {name}" for what, name in of_others.items() if name not in (None, wanted.framework)]
    if apart:
        frameworks += f" ({', '.join(apart)})"
    told = {
        "ep": parallel.expert if parallel.expert > 1 else None,
        "dp": parallel.data if parallel.data > 1 else None,
        "weight-dtype": model.weight_dtype,
        "kv-dtype": model.kv_dtype,
        "distribution": wanted.distribution if wanted.distribution != DISTRIBUTION else None,
    }
    options = "".join(f" --{name} {value}" for name, value in told.items() if value is not None)
    system = SYSTEMS.get(tables.system, System())
    estimates: list[Estimate] = []
    if model.mla is None and system.num_multiprocessors:
        # TensorRT-LLM launches chunks and decodes apart, and SGLang never has both in a step.
        estimates = ["mixed"] if wanted.framework == "vllm" else []
        estimates += ["unequal"] if wanted.decode_framework == "vllm" else []
    return Meta(
        device=tables.system,
        gpu=system.gpu,
        model=model_shape(model),
        tensor_parallel=parallel.tensor,
        expert_parallel=parallel.expert,
        data_parallel=parallel.data,
        num_multiprocessors=system.num_multiprocessors,
        estimates=estimates,
        source=f"{PACKAGE} {tables.package_version}, kernels of {frameworks} on {tables.system}",
        licence="Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES",
        date=date,
        command=f"cbsim calibrate import nvidia --system {tables.system} --model {model.name} "
        f"--tp {parallel.tensor}{options} --framework {wanted.framework} "
        f"--decode-framework {wanted.decode_framework}",
        warnings=warnings,
    )


class Product(NamedTuple):
    """A matrix product of one GPU: `[tokens, depth] x [depth, width]`, and in what share of the layers."""

    width: float
    depth: float
    dtype: str
    share: float = 1.0
    is_shared: bool = False
    """Whether it is one of shared experts."""
    is_attention: bool = False


def _products(wanted: Wanted) -> list[Product]:
    """Those of a layer, routed experts apart."""
    model, gpus, hidden = wanted.model, wanted.gpus, wanted.model.hidden_size
    products = []
    attention = model.weight_dtype_of("attention")
    for kind in model.attention_kinds:
        share = kind.num_layers / model.num_layers
        heads, kv_heads = kind.num_heads // gpus, max(1, kind.num_kv_heads // gpus)
        if model.mla is None:
            kv_width = kv_heads * (kind.query_size + kind.value_size)
            shapes = [(heads * kind.query_size + kv_width, hidden), (hidden, heads * kind.value_size)]
        else:
            mla = model.mla
            latent = mla.kv_lora_rank + mla.qk_rope_head_dim
            queries = mla.q_lora_rank or hidden
            shapes = [
                (latent + (mla.q_lora_rank or 0), hidden),
                (heads * kind.query_size, queries),
                _unpacking(mla, heads),
                (hidden, heads * mla.v_head_dim),
            ]
        products += [Product(*shape, attention, share, is_attention=True) for shape in shapes]
    with_experts = model.num_expert_layers / model.num_layers
    widths = [(model.intermediate_size, model.weight_dtype_of("mlp"), 1.0 - with_experts, False)]
    if model.experts is not None:
        shared = model.experts.shared_intermediate_size
        widths.append((shared, model.weight_dtype_of("shared_experts"), with_experts, True))
        products.append(
            Product(model.experts.num_experts, hidden, model.weight_dtype_of("router"), with_experts)
        )
    for width, dtype, share, is_shared in widths:
        if width and share:
            products.append(Product(2 * width / gpus, hidden, dtype, share, is_shared))
            products.append(Product(hidden, width / gpus, dtype, share, is_shared))
    return products


def _unpacking(mla: MlaSpec, heads: int) -> tuple[int, int]:
    """Width and depth of the product that makes keys and values of latent vectors."""
    return heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank


def _moved_elements(wanted: Wanted) -> float:
    """Elements that a token moves in a layer beside products, attention and experts: in norms of the layer's
    input, rotary positions, norms of heads, activation.
    """
    model, gpus = wanted.model, wanted.gpus
    with_experts = model.num_expert_layers / model.num_layers
    elements = 8.0 * model.hidden_size
    for kind in model.attention_kinds:
        rotated = kind.num_heads // gpus + max(1, kind.num_kv_heads // gpus)
        share = kind.num_layers / model.num_layers
        elements += share * 2 * rotated * kind.query_size * (2 if model.qk_norm else 1)
    width = (1.0 - with_experts) * model.intermediate_size
    if model.experts is not None:
        width += with_experts * model.experts.shared_intermediate_size
    return elements + 3 * width / gpus


def _dense_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    """A layer's products and small kernels.

    Where an engine runs shared experts beside the routed ones, only what they take longer counts.
    """
    model, engine = wanted.model, wanted.engine
    products, launch_s = _products(wanted), tables.launch_s
    dtypes = dict.fromkeys(product.dtype for product in products)
    gemms = {dtype: tables.gemm(dtype, wanted.framework) for dtype in dtypes}
    small_s = small_kernels(engine, model, wanted.parallel) * launch_s
    token_s = _moved_elements(wanted) * model.element_bytes / tables.bytes_per_s
    shared = [product for product in products if product.is_shared]
    experts = _experts(tables, wanted) if shared else None
    points = []
    for tokens in _rows(gemms, MAX_STEP_TOKENS):

        def seconds_of(some: Sequence[Product], tokens: int = tokens) -> float:
            return sum(
                product.share * gemms[product.dtype].seconds(tokens, product.width, product.depth)
                for product in some
            )

        seconds = seconds_of([product for product in products if not product.is_shared])
        if experts is not None:
            with_experts = shared[0].share
            shared_s = seconds_of(shared) + with_experts * launch_s
            if tokens <= engine.shared_beside_tokens:
                shared_s = max(0.0, shared_s - with_experts * experts.at(tokens * wanted.parallel.data))
            seconds += shared_s
        seconds += small_s + tokens * token_s
        points.append(Point("dense", seconds, tokens=tokens, backend="gemm", l2="warm"))
    return points


def _rows(gemms: Mapping[str, GemmTable], most: int) -> list[int]:
    """Numbers of rows that all dtypes were timed at."""
    common = set.intersection(*(set(gemm.rows) for gemm in gemms.values()))
    return sorted(count for count in common if count <= most)


def _experts(tables: NvidiaTables, wanted: Wanted) -> Line | None:
    """Seconds of one layer's routed experts by the tokens of all ranks; None for models without."""
    model, parallel = wanted.model, wanted.parallel
    if model.experts is None:
        return None
    dtype = model.weight_dtype_of("experts")
    split = (parallel.expert_tensor, parallel.expert)
    return tables.experts(
        wanted.experts_framework or wanted.framework,
        ExpertsTable(
            model.experts, model.hidden_size, dtype, *split, wanted.distribution, wanted.experts_kernel
        ),
    )


def _experts_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    line = _experts(tables, wanted)
    if line is None:
        return []
    share = wanted.model.num_expert_layers / wanted.model.num_layers
    return [
        Point("experts", share * seconds, tokens=int(tokens), backend="moe", l2="warm")
        for tokens, seconds in zip(line.sizes, line.seconds, strict=True)
    ]


def system_of(gpu: str) -> str:
    """The system of the tables that has a GPU of `configs/gpus`. Raises `CalibrationError` if none has."""
    of = {known.gpu: name for name, known in SYSTEMS.items() if known.gpu is not None}
    if gpu not in of:
        raise CalibrationError(f"{PACKAGE} has no {gpu}; allowed: {', '.join(of)}")
    return of[gpu]


def collectives_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    """All-reduces after attention and MLP, and for norms of all heads; with data parallelism a layer of
    experts gathers the tokens of all ranks before them and scatters their sums after, or sends them about.
    """
    model, parallel = wanted.model, wanted.parallel
    num_reduces = num_layer_reduces(model, parallel) / model.num_layers
    with_experts, exchanges, sent = model.num_expert_layers / model.num_layers, [], _sent(tables, wanted)
    if parallel.data > 1 and sent is None:
        exchanges = [tables.nccl(op, parallel.num_expert_gpus) for op in ("all_gather", "reduce_scatter")]
    reduce = tables.all_reduce(wanted.framework, parallel.tensor) if parallel.tensor > 1 else None
    if reduce is None and parallel.data == 1:
        return []
    token_bytes, points = model.hidden_size * model.element_bytes, []
    gathered_bytes = (
        model.hidden_size * BYTES_PER_ELEMENT["nvfp4"] if _gathers_quantised(wanted) else token_bytes
    )
    for tokens in (2**power for power in range(MAX_STEP_TOKENS.bit_length())):
        own_tokens = tokens / parallel.data
        seconds = sum(
            with_experts * line.at(tokens * size)
            for line, size in zip(exchanges, (gathered_bytes, token_bytes), strict=False)
        )
        if sent is not None:
            seconds += with_experts * sent.at(own_tokens)
        if reduce is not None:
            seconds += num_reduces * reduce.at(own_tokens * token_bytes)
            seconds += (
                num_norm_reduces(model, parallel) / model.num_layers * reduce.at(own_tokens * SQUARES_BYTES)
            )
        points.append(Point("collectives", seconds, tokens=tokens, backend="nccl", l2="warm"))
    return points


def _gathers_quantised(wanted: Wanted) -> bool:
    """Whether ranks of attention quantise tokens before they gather them: TensorRT-LLM in nvfp4
    (`disable_fp4_allgather` of its `fused_moe_cutlass.py`).
    """
    return wanted.framework == "trtllm" and wanted.model.weight_dtype_of("experts") == "nvfp4"


def _sent(tables: NvidiaTables, wanted: Wanted) -> Line | None:
    """Seconds to send tokens to their experts and back, where ranks of attention do that and it was timed: on
    NVLink over several nodes, from as many ranks as a token has experts (`select_alltoall_method_type` of
    TensorRT-LLM's `fused_moe_wide_ep.py`).
    """
    model, parallel = wanted.model, wanted.parallel
    if parallel.data == 1 or model.experts is None:
        return None
    if parallel.expert < model.experts.num_experts_per_token:
        return None
    dtype = model.weight_dtype_of("experts")
    return tables.all_to_all(model.experts, model.hidden_size, dtype, parallel.expert)


def _logits_points(tables: NvidiaTables, wanted: Wanted) -> list[Point]:
    model = wanted.model
    gemm, gathered = tables.gemm(model.weight_dtype_of("head")), _gathered(tables, wanted)
    points = []
    for rows in (count for count in gemm.rows if count <= MAX_SEQS):
        seconds = gemm.seconds(rows, model.vocab_size / wanted.gpus, model.hidden_size)
        seconds += SAMPLING_KERNELS * tables.launch_s
        seconds += rows * model.vocab_size * SAMPLING_BYTES_PER_LOGIT / tables.bytes_per_s
        if gathered is not None:
            seconds += gathered.at(rows * model.vocab_size * model.element_bytes)
        points.append(Point("logits", seconds, num_logits=rows, backend="gemm", l2="warm"))
    return points


def _gathered(tables: NvidiaTables, wanted: Wanted) -> Line | None:
    """Seconds of the all-gather by which GPUs get the logits of all by their bytes, as engines do before they
    sample (`gather_output` of TensorRT-LLM's `LMHead`, `_gather_logits` of vLLM's `LogitsProcessor`, SGLang's
    `logits_processor.py`); None for one GPU, or if not timed over so many.
    """
    if wanted.gpus == 1:
        return None
    try:
        return tables.nccl("all_gather", wanted.gpus)
    except CalibrationError:
        return None


def _attention(tables: NvidiaTables, wanted: Wanted, kind: AttentionKind, phase: Phase) -> pd.DataFrame:
    framework = wanted.framework if phase == "context" else wanted.decode_framework
    heads = wanted.heads(kind)
    if not kind.is_latent:
        return tables.attention(phase, framework, heads)
    table = tables.latent_attention(phase, framework, heads.num_heads, heads.kv_dtype)
    return table if phase == "context" else _with_rest_of_modules(tables, wanted, heads, table)


def _with_rest_of_modules(
    tables: NvidiaTables, wanted: Wanted, heads: Heads, decodes: pd.DataFrame
) -> pd.DataFrame:
    """Latent attention of decodes with what their two products instead of unpacking take more than it, and
    with what a whole layer takes beyond that, its products and its small kernels, where such were timed.
    """
    model = wanted.model
    assert model.mla is not None
    dtype = model.weight_dtype_of("attention")
    modules = tables.latent_modules(heads.num_heads, heads.kv_dtype, dtype)
    gemm = tables.gemm(dtype, wanted.framework)
    absorbing = tables.latent_products(wanted.decode_framework, heads.num_heads)
    if absorbing is not None:
        unpacking = _unpacking(model.mla, heads.num_heads)
        more = {batch: max(0.0, absorbing.at(batch) - gemm.seconds(batch, *unpacking)) for batch in gemm.rows}
        decodes = decodes.assign(seconds=decodes["seconds"] + decodes["batch_size"].map(more).fillna(0.0))
    counted_s = attention_kernels(wanted.engine, model) * tables.launch_s
    products = [product for product in _products(wanted) if product.is_attention]
    apart = {
        batch: counted_s + sum(p.share * gemm.seconds(batch, p.width, p.depth) for p in products)
        for batch in gemm.rows
    }
    table = decodes.assign(context=decodes["step"] + 1)
    table = table.merge(modules, on=["batch_size", "context"], how="left", suffixes=("", "_of_module"))
    rest = table.pop("seconds_of_module") - table["batch_size"].map(apart)
    if tables.newest is not tables:
        # Whole layers were timed with the newest kernels; those wanted take their place.
        newest = tables.newest.latent_attention(
            "generation", wanted.decode_framework, heads.num_heads, heads.kv_dtype
        )
        sizes = ["batch_size", "step"]
        rest += table["seconds"] - table[sizes].merge(newest, on=sizes, how="left")["seconds"]
    return table.assign(seconds=np.fmax(table["seconds"], rest))


def _prefill_points(tables: NvidiaTables, wanted: Wanted, kind: AttentionKind) -> list[Point]:
    table = _attention(tables, wanted, kind, "context")
    table = table[(table["isl"] >= MIN_LENGTH) & (table["batch_size"] * table["isl"] <= MAX_STEP_TOKENS)]
    rows = table[["seconds", "batch_size", "isl", "backend"]].itertuples(index=False)
    return [
        Point.attention(seconds, ((length, 0),) * batch, backend=backend, l2="warm", window=kind.window)
        for seconds, batch, length, backend in rows
    ]


def _decode_points(tables: NvidiaTables, wanted: Wanted, kind: AttentionKind) -> list[Point]:
    table = _attention(tables, wanted, kind, "generation")
    table = table.assign(context=table["step"] + 1)
    table = table[(table["context"] >= MIN_LENGTH) & (table["batch_size"] <= MAX_SEQS)]
    token_bytes = kind.kv_elements_of_gpu(wanted.gpus) * wanted.model.kv_element_bytes
    read = np.minimum(table["context"], kind.window) if kind.window else table["context"]
    kv_bytes = table["batch_size"] * read * token_bytes
    may_be_cached = kv_bytes < L2_MARGIN * SYSTEMS.get(tables.system, System()).l2_bytes
    matters = kv_bytes / tables.bytes_per_s > COLD_SHARE * table["seconds"]
    table = table.assign(split=np.where(may_be_cached & matters & (kind.window == 0), "warm", "fit"))
    rows = table[["seconds", "batch_size", "context", "backend", "split"]].itertuples(index=False)
    return [
        Point.attention(
            seconds, (), batch, context, backend=backend, l2="warm", split=split, window=kind.window
        )
        for seconds, batch, context, backend, split in rows
    ]
