"""Metrics: TTFT, TPOT, ITL, E2E, goodput, MFU, MBU and KV use, derived from the arrays of a `RunLog`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from cbsim.base.records import column_pieces, pieces
from cbsim.base.units import MEGA, S_PER_HOUR
from cbsim.results.hand_overs import transfers
from cbsim.results.measured import Rows
from cbsim.results.run_log import HANDED_OVER, RESUMED, WINDOW_STEP_COLUMNS, Column, RunLog, distinct_gaps
from cbsim.results.run_notes import limit_notes
from cbsim.results.slo import Slo
from cbsim.results.step_work import COLUMNS, NO_WORK, StepWork
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload.request import RequestState

MANTISSA_BITS = 10
"""Values fall into bins by their exponents and so many leading bits of their mantissas."""
FIRST_EXPONENT, NUM_EXPONENTS = -20, 32
"""Of two: smaller values fall into the first bin, larger ones into the last."""
NUM_BINS = NUM_EXPONENTS << MANTISSA_BITS
ROWS_KEPT = 4_000_000
"""Gaps held at a time while quantiles are found."""


def weighted_quantiles(pieces: Iterable[tuple[Column, Column]], quantiles: Column) -> Column:
    """`numpy.quantile(numpy.repeat(values, counts), quantiles)` to the last bit.

    `pieces` are arrays of values >= 0 and of how often each occurs (integers), to be gone through several
    times: a first pass counts by bins, further ones keep the bins that hold the ranks wanted, as many bins at
    a time as hold `ROWS_KEPT` values.
    """
    num_in, num_rows = np.zeros((2, NUM_BINS))
    for values, counts in pieces:
        bins = _bins(values)
        num_in += np.bincount(bins, counts, NUM_BINS)
        num_rows += np.bincount(bins, minlength=NUM_BINS)
    num_up_to = np.cumsum(num_in).astype(np.int64)
    position = (int(num_up_to[-1]) - 1) * quantiles
    ranks = np.unique([np.floor(position), np.ceil(position)]).astype(np.int64)
    bins_of = np.searchsorted(num_up_to, ranks, side="right")
    found = np.empty(len(ranks))
    wanted, place = np.unique(bins_of, return_inverse=True)
    group = (np.cumsum(num_rows[wanted]) // ROWS_KEPT)[place]
    for rows in (np.flatnonzero(group == number) for number in np.unique(group)):
        is_wanted = np.zeros(NUM_BINS, dtype=bool)
        is_wanted[bins_of[rows]] = True
        kept = []
        for values, counts in pieces:
            is_kept = is_wanted[_bins(values)]
            kept.append((values[is_kept], counts[is_kept]))
        values, counts = (np.concatenate(columns) for columns in zip(*kept, strict=True))
        order = np.argsort(values)
        num_kept_up_to = np.cumsum(counts[order], dtype=np.int64)
        # Values in bins that were not kept lie before those of later bins.
        num_left_out = np.cumsum(np.where(is_wanted, 0, num_in)).astype(np.int64)
        among_kept = ranks[rows] - num_left_out[bins_of[rows]]
        found[rows] = values[order[np.searchsorted(num_kept_up_to, among_kept, side="right")]]
    low, high = (found[np.searchsorted(ranks, rank)] for rank in (np.floor(position), np.ceil(position)))
    share = position - np.floor(position)
    # From the nearer of the two, as numpy does: otherwise the last bit differs.
    between: Column = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
    return between


def _bins(values: Column) -> Column:
    leading = (values + 0.0).view(np.int64) >> (52 - MANTISSA_BITS)
    return np.clip(leading - ((1023 + FIRST_EXPONENT) << MANTISSA_BITS), 0, NUM_BINS - 1, out=leading)


Summary = dict[str, Any]
"""What `summary.json` holds: plain numbers, texts, lists and mappings; `None` where nothing was measured."""

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
"""The summary figures that are distributions over requests (or, for `itl_s`, over gaps), seconds."""
DEFAULT_POOL = "default"
"""The pool of all replicas, where an experiment names none."""
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
COST = "cost_per_million_tokens"
"""Of the GPUs, idle ones included, for a million output tokens; in summaries where the GPU has a price."""
_NOT_MEASURED: dict[str, float | None] = dict.fromkeys(("mean", *QUANTILES, "max"))
_LIMITED_COLUMN = {name: name for name in LATENCIES} | {"itl_s": "max_itl_s"}
"""SLO -> the request's figure that must not exceed it: an ITL limit holds for every gap of a request."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What ran: the model on `num_replicas` replicas of `num_gpus` GPUs each."""

    model: ModelSpec
    gpu: GpuSpec
    num_gpus: int = 1
    num_replicas: float = 1
    """On average over time, where replicas come and go."""
    kv_block_size: int = 16
    """Tokens a KV block holds."""
    num_stages: int = 1
    """Stages of each replica's pipeline, in which as many steps may be under way at once."""
    kv_cache_tokens: int | None = None
    """Tokens the KV cache of a replica holds."""
    pool: str = DEFAULT_POOL
    others: tuple[Deployment, ...] = ()
    """Further pools of replicas of the model."""

    @property
    def pools(self) -> tuple[Deployment, ...]:
        """All pools, this one first."""
        return (self, *self.others)

    def as_paid(self, log: RunLog, from_s: float, makespan_s: float) -> Deployment:
        """With the mean number of replicas that were there in the `makespan_s` seconds from an instant on."""
        assert log.pool_of is not None
        num_by_pool = np.bincount(log.pool_of, log.paid_s(from_s)) / makespan_s
        first, *others = (
            replace(pool, num_replicas=_whole(number), others=())
            for pool, number in zip(self.pools, num_by_pool, strict=True)
        )
        return replace(first, others=tuple(others))

    @property
    def num_replicas_in_all(self) -> float:
        """Of all pools."""
        return sum(pool.num_replicas for pool in self.pools)

    @property
    def num_gpus_in_all(self) -> float:
        """Of this pool."""
        return self.num_replicas * self.num_gpus

    @property
    def flop_per_s(self) -> float:
        """Peak of all pools' GPUs, at the dtype of activations."""
        dtype = self.model.dtype
        return sum(pool.num_gpus_in_all * pool.gpu.peak_flop_per_s(dtype) for pool in self.pools)

    @property
    def memory_bytes_per_s(self) -> float:
        """Bandwidth of all pools' GPUs' memories."""
        return sum(pool.num_gpus_in_all * pool.gpu.memory_bytes_per_s for pool in self.pools)


def summarize(
    log: RunLog,
    deployment: Deployment,
    slo: Slo | Mapping[str, Any] | None = None,
    *,
    simulation: Mapping[str, float] | None = None,
    notes: Iterable[str] = (),
) -> Summary:
    """All figures of `summary.json`, in its order; `None` wherever there was nothing to measure.

    `slo` is one, or plain data as `Slo.of` reads it: without limits on each request there is no goodput and
    no attainment. `simulation` holds `cpu_s` and `wall_s` of the simulation alone. Makespan is the time from
    the first arrival to the end of the run. Throughput counts what was served: finished requests, tokens
    generated, and for the total also the prompts they answer. Busy fraction is the time in steps over
    makespan x replicas. A latency is measured over the requests that have it.
    """
    began = time.process_time()
    requests = log.requests
    totals = StepTotals.of(log.steps, deployment)
    latencies = request_latencies(log)
    finished = requests["state"] == RequestState.FINISHED
    num_requests, num_finished = len(finished), int(finished.sum())
    promised = Slo.of(slo)
    num_good = int(meets_slo(latencies, finished, promised.own).sum())
    makespan_s = max(0.0, float(log.end_s) - float(requests["arrival_s"][0])) if num_requests else 0.0
    if log.changes is not None and makespan_s:
        deployment = deployment.as_paid(log, float(requests["arrival_s"][0]), makespan_s)
    answered = ~np.isnan(requests["first_token_at_s"])
    num_output_tokens = int(requests["num_generated_tokens"].sum())
    num_prompt_tokens = int(requests["num_prompt_tokens"][answered].sum())
    num_tokens = requests["num_prompt_tokens"] + requests["num_output_tokens"]
    summary: Summary = {
        "num_requests": num_requests,
        "num_finished": num_finished,
        "num_rejected": int((requests["state"] == RequestState.REJECTED).sum()),
        "makespan_s": makespan_s,
        "request_throughput_per_s": _ratio(num_finished, makespan_s),
        "output_token_throughput_per_s": _ratio(num_output_tokens, makespan_s),
        "total_token_throughput_per_s": _ratio(num_prompt_tokens + num_output_tokens, makespan_s),
        "goodput_per_s": _ratio(num_good, makespan_s) if promised.own else None,
        "slo_attainment": _ratio(num_good, num_requests) if promised.own else None,
        "slo_met": None,
    }
    summary |= distributions(log, latencies)
    summary |= {
        "num_steps": totals.work.num_steps,
        "num_preemptions": int(requests["num_preemptions"].sum()),
        "num_tokens_recomputed": log.num_tokens_recomputed,
        **_use(totals, deployment, makespan_s),
        "prefix_hit_rate": _ratio(log.num_prompt_tokens_hit, log.num_prompt_tokens_queried),
        "simulation": {"cpu_s": None, "wall_s": None, **(simulation or {}), "metrics_cpu_s": None},
        "notes": [*notes, *limit_notes(promised, summary)],
        "kv_waste": _kv_waste(log, totals),
        "rejection_reasons": dict(Counter(sorted(log.rejections.values())).most_common()),
        "kv_cache_tokens": {pool.pool: pool.kv_cache_tokens for pool in deployment.pools},
        "longest_context_tokens": deployment.model.max_model_len,
        "longest_request_tokens": int(num_tokens.max()) if num_requests else None,
    }
    if all(pool.gpu.price_per_hour is not None for pool in deployment.pools):
        prices = [pool.num_gpus_in_all * (pool.gpu.price_per_hour or 0) for pool in deployment.pools]
        hours = gpu_hours_per_million_tokens(1, summary["output_token_throughput_per_s"])
        summary[COST] = None if hours is None else hours * sum(prices)
    if deployment.others:
        summary["pools"] = _pool_figures(log, deployment, makespan_s)
    if log.visits is not None and (moved := _transfer_figures(log, deployment)):
        summary["kv_transfers"] = moved
    if summary["num_preemptions"] and log.num_prompt_tokens_queried:
        is_resumed = log.events["event"] == RESUMED
        summary["num_tokens_found_again"] = int(log.events["num_tokens"][is_resumed].sum())
    if num_failed := int((requests["state"] == RequestState.FAILED).sum()):
        summary["num_failed"] = num_failed
    if log.num_tokens_from_tiers:
        summary["num_tokens_from_tiers"] = dict(log.num_tokens_from_tiers)
    summary |= log.losses
    if log.changes is not None:
        summary["mean_replicas"] = {pool.pool: pool.num_replicas for pool in deployment.pools}
    if log.has_drafts:
        num_drafts, num_accepted = int(log.steps["num_drafts"].sum()), int(log.steps["num_accepted"].sum())
        summary |= {
            "num_drafts": num_drafts,
            "num_accepted_drafts": num_accepted,
            "draft_acceptance_rate": _ratio(num_accepted, num_drafts),
            "tokens_per_step_and_request": _ratio(num_output_tokens, totals.work.num_logits - num_drafts),
        }
    summary["slo_met"] = promised.met(flatten(summary))
    summary["simulation"]["metrics_cpu_s"] = time.process_time() - began
    return summary


def _whole(number: float) -> float:
    """A mean without what rounding leaves of a whole number."""
    nearest = round(number)
    return nearest if math.isclose(number, nearest, rel_tol=1e-9) else float(number)


def _pool_figures(log: RunLog, deployment: Deployment, makespan_s: float) -> dict[str, Summary]:
    """What the replicas of each pool did; visits are requests that came to one of them."""
    of_visit = log.pools_of((log.visits or log.requests)["replica"])
    figures = {}
    for place, pool in enumerate(deployment.pools):
        alone = replace(pool, others=())
        totals = StepTotals.of(PoolSteps(log, place), alone)
        figures[pool.pool] = {
            "num_replicas": pool.num_replicas,
            "num_gpus": pool.num_gpus_in_all,
            "num_visits": int((of_visit == place).sum()),
            "num_steps": totals.work.num_steps,
            **_use(totals, alone, makespan_s),
        }
    return figures


class PoolSteps(Rows):
    """The steps of one pool's replicas, also given many rows at a time."""

    def __init__(self, log: RunLog, place: int) -> None:
        super().__init__(log.steps, slice(0))
        self._log, self._place = log, place

    def __getitem__(self, name: str) -> Column:
        is_here = self._log.pools_of(self._columns["replica"]) == self._place
        column: Column = self._columns[name][is_here]
        return column

    def pieces(self, *names: str) -> Iterator[tuple[Column, ...]]:
        """As `column_pieces` gives them."""
        for replica, *columns in column_pieces(self._columns, ("replica", *names)):
            is_here = self._log.pools_of(replica) == self._place
            yield tuple(column[is_here] for column in columns)


def _transfer_figures(log: RunLog, deployment: Deployment) -> Summary:
    """KV caches brought from replica to replica: number, bytes, seconds on their way; empty if none was."""
    events = log.events
    if HANDED_OVER not in events["event"]:
        return {}
    seconds, num_tokens = transfers(events)
    return {
        "num": len(seconds),
        "num_bytes": int(num_tokens.sum()) * deployment.model.kv_bytes_per_token,
        "transfer_s": distribution(seconds),
    }


def gpu_hours_per_million_tokens(num_gpus: float, output_tokens_per_s: float | None) -> float | None:
    """Hours of single GPUs that go by for each million output tokens, idle ones included; `None` of none."""
    return num_gpus / output_tokens_per_s * MEGA / S_PER_HOUR if output_tokens_per_s else None


def flatten(summary: Summary) -> dict[str, Any]:
    """A summary as one row: `{"ttft_s": {"p99": 1}}` gives `ttft_s.p99`; texts joined.

    The simulation's own times and intervals are left out.
    """
    row: dict[str, Any] = {}
    for name, value in summary.items():
        if name in ("simulation", "interval"):
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
    TTFT and E2E have the front end's time on top.
    """
    requests = log.requests
    arrival_s = requests["arrival_s"]
    ttft_s = requests["first_token_at_s"] - arrival_s + log.front_end_s
    e2e_s = requests["finished_at_s"] - arrival_s + log.front_end_s
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
    """Which requests finished within each of their own limits, `slo`, seconds; with none, which finished.

    A request of one output token has no TPOT or ITL and so can't miss a limit on them.
    """
    good: Column = finished.copy()
    for name, limit_s in slo.items():
        good &= ~(latencies[_LIMITED_COLUMN[name]] > limit_s)
    return good


@dataclass(slots=True)
class StepTotals:
    """Sums over all steps of a run."""

    busy_s: float = 0.0
    work: StepWork = NO_WORK
    kv_share_s: float = 0.0
    """Share of the KV blocks taken, times the step's seconds."""
    max_kv_share: float = 0.0
    slot_s: float = 0.0
    """Tokens that fit into the blocks taken, times the step's seconds."""
    empty_slot_s: float = 0.0
    max_empty_share: float | None = None
    """Highest share of those that were empty at a step's end."""

    @classmethod
    def of(cls, steps: Mapping[str, Column], deployment: Deployment) -> StepTotals:
        """Added up many steps at a time: a column of all steps of a long run takes hundreds of megabytes.

        Steps of a pipeline overlap: each counts for the time in which none before it runs.
        """
        totals = cls()
        names = (*SUMMED, *(name for name in WINDOW_STEP_COLUMNS if name in steps))
        if deployment.num_stages > 1:
            whole = {name: steps[name] for name in names}
            if len(steps["duration_s"]):
                totals._add(deployment, whole | {"duration_s": _not_overlapped_s(steps)})
            return totals
        for columns in column_pieces(steps, names):
            if len(columns[0]):
                totals._add(deployment, dict(zip(names, columns, strict=True)))
        return totals

    def _add(self, deployment: Deployment, steps: Mapping[str, Column]) -> None:
        duration_s, blocks_used = steps["duration_s"], steps["kv_blocks_used"]
        self.busy_s += float(duration_s.sum())
        self.work = self.work.plus(StepWork.of(steps, deployment.model).sums())
        share = blocks_used / steps["kv_blocks_total"]
        self.kv_share_s += float((share * duration_s).sum())
        self.max_kv_share = max(self.max_kv_share, float(share.max()))
        taken = blocks_used > 0
        num_slots, seconds = blocks_used[taken] * np.int64(deployment.kv_block_size), duration_s[taken]
        if len(num_slots):
            num_empty = num_slots - steps["num_kv_tokens"][taken]
            self.slot_s += float((num_slots * seconds).sum())
            self.empty_slot_s += float((num_empty * seconds).sum())
            highest = float((num_empty / num_slots).max())
            self.max_empty_share = max(self.max_empty_share or highest, highest)


SUMMED = (*COLUMNS, "duration_s", "kv_blocks_used", "kv_blocks_total", "num_kv_tokens")


def _not_overlapped_s(steps: Mapping[str, Column]) -> Column:
    """Of each step the seconds in which no step before it runs on its replica."""
    alone_s, replica = steps["duration_s"].copy(), steps["replica"]
    for number in np.unique(replica):
        rows = np.flatnonzero(replica == number)
        start_s = steps["start_s"][rows]
        end_s = start_s + steps["duration_s"][rows]
        free_s = np.concatenate([[-np.inf], np.maximum.accumulate(end_s)[:-1]])
        alone_s[rows] = np.maximum(0.0, end_s - np.maximum(start_s, free_s))
    return alone_s


def _use(totals: StepTotals, deployment: Deployment, makespan_s: float) -> Summary:
    """How busy replicas were, idle time included.

    MFU, model FLOP utilization: `StepWork.flop` of all steps / (makespan x peak FLOP/s of all GPUs at the
    dtype of activations); tokens computed again after a preemption count, padding doesn't. MBU, memory
    bandwidth utilization: `StepWork.num_bytes` of all steps / (makespan x peak bytes/s of all GPUs); weights
    and KV cache alone count, as in Databricks, "LLM Inference Performance Engineering", 2023. KV use: share
    of the KV blocks taken, over the makespan and at its highest.
    """
    work, model = totals.work, deployment.model
    replica_s = makespan_s * deployment.num_replicas_in_all
    highest = totals.max_kv_share if work.num_steps or replica_s else None
    return {
        "busy_fraction": _ratio(totals.busy_s, replica_s),
        "mfu": _ratio(work.flop(model), makespan_s * deployment.flop_per_s),
        "mbu": _ratio(work.num_bytes(model), makespan_s * deployment.memory_bytes_per_s),
        "kv_utilization": {"mean": _ratio(totals.kv_share_s, replica_s), "max": highest},
    }


def _kv_waste(log: RunLog, totals: StepTotals) -> dict[str, float | None]:
    """Share of the KV slots taken that are empty at a step's end: by slot-seconds, and at its highest.

    `None` where requests shared blocks: tokens are counted by request, and a shared one fills no slot twice.
    """
    if log.num_prompt_tokens_hit or totals.max_empty_share is None:
        return {"mean": None, "max": None}
    return {"mean": _ratio(totals.empty_slot_s, totals.slot_s), "max": totals.max_empty_share}


def distributions(log: RunLog, latencies: Mapping[str, Column]) -> dict[str, dict[str, float | None]]:
    """Mean, quantiles and maximum of each of `LATENCIES`, given those of the requests, seconds."""
    return {
        name: _itl_distribution(log) if name == "itl_s" else distribution(latencies[name])
        for name in LATENCIES
    }


def distribution(values: Column) -> dict[str, float | None]:
    """Mean, quantiles and maximum of values, NaN left out; `None` each if there are no others."""
    measured = values[~np.isnan(values)]
    if not len(measured):
        return _NOT_MEASURED.copy()
    quantiles = np.quantile(measured, list(QUANTILES.values()))
    return _described(float(measured.mean()), quantiles, float(measured.max()))


def _itl_distribution(log: RunLog) -> dict[str, float | None]:
    num_gaps, longest_s = 0, 0.0
    for gap_s, count in log.gaps:
        num_gaps, longest_s = num_gaps + int(count.sum()), max(longest_s, float(gap_s.max(initial=0.0)))
    if not num_gaps:
        return _NOT_MEASURED.copy()
    quantiles = weighted_quantiles(log.gaps, np.array(list(QUANTILES.values())))
    return _described(_total_gap_s(log) / num_gaps, quantiles, longest_s)


def _total_gap_s(log: RunLog) -> float:
    """Sum of all gaps, correctly rounded: a request's gaps add up to its last token - its first.

    The instant of the last token is known of finished requests; if others have gaps too, gaps are summed.
    """
    requests = log.requests
    has_gaps = requests["num_generated_tokens"] > 1
    if np.isnan(requests["finished_at_s"][has_gaps]).any():
        distinct_s, count = distinct_gaps(log.gaps)
        return math.fsum((distinct_s * count).tolist())
    # A few at a time: Python's numbers take four times the memory of numpy's.
    ends = (
        (sign * requests[name][rows][has_gaps[rows]]).tolist()
        for name, sign in (("finished_at_s", 1), ("first_token_at_s", -1))
        for rows in pieces(len(has_gaps))
    )
    return math.fsum(chain.from_iterable(ends))


def _described(mean: float, quantiles: Column, longest: float) -> dict[str, float | None]:
    return {"mean": mean, **dict(zip(QUANTILES, quantiles.tolist(), strict=True)), "max": longest}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
