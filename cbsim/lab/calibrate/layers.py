"""Points from layer timings of other profilers: dense ops, per-sequence ops, attention in one launch.

Three CSV files, as LLMServingSim 2.0 writes them (times in microseconds, of one layer):

* dense: `layer,tokens,time_us`; routed experts and collectives among them are priced apart
* per sequence: `layer,sequences,time_us`
* experts of one layer, if apart: `tokens,time_us`; collectives, if apart: `tokens,time_us` of all in a layer,
  or `bytes,time_us` of one all-reduce, which runs twice a layer; or the points of another source's tables
* attention: `prefill_chunk,kv_prefill,n_decode,kv_decode,time_us`: a chunk, its context, and decodes of
  equal context
* products, if timed with other libraries than the server's: as dense, timed with the server's, which replace
  the dense ops of these names
* attention of unequal contexts, if timed: `n,nb,pc,kp,kvs,kv_big,t_mean_us,t_skew_us`: n decodes of which nb
  have a context of kv_big and the others one of kvs, beside a chunk of pc tokens over kp; and as many decodes
  whose contexts are all equal to the mean

Other usual names of columns and other units of time are understood, and how often an op
runs is told by its name; both can be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import GIGA, MS_PER_S, format_seconds
from cbsim.cost.collectives import Link, step_traffic
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.estimates import Estimate
from cbsim.lab.calibrate.layer_tables import has_column, read_table
from cbsim.lab.calibrate.point import Op, Point
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

DENSE_COLUMNS = ("layer", "tokens")
SEQUENCE_COLUMNS = ("layer", "sequences")
SKEW_COLUMNS = ("n_decode", "n_longest", "prefill_chunk", "kv_prefill", "kv_others", "kv_longest")
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
KEY_BLOCK = 128
"""Keys that attention reads at a time in a launch with chunks, whatever the last block holds. On an RTX 4090
and an RTX PRO 6000 vLLM 0.19's launches of equal contexts take the same from 1,025 to 1,151 tokens, and 7 %
more from 1,153 on; decodes alone, which split their contexts, show no such stairs. Timings of equal contexts
alone don't tell, so they are taken as they are."""
THEORY = (
    "what decodes of unequal contexts lose is derived by theory: timings of two GPUs have 1.3 to 1.6 times "
    "as much (--skew FILE has a GPU's own)"
)
"""Where nobody timed it."""
TOLD_TOKENS = (64, 2048)
"""Tokens at which a note tells what share untimed collectives are taken to have."""
ODD_SHARE = 0.7
"""Of the least time that a data sheet allows; below it something is missing, or not what it is taken for."""
IMPOSSIBLY_FAST = 20.0
IMPOSSIBLY_SLOW = 200.0


Runs = Literal["layer", "twice", "step", "experts", "sequence", "none"]
SAID: dict[Runs, str] = {
    "layer": "once a layer",
    "twice": "twice a layer",
    "step": "once a step",
    "experts": "once a layer with experts",
    "sequence": "once a step, by rows of logits",
    "none": "not counted",
}
"""How often an op runs."""
KNOWN_OPS: dict[Runs, str] = {
    "twice": "layernorm layer_norm rmsnorm rms_norm norm all_reduce allreduce",
    "step": "embedding embed embed_tokens token_embedding word_embedding word_embeddings final_layernorm "
    "final_layer_norm final_norm final_rmsnorm ln_f norm_f",
    "experts": "experts expert routed_experts moe fused_moe moe_experts grouped_gemm",
    "sequence": "lm_head logits logits_processor compute_logits sampler sampling",
    "none": "attention attn core_attention self_attention flash_attention paged_attention",
}
"""Ops by how often they run; every other one runs once a layer. Attention stands in a table of its own."""
COLLECTIVES = ("reduce", "all_gather", "allgather", "all_to_all", "alltoall", "dispatch", "combine")
"""What the names of collectives hold."""


@dataclass(frozen=True)
class LayerTimings:
    """Where the three files are, and what was timed."""

    dense: Path
    per_sequence: Path | None
    """None where the dense table holds the LM head, by rows."""
    attention: Path
    model: ModelSpec
    gpu: GpuSpec
    tensor_parallel: int = 1
    """GPUs of a replica; the timings are of one GPU's share."""
    expert_parallel: int = 1
    """Groups of them that experts are dealt out to."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What columns are called that have no usual name."""
    moe: Path | None = None
    """None where the dense table holds the experts."""
    collectives: Path | None = None
    """None where the dense table holds them, or nobody timed them."""
    reduces: tuple[Point, ...] = ()
    """Collectives by another source's tables, where the layers have none."""
    reduces_source: str = ""
    """Whose tables."""
    skew: Path | None = None
    """None where nobody timed decodes of unequal contexts."""
    products: Path | None = None
    """Ops timed with the server's own libraries, in place of those of the dense table; None for none."""
    ops: Mapping[str, Runs] = field(default_factory=dict)
    """How often ops run whose names don't tell."""

    def points(self) -> list[Point]:
        """All timings. Raises `CalibrationError` for a file that isn't as expected or can't be true."""
        unknown = [op for op in self.ops if op not in self._runs]
        if unknown:
            hint = did_you_mean(unknown[0], list(self._runs))
            raise CalibrationError(f"{self.dense}: no op '{unknown[0]}'{hint}")
        return [
            *self._dense_points(),
            *self._logits_points(),
            *self._attention_points(),
            *self._skew_points(),
        ]

    def meta(self, source: str, date: Date) -> Meta:
        """Where the points come from, with what looks odd in them."""
        options = f" --per-sequence {self.per_sequence.name}" if self.per_sequence else ""
        options += "".join(f" --column {name}={theirs}" for name, theirs in self.columns.items())
        options += "".join(f" --op {name}={runs}" for name, runs in self.ops.items())
        apart = {
            "moe": self.moe,
            "collectives": self.collectives,
            "skew": self.skew,
            "products": self.products,
        }
        options += "".join(f" --{name} {path.name}" for name, path in apart.items() if path)
        options += f" --ep {self.expert_parallel}" if self.expert_parallel > 1 else ""
        options += f" --collectives-of {self.reduces_source}" if self.reduces else ""
        points = self.points()
        untimed = self._lacks_all_reduces
        estimates: list[Estimate] = ["collectives"] if untimed else []
        assumptions = [self._untimed_sentence(points)] if untimed else []
        told = [f"{', '.join(self._replaced)} are those of {self.products.name}"] if self.products else []
        if self.skew is None:
            assumptions.append(THEORY)
        else:
            told.append(
                f"beside chunks, decodes read keys by blocks of {KEY_BLOCK}: a timing of equal contexts "
                "stands for the mean of contexts that end anywhere in such a block"
            )
        return Meta(
            device=self.gpu.name,
            gpu=self.gpu.name,
            model=model_shape(self.model),
            tensor_parallel=self.tensor_parallel,
            expert_parallel=self.expert_parallel,
            num_multiprocessors=self.gpu.num_multiprocessors,
            source=source,
            date=date.isoformat(),
            command=f"cbsim calibrate import layers --model {self.model.name} --gpu {self.gpu.name} "
            f"--tp {self.tensor_parallel} --dense {self.dense.name} "
            f"--attention {self.attention.name}{options}",
            estimates=estimates,
            assumptions=assumptions,
            warnings=[
                self._runs_sentence(),
                *check_plausible(points, self.model, self.gpu, self.tensor_parallel),
                "attention whose KV cache exceeds the device's memory is left out of the fit",
                *told,
            ],
        )

    @cached_property
    def _runs(self) -> dict[str, Runs]:
        """How often each op of the dense table runs: as was said, else as its name tells."""
        known = {op: runs for runs, ops in KNOWN_OPS.items() for op in ops.split()}
        names = {op: op.strip().lower().replace("-", "_") for op in map(str, self._dense_table["layer"])}
        return {op: self.ops.get(op) or known.get(name, "layer") for op, name in names.items()}

    @cached_property
    def _dense_table(self) -> pd.DataFrame:
        """The dense ops; those of `products` in place of theirs, at the token counts of each within them."""
        table = read_table(self.dense, DENSE_COLUMNS, self.columns)
        for op, timed in self._replaced.items():
            of_op = table["layer"] == op
            if not of_op.any():
                hint = did_you_mean(op, list(map(str, table["layer"])))
                raise CalibrationError(f"{self.products}: no op '{op}' in {self.dense}{hint}")
            table = table[~of_op | table["tokens"].between(timed.index[0], timed.index[-1])]
            own = table.loc[table["layer"] == op, "tokens"].to_numpy()
            table.loc[table["layer"] == op, "seconds"] = np.interp(own, timed.index, timed)
        return table

    @cached_property
    def _replaced(self) -> dict[str, pd.Series]:
        """Seconds by tokens of the ops that `products` holds."""
        if self.products is None:
            return {}
        table = read_table(self.products, DENSE_COLUMNS, self.columns)
        ops = table.groupby("layer", sort=False)
        return {str(op): timed.set_index("tokens")["seconds"].sort_index() for op, timed in ops}

    @property
    def _lacks_all_reduces(self) -> bool:
        has_some = bool(self.collectives or self.reduces or any(map(_is_collective, self._runs)))
        return self.tensor_parallel > 1 and not has_some

    @property
    def _link(self) -> Link:
        return Link.of(self.gpu)

    def _untimed_sentence(self, points: Sequence[Point]) -> str:
        """That all-reduces were not timed, what share of a layer they are taken to be, how wrong that is."""
        by_tokens: dict[str, dict[int, float]] = {"dense": {}, "collectives": {}}
        for point in points:
            if point.op in by_tokens:
                by_tokens[point.op][point.tokens] = point.t_median_s
        parts = []
        for size in TOLD_TOKENS:
            tokens = min(by_tokens["collectives"], key=lambda count: abs(count - size))
            of_both = by_tokens["collectives"][tokens], by_tokens["dense"][tokens]
            parts.append(f"{100 * of_both[0] / sum(of_both):.0f} % at {tokens:,} tokens")
        rate = "measured" if self.gpu.measured_link_gb_s else "data sheet's"
        return (
            f"all-reduces of {self.tensor_parallel} GPUs were NOT TIMED: estimated by the link's {rate} "
            f"{self._link.bytes_per_s / GIGA:.3g} GB/s and {format_seconds(self._link.latency_s)} each, of a "
            f"layer outside attention {' and '.join(dict.fromkeys(parts))}; over PCIe measured ones took 0.4 "
            "to 10 times such estimates, by peer-to-peer access and number of GPUs (--collectives FILE, or "
            "--collectives-of vllm for NVIDIA's tables, has them)"
        )

    def _runs_sentence(self) -> str:
        parts = [
            f"{word}: {', '.join(op for op, runs in self._runs.items() if runs == kind)}"
            for kind, word in SAID.items()
            if kind in self._runs.values()
        ]
        return f"dense ops are taken to run {'; '.join(parts)} (--op NAME=... says otherwise)"

    def _dense_points(self) -> list[Point]:
        model, num_layers = self.model, self.model.num_layers
        shares = {
            "layer": 1.0,
            "twice": 2.0,
            "step": 1.0 / num_layers,
            "experts": model.num_expert_layers / num_layers,
        }
        ops: dict[Op, dict[str, float]] = {"dense": {}, "experts": {}, "collectives": {}}
        for name, kind in self._runs.items():
            if kind in shares:
                op: Op = (
                    "collectives" if _is_collective(name) else "experts" if kind == "experts" else "dense"
                )
                ops[op][name] = shares[kind]
        tables = {op: _summed(self._dense_table, "tokens", runs) for op, runs in ops.items() if runs}
        if self.moe is not None:
            table = read_table(self.moe, ("tokens",), self.columns)
            tables["experts"] = table["tokens"].to_numpy(), shares["experts"] * table["seconds"].to_numpy()
        if self.collectives is not None:
            tables["collectives"] = self._collectives(self.collectives)
        if "dense" not in tables:
            raise CalibrationError(f"{self.dense}: no op of a layer outside attention was timed")
        if model.experts is not None and "experts" not in tables:
            raise CalibrationError(
                f"{self.dense}: no routed experts in it; --op NAME=experts says which they are, --moe where"
            )
        if self.reduces and "collectives" in tables:
            raise CalibrationError(
                f"{self.dense}: collectives were timed there; take those of {self.reduces_source} or these"
            )
        if self._lacks_all_reduces:
            tokens, _ = tables["dense"]
            traffic = step_traffic(model, ParallelSpec(tensor=self.tensor_parallel), self._link)
            seconds = (traffic.fixed_s + traffic.per_token_s * tokens) / num_layers
            tables["collectives"] = tokens, seconds
        own = [
            Point(op, second, tokens=count)
            for op, (tokens, seconds) in tables.items()
            for count, second in zip(tokens.tolist(), seconds.tolist(), strict=True)
        ]
        return [*own, *self.reduces]

    def _collectives(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and seconds of a layer's collectives. Raises `CalibrationError` as `read_table` does."""
        token_bytes = self.model.hidden_size * self.model.element_bytes
        if not has_column(path, "bytes", self.columns):
            table = read_table(path, ("tokens",), self.columns)
            return table["tokens"].to_numpy(), table["seconds"].to_numpy()
        table = read_table(path, ("bytes",), self.columns)
        least = -(-table["bytes"].to_numpy() // token_bytes)
        tokens = np.unique(np.maximum(least, 1))
        order = np.argsort(table["bytes"].to_numpy())
        sizes, seconds = table["bytes"].to_numpy()[order], table["seconds"].to_numpy()[order]
        return tokens, 2 * np.interp(tokens * token_bytes, sizes, seconds)

    def _logits_points(self) -> list[Point]:
        by_rows = [op for op, kind in self._runs.items() if kind == "sequence"]
        table = self._dense_table.rename(columns={"tokens": "sequences"})
        table = table[table["layer"].isin(by_rows)]
        if self.per_sequence is not None:
            proper = read_table(self.per_sequence, SEQUENCE_COLUMNS, self.columns)
            table = pd.concat([proper, table[~table["layer"].isin(proper["layer"])]])
        if table.empty:
            raise CalibrationError(f"{self.dense}: no LM head in it, and no --per-sequence")
        sizes, seconds = _summed(table, "sequences", dict.fromkeys(table["layer"].astype(str), 1.0))
        rows = zip(sizes.tolist(), seconds.tolist(), strict=True)
        return [Point("logits", second, num_logits=count) for count, second in rows]

    def _attention_points(self) -> list[Point]:
        table = read_table(self.attention, ATTENTION_COLUMNS, self.columns)
        kv_shards = min(self.tensor_parallel, self.model.num_kv_heads)
        max_tokens = self.gpu.memory_bytes / self.model.kv_bytes_per_token * kv_shards
        points = []
        for chunk, chunk_context, num_decodes, context, seconds in table.itertuples(index=False):
            if not (chunk or num_decodes):
                continue
            chunks = ((chunk, chunk_context),) if chunk else ()
            # A decode attends to itself at least.
            context = max(context, 1) if num_decodes else 0
            if chunk and num_decodes and self.skew is not None:
                context = spread_context(context)
            num_keys = num_decodes * context + sum(map(sum, chunks))
            split = "unseen" if num_keys > max_tokens else "fit"
            points.append(Point.attention(seconds, chunks, num_decodes, context, split=split))
        return points

    def _skew_points(self) -> list[Point]:
        if self.skew is None:
            return []
        table = read_table(self.skew, SKEW_COLUMNS, self.columns, ("t_mean", "t_skew"))
        table = table[(table["n_longest"] > 0) & (table["n_longest"] < table["n_decode"])]
        if table.empty:
            raise CalibrationError(f"{self.skew}: no launch in which some decodes have a longer context")
        points = []
        for (
            num_decodes,
            num_longest,
            chunk,
            chunk_context,
            others,
            longest,
            mean_s,
            skew_s,
        ) in table.itertuples(index=False):
            chunks = ((chunk, chunk_context),) if chunk else ()
            context = num_longest * longest + (num_decodes - num_longest) * others
            sizes = {"num_longest": num_longest, "t_equal_s": mean_s}
            points.append(Point("unequal", skew_s, chunks, num_decodes, context, longest, **sizes))
        return points


def spread_context(context: int) -> int:
    """Mean context of decodes beside chunks that lie anywhere in their last block of keys, and read as many
    blocks on average as decodes that all have `context` tokens before the one they compute.
    """
    if context < KEY_BLOCK:
        return context
    return ((context + KEY_BLOCK) // KEY_BLOCK) * KEY_BLOCK - KEY_BLOCK // 2


def _is_collective(op: str) -> bool:
    """Whether an op is one of several GPUs, by its name."""
    return any(word in op.lower().replace("-", "_") for word in COLLECTIVES)


def _summed(table: pd.DataFrame, size: str, runs: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes that lie within what every op was timed at, and the ops' seconds there, each as often as it runs.

    An op that lacks a size is interpolated between its own.
    """
    times = table[table["layer"].isin(runs)].pivot_table(index=size, columns="layer", values="seconds")
    timed = [times[op].dropna() for op in times]
    if not timed:
        raise CalibrationError(f"no op that counts by {size} was timed")
    low, high = max(op.index[0] for op in timed), min(op.index[-1] for op in timed)
    sizes = times.index.to_numpy()
    sizes = sizes[(sizes >= max(low, 1)) & (sizes <= high)]
    seconds = np.zeros(len(sizes))
    for op in timed:
        seconds += runs[str(op.name)] * np.interp(sizes, op.index.to_numpy(), op.to_numpy())
    return sizes, seconds


def check_plausible(
    points: Sequence[Point], model: ModelSpec, gpu: GpuSpec, tensor_parallel: int
) -> list[str]:
    """Sentences on what looks odd. Raises `CalibrationError` for times that must be of another unit."""
    sentences = []
    for op in ("dense", "logits", "decode"):
        sample = sorted((point for point in points if point.op == op), key=lambda point: point.size)
        # Few decodes are mere launches, and their KV may lie in the L2 cache.
        ends = sample[-1:] if op == "decode" else [*sample[:1], *sample[-1:]]
        for point in ends:
            what, least_s = _least_s(point, model, gpu, tensor_parallel)
            told = (
                f"{what}: {point.t_median_s * MS_PER_S:.3g} ms, "
                f"but at least {least_s * MS_PER_S:.3g} ms by the data sheet of {gpu.name}"
            )
            if not least_s / IMPOSSIBLY_FAST < point.t_median_s < least_s * IMPOSSIBLY_SLOW:
                raise CalibrationError(f"{told}; is the unit of time another?")
            if point.t_median_s < ODD_SHARE * least_s:
                sentences.append(f"{told}; is an op missing, or is it another model, GPU or --tp?")
    return sentences


def _least_s(point: Point, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> tuple[str, float]:
    """What was timed, and its shortest time: weights and KV read at full bandwidth, FLOP at the peak rate."""
    element_s = model.element_bytes / gpu.memory_bytes_per_s / tensor_parallel
    flop_s = 1.0 / gpu.peak_flop_per_s(model.dtype) / tensor_parallel
    if point.op == "dense":
        parts = [part for part in model.parts if part.name not in ("head", "experts")]
        weights_s = sum(part.num_bytes for part in parts) / gpu.memory_bytes_per_s / tensor_parallel
        token_s = sum(2 * part.num_weights for part in parts) * flop_s
        what = f"a layer outside attention, {point.tokens:,} tokens"
        return what, max(weights_s, token_s * point.tokens) / model.num_layers
    if point.op == "logits":
        head_s = model.hidden_size * model.vocab_size * element_s
        what = f"LM head and sampling, {point.num_logits:,} rows"
        return what, max(head_s, model.logits_flop * flop_s * point.num_logits)
    kv_bytes = model.kv_bytes_per_token / model.num_layers / min(tensor_parallel, model.num_kv_heads)
    tokens = f"{point.decode_context:,} tokens of context"
    what = f"a layer's attention of {point.num_decodes} decodes, {tokens}"
    return what, kv_bytes / gpu.memory_bytes_per_s * point.decode_context
