"""Metrics: TTFT, TPOT, ITL, E2E, goodput, MFU, MBU and KV use, derived from the arrays of a `RunLog`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbsim.base.column_pieces import pieces
from cbsim.cluster.engine.recorder import Column, RunLog
from cbsim.results.limits import limit_notes
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload.request import RequestState

Summary = dict[str, Any]
"""What `summary.json` holds: plain numbers, texts, lists and mappings; `None` where nothing was measured."""

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
"""The summary figures that are distributions over requests (or, for `itl_s`, over gaps), seconds."""
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
_LIMITED_COLUMN = {name: name for name in LATENCIES} | {"itl_s": "max_itl_s"}
"""SLO -> the request's figure that must not exceed it: an ITL limit holds for every gap of a request."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What ran: the model on `num_replicas` engines of `tensor_parallel` GPUs each."""

    model: ModelSpec
    gpu: GpuSpec
    tensor_parallel: int = 1
    num_replicas: int = 1
    kv_block_size: int = 16
    """Tokens a KV block holds."""


def summarize(
    log: RunLog,
    deployment: Deployment,
    slo: Mapping[str, float] | None = None,
    *,
    simulation: Mapping[str, float] | None = None,
    notes: Iterable[str] = (),
) -> Summary:
    """All figures of `summary.json`, in its order; `None` wherever there was nothing to measure.

    `slo` maps names of `LATENCIES` to their limits in seconds; `simulation` holds `cpu_s` and `wall_s` of the
    simulation alone. Makespan is the time from the first arrival to the end of the run. Throughput counts
    what was served: finished requests, tokens generated, and for the total also the prompts they answer.
    Busy fraction is the time in steps over makespan x replicas. A latency is measured over the requests that
    have it.
    """
    began = time.process_time()
    requests, steps = log.requests, log.steps
    latencies = request_latencies(log)
    finished = requests["state"] == RequestState.FINISHED
    num_requests, num_finished = len(finished), int(finished.sum())
    num_good = int(meets_slo(latencies, finished, slo or {}).sum())
    makespan_s = _makespan_s(log)
    replica_s = makespan_s * deployment.num_replicas
    answered = ~np.isnan(requests["first_token_at_s"])
    num_output_tokens = int(requests["num_generated_tokens"].sum())
    num_prompt_tokens = int(requests["num_prompt_tokens"][answered].sum())
    summary: Summary = {
        "num_requests": num_requests,
        "num_finished": num_finished,
        "num_rejected": int((requests["state"] == RequestState.REJECTED).sum()),
        "makespan_s": makespan_s,
        "request_throughput_per_s": _ratio(num_finished, makespan_s),
        "output_token_throughput_per_s": _ratio(num_output_tokens, makespan_s),
        "total_token_throughput_per_s": _ratio(num_prompt_tokens + num_output_tokens, makespan_s),
        "goodput_per_s": _ratio(num_good, makespan_s),
        "slo_attainment": _ratio(num_good, num_requests),
    }
    for name in LATENCIES:
        summary[name] = _itl_distribution(log) if name == "itl_s" else _distribution(latencies[name])
    summary |= {
        "num_steps": len(steps["duration_s"]),
        "num_preemptions": int(requests["num_preemptions"].sum()),
        "num_tokens_recomputed": int(log.num_tokens_recomputed),
        "busy_fraction": _ratio(float(steps["duration_s"].sum()), replica_s),
        "mfu": mfu(steps, deployment, replica_s),
        "mbu": mbu(steps, deployment, replica_s),
        "kv_utilization": _kv_utilization(steps, replica_s),
        "prefix_hit_rate": _ratio(log.num_prompt_tokens_hit, log.num_prompt_tokens_queried),
        "simulation": {"cpu_s": None, "wall_s": None, **(simulation or {}), "metrics_cpu_s": None},
        "notes": [*notes, *limit_notes(slo or {}, summary)],
        "kv_waste": _kv_waste(log, deployment.kv_block_size),
        "rejection_reasons": _counted(log.rejections.values()),
    }
    summary["simulation"]["metrics_cpu_s"] = time.process_time() - began
    return summary


def flatten(summary: Summary) -> dict[str, Any]:
    """A summary as one row: `{"ttft_s": {"p99": 1}}` gives `ttft_s.p99`; texts joined, timings left out."""
    row: dict[str, Any] = {}
    for name, value in summary.items():
        if name == "simulation":
            continue
        if name == "rejection_reasons":
            row[name] = "; ".join(f"{count} x {reason}" for reason, count in value.items()) or None
        elif name == "notes":
            row[name] = "; ".join(value) or None
        elif isinstance(value, dict):
            row |= {f"{name}.{part}": figure for part, figure in flatten(value).items()}
        else:
            row[name] = value
    return row


def request_latencies(log: RunLog) -> dict[str, Column]:
    """What each request felt, seconds, NaN where there is nothing to measure.

    `queue_s` first scheduled - arrival; `ttft_s` first token - arrival; `e2e_s` finish - arrival; `tpot_s`
    (E2E - TTFT) / (output tokens - 1), for two tokens or more (vLLM's definition); `max_itl_s` longest gap.
    """
    requests = log.requests
    arrival_s = requests["arrival_s"]
    ttft_s = requests["first_token_at_s"] - arrival_s
    e2e_s = requests["finished_at_s"] - arrival_s
    num_gaps = requests["num_output_tokens"] - 1
    tpot_s = np.full(len(arrival_s), np.nan)
    np.divide(e2e_s - ttft_s, num_gaps, out=tpot_s, where=num_gaps > 0)
    return {
        "queue_s": requests["first_scheduled_at_s"] - arrival_s,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "max_itl_s": requests["max_itl_s"],
        "e2e_s": e2e_s,
    }


def meets_slo(latencies: Mapping[str, Column], finished: Column, slo: Mapping[str, float]) -> Column:
    """Which requests finished within every limit of `slo`; with none, which finished.

    A request of one output token has no TPOT or ITL and so can't miss a limit on them.
    """
    good: Column = finished.copy()
    for name, limit_s in slo.items():
        good &= ~(latencies[_LIMITED_COLUMN[name]] > limit_s)
    return good


def weighted_quantiles(values: Column, counts: Column, quantiles: Column) -> Column:
    """`numpy.quantile(numpy.repeat(values, counts), quantiles)` to the last bit, with nothing repeated."""
    if (values[1:] < values[:-1]).any():
        order = np.argsort(values)
        values, counts = values[order], counts[order]
    num_up_to = np.cumsum(counts)
    position = (int(num_up_to[-1]) - 1) * quantiles
    below = np.floor(position)
    lower = values[np.searchsorted(num_up_to, below, side="right")]
    upper = values[np.searchsorted(num_up_to, np.ceil(position), side="right")]
    # numpy's own interpolation between two neighbours: its formula may change, the last bit follows it.
    between = zip(lower, upper, position - below, strict=True)
    return np.array([np.quantile(np.array([low, high]), weight) for low, high, weight in between])


def mfu(steps: Mapping[str, Column], deployment: Deployment, replica_s: float) -> float | None:
    """Model FLOP utilization: FLOP of all steps / (`replica_s` x GPUs a replica x peak FLOP/s at the dtype).

    FLOP as in PaLM (Chowdhery et al. 2022, appendix B), forward only: 2 for each matrix weight and token,
    4 for each (query token, key) pair, layer and query head element, and the logits sampled from. Tokens
    computed again after a preemption count, padding doesn't. `replica_s` is makespan x replicas, idle time
    included.
    """
    model, gpu = deployment.model, deployment.gpu
    num_tokens = int(steps["num_prefill_tokens"].sum()) + int(steps["num_decode_tokens"].sum())
    flop = (
        num_tokens * model.dense_flop_per_token
        + int(steps["num_logits"].sum()) * model.logits_flop
        + int(steps["num_attention_pairs"].sum()) * model.attention_flop_per_pair
    )
    return _ratio(flop, replica_s * deployment.tensor_parallel * gpu.peak_flop_per_s(model.dtype))


def mbu(steps: Mapping[str, Column], deployment: Deployment, replica_s: float) -> float | None:
    """Memory bandwidth utilization: bytes moved / (`replica_s` x GPUs of a replica x peak bytes/s).

    Bytes are all weights once a step, the KV entries attended to and those written (Databricks, "LLM
    Inference Performance Engineering", 2023: weights and KV cache over TPOT); activations are left out.
    `replica_s` is makespan x replicas, idle time included.
    """
    model, gpu = deployment.model, deployment.gpu
    num_written = int(steps["num_prefill_tokens"].sum()) + int(steps["num_decode_tokens"].sum())
    num_read = int(steps["num_context_tokens"].sum())
    num_bytes = (
        len(steps["duration_s"]) * model.weight_bytes + (num_read + num_written) * model.kv_bytes_per_token
    )
    return _ratio(num_bytes, replica_s * deployment.tensor_parallel * gpu.memory_bytes_per_s)


def _makespan_s(log: RunLog) -> float:
    arrival_s = log.requests["arrival_s"]
    return max(0.0, float(log.end_s) - float(arrival_s[0])) if len(arrival_s) else 0.0


def _distribution(values: Column) -> dict[str, float | None]:
    measured = values[~np.isnan(values)]
    if not len(measured):
        return _described(None, None, None)
    quantiles = np.quantile(measured, list(QUANTILES.values()))
    return _described(float(measured.mean()), quantiles, float(measured.max()))


def _itl_distribution(log: RunLog) -> dict[str, float | None]:
    num_gaps = int(log.gap_count.sum())
    if not num_gaps:
        return _described(None, None, None)
    quantiles = weighted_quantiles(log.gap_s, log.gap_count, np.array(list(QUANTILES.values())))
    longest_s = float(log.gap_s[log.gap_count > 0].max())
    return _described(_total_gap_s(log) / num_gaps, quantiles, longest_s)


def _total_gap_s(log: RunLog) -> float:
    """Sum of all gaps, correctly rounded: a request's gaps add up to its last token - its first.

    The instant of the last token is known of finished requests; if others have gaps too, gaps are summed.
    """
    requests = log.requests
    has_gaps = requests["num_generated_tokens"] > 1
    if np.isnan(requests["finished_at_s"][has_gaps]).any():
        distinct_s, place = np.unique(log.gap_s, return_inverse=True)
        return math.fsum((distinct_s * np.bincount(place, weights=log.gap_count)).tolist())
    first_s, last_s = requests["first_token_at_s"][has_gaps], requests["finished_at_s"][has_gaps]
    return math.fsum([*last_s.tolist(), *(-first_s).tolist()])


def _described(
    mean: float | None, quantiles: Column | None, longest: float | None
) -> dict[str, float | None]:
    values = [None] * len(QUANTILES) if quantiles is None else quantiles.tolist()
    return {"mean": mean, **dict(zip(QUANTILES, values, strict=True)), "max": longest}


def _kv_utilization(steps: Mapping[str, Column], replica_s: float) -> dict[str, float | None]:
    """Share of the KV blocks taken: over the makespan, idle time as none, and at its highest."""
    if not len(steps["duration_s"]):
        return {"mean": _ratio(0, replica_s), "max": 0.0 if replica_s else None}
    share = steps["kv_blocks_used"] / steps["kv_blocks_total"]
    highest = float(share.max())
    share *= steps["duration_s"]
    return {"mean": _ratio(float(share.sum()), replica_s), "max": highest}


def _kv_waste(log: RunLog, block_size: int) -> dict[str, float | None]:
    """Share of the KV slots taken that are empty at a step's end: by slot-seconds, and at its highest.

    `None` where requests shared blocks: tokens are counted by request, and a shared one fills no slot twice.
    """
    steps, duration_s = log.steps, log.steps["duration_s"]
    num_slots = steps["kv_blocks_used"] * block_size
    taken = num_slots > 0
    if log.num_prompt_tokens_hit or not taken.any():
        return {"mean": None, "max": None}
    # In place, in pieces and one after the other: columns of a long run are large.
    every = slice(None) if taken.all() else taken
    num_slots, duration_s = num_slots[every], duration_s[every]
    slot_s = float((num_slots * duration_s).sum())
    num_filled = steps["num_kv_tokens"][every]
    highest = max(
        float(((num_slots[piece] - num_filled[piece]) / num_slots[piece]).max())
        for piece in pieces(len(num_slots))
    )
    num_slots -= num_filled
    del num_filled
    return {"mean": _ratio(float((num_slots * duration_s).sum()), slot_s), "max": highest}


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
