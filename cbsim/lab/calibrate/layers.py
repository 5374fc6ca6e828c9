"""Points from layer timings of other profilers: dense ops, per-sequence ops, attention in one launch.

Three CSV files, as LLMServingSim 2.0 writes them (times in microseconds, of one layer):

* dense: `layer,tokens,time_us`; routed experts and collectives among them are priced apart
* per sequence: `layer,sequences,time_us`
* experts of one layer, if apart: `tokens,time_us`; collectives, if apart: `tokens,time_us` of all in a layer,
  or `bytes,time_us` of one all-reduce, which runs twice a layer
* attention: `prefill_chunk,kv_prefill,n_decode,kv_decode,time_us`: a chunk, its context, and decodes of
  equal context

Other usual names of columns and other units of time are understood, and how often an op
runs is told by its name; both can be said.
"""

from __future__ import annotations

import re
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
from cbsim.base.units import MS_PER_S, NS_PER_S, US_PER_S, format_seconds
from cbsim.cost.collectives import Link, step_traffic
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.point import Op, Point
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

DENSE_COLUMNS = ("layer", "tokens")
SEQUENCE_COLUMNS = ("layer", "sequences")
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
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
    ops: Mapping[str, Runs] = field(default_factory=dict)
    """How often ops run whose names don't tell."""

    def points(self) -> list[Point]:
        """All timings. Raises `CalibrationError` for a file that isn't as expected or can't be true."""
        unknown = [op for op in self.ops if op not in self._runs]
        if unknown:
            hint = did_you_mean(unknown[0], list(self._runs))
            raise CalibrationError(f"{self.dense}: no op '{unknown[0]}'{hint}")
        return [*self._dense_points(), *self._logits_points(), *self._attention_points()]

    def meta(self, source: str, date: Date) -> Meta:
        """Where the points come from, with what looks odd in them."""
        options = f" --per-sequence {self.per_sequence.name}" if self.per_sequence else ""
        options += "".join(f" --column {name}={theirs}" for name, theirs in self.columns.items())
        options += "".join(f" --op {name}={runs}" for name, runs in self.ops.items())
        apart = {"moe": self.moe, "collectives": self.collectives}
        options += "".join(f" --{name} {path.name}" for name, path in apart.items() if path)
        options += f" --ep {self.expert_parallel}" if self.expert_parallel > 1 else ""
        estimated = (
            f"all-reduces of {self.tensor_parallel} GPUs were not timed: estimated by the link's bandwidth "
            f"and {format_seconds(self._link.latency_s)} each"
        )
        return Meta(
            device=self.gpu.name,
            gpu=self.gpu.name,
            model=model_shape(self.model),
            tensor_parallel=self.tensor_parallel,
            expert_parallel=self.expert_parallel,
            source=source,
            date=date.isoformat(),
            command=f"cbsim calibrate import layers --model {self.model.name} --gpu {self.gpu.name} "
            f"--tp {self.tensor_parallel} --dense {self.dense.name} "
            f"--attention {self.attention.name}{options}",
            assumptions=[estimated] if self._lacks_all_reduces else [],
            warnings=[
                self._runs_sentence(),
                *check_plausible(self.points(), self.model, self.gpu, self.tensor_parallel),
                "attention whose KV cache exceeds the device's memory is left out of the fit",
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
        return read_table(self.dense, DENSE_COLUMNS, self.columns)

    @property
    def _lacks_all_reduces(self) -> bool:
        is_timed = self.collectives is not None or any(map(_is_collective, self._runs))
        return self.tensor_parallel > 1 and not is_timed

    @property
    def _link(self) -> Link:
        return Link.of(self.gpu)

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
        if self._lacks_all_reduces:
            tokens, _ = tables["dense"]
            traffic = step_traffic(model, ParallelSpec(tensor=self.tensor_parallel), self._link)
            seconds = (traffic.fixed_s + traffic.per_token_s * tokens) / num_layers
            tables["collectives"] = tokens, seconds
        return [
            Point(op, second, tokens=count)
            for op, (tokens, seconds) in tables.items()
            for count, second in zip(tokens.tolist(), seconds.tolist(), strict=True)
        ]

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
            num_keys = num_decodes * context + sum(map(sum, chunks))
            split = "unseen" if num_keys > max_tokens else "fit"
            points.append(Point.attention(seconds, chunks, num_decodes, context, split=split))
        return points


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


USUAL_NAMES = {
    "layer": "layer op op_name operator name kernel module",
    "tokens": "tokens num_tokens n_tokens total_tokens batch_tokens",
    "bytes": "bytes message_bytes message_size size_bytes num_bytes size",
    "sequences": "sequences num_sequences seqs num_seqs n_seqs batch_size batch rows",
    "prefill_chunk": "prefill_chunk chunk chunk_size chunk_tokens prefill_tokens num_prefill_tokens "
    "prefill_chunk_size q_len",
    "kv_prefill": "kv_prefill prefill_kv prefill_context chunk_context prefill_kv_len kv_cache_size",
    "n_decode": "n_decode num_decode n_decodes num_decodes decodes decode_batch decode_batch_size",
    "kv_decode": "kv_decode decode_kv decode_context decode_kv_len kv_len context_len",
}
"""What a column is called: the first name that is there; case, blanks and hyphens don't count."""
UNITS = {"s": 1, "ms": MS_PER_S, "us": US_PER_S, "ns": NS_PER_S}
_TIME = re.compile(
    r"(?:(?:time|latency|duration|elapsed|median|mean|avg|average|t)(?:_[a-z0-9]+)*_)?(ns|us|ms|s)"
)
_PREFERRED = ("time", "latency", "duration", "median", "mean", "avg")
"""Of several times, what the name begins with or holds, the first that is there."""


def read_table(path: Path, columns: tuple[str, ...], renamed: Mapping[str, str]) -> pd.DataFrame:
    """A CSV's `columns` and its times as `seconds`; one row for each combination, the median of its timings.

    `renamed` says what columns are called there that have no usual name. Raises `CalibrationError` for
    columns that are missing, and with the lines of counts < 0 and times <= 0.
    """
    table = _read_csv(path)
    names = _names(table)
    found = pd.DataFrame()
    for column in columns:
        theirs = _find(path, names, column, renamed)
        if theirs is None:
            raise CalibrationError(
                f"{path}:1: column {column} is missing among {', '.join(names.values())}; expected "
                f"{', '.join(columns)} and a time with its unit, such as time_us, or --column {column}=NAME"
            )
        found[column] = table[theirs]
    time, per_s = _find_time(path, names, renamed)
    found["seconds"] = pd.to_numeric(table[time], errors="coerce") / per_s
    counts = [column for column in columns if column != "layer"]
    found[counts] = found[counts].apply(pd.to_numeric, errors="coerce")
    numbers = found[[*counts, "seconds"]]
    wrong = numbers.isna().any(axis=1) | (numbers < 0).any(axis=1) | (numbers["seconds"] <= 0)
    if wrong.any():
        lines = ", ".join(str(index + 2) for index in found.index[wrong][:5])
        raise CalibrationError(f"{path}: expected counts >= 0 and times > 0 in lines {lines}")
    found[counts] = found[counts].astype("int64")
    medians: pd.DataFrame = found.groupby(list(columns), sort=False)["seconds"].median().reset_index()
    return medians


def has_column(path: Path, column: str, renamed: Mapping[str, str]) -> bool:
    """Whether a CSV has a column; raises `CalibrationError` if it can't be read."""
    return _find(path, _names(_read_csv(path, num_rows=0)), column, renamed) is not None


def _read_csv(path: Path, num_rows: int | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, skipinitialspace=True, nrows=num_rows)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CalibrationError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error


def _names(table: pd.DataFrame) -> dict[str, str]:
    """What columns are called there, by their plain names."""
    return {_plain(name): str(name) for name in table.columns}


def _find(path: Path, names: Mapping[str, str], column: str, renamed: Mapping[str, str]) -> str | None:
    """The name of a column there: the one that was said, else the first usual one."""
    if column in renamed:
        if _plain(renamed[column]) not in names:
            hint = did_you_mean(renamed[column], list(names.values()))
            raise CalibrationError(f"{path}:1: no column '{renamed[column]}' for {column}{hint}")
        return names[_plain(renamed[column])]
    return next((names[usual] for usual in USUAL_NAMES.get(column, "").split() if usual in names), None)


def _find_time(path: Path, names: Mapping[str, str], renamed: Mapping[str, str]) -> tuple[str, int]:
    """The column of times, and how many of its units are a second."""
    said = _find(path, names, "time", renamed)
    if said is not None:
        unit = _plain(said).rpartition("_")[2]
        if unit not in UNITS:
            raise CalibrationError(f"{path}:1: column {said} has no unit at its end: _ns, _us, _ms or _s")
        return said, UNITS[unit]
    units = {name: match[1] for name in names if (match := _TIME.fullmatch(name))}
    for word in (*_PREFERRED, *UNITS):
        for name, unit in units.items():
            if word in name.split("_"):
                return names[name], UNITS[unit]
    raise CalibrationError(
        f"{path}:1: no column of times among {', '.join(names.values())}; expected one such as time_us, "
        "latency_ms or median_s, or --column time=NAME"
    )


def _plain(name: object) -> str:
    """A column's name without what doesn't count; a unit in brackets becomes an ending."""
    words = re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower().replace("µ", "u").replace("μ", "u"))
    return words.strip("_")
