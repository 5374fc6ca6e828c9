"""Parts: what each request did or waited for in every tick from its arrival to its first and last token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cbsim.core.record import Record
from cbsim.cost.cost_model import CostModel
from cbsim.results.hand_overs import HandOvers
from cbsim.results.latency.charges import Charges, Waits
from cbsim.results.latency.spans import Spans, StepTimes, Ticks, of_prefills, spans_of
from cbsim.results.latency.windows import Stretch, Visits, Windows
from cbsim.results.run_log import Column
from cbsim.workload.request import RequestState

_NAMES = (
    *("queue", "no_slot", "no_kv", "prefill", "recompute", "others_prefill"),
    *("decode", "skipped", "preempted", "swap", "host"),
)
PARTS = {name: f"part_{name}_s" for name in _NAMES}
"""Name of a part of E2E -> its column."""
TTFT_PARTS = {name: f"ttft_part_{name}_s" for name in _NAMES if name != "decode"}
"""Name of a part of TTFT -> its column. There is no `decode`: before the first token nothing is decoded."""
HAND_OVER_PARTS = {name: f"part_{name}_s" for name in ("handed_over", "kv_transfer", "decode_queue")}
"""Further parts of E2E, of runs in which one replica computes a prompt and another one decodes."""
TAIL = 0.01
"""The share of requests that are the slowest."""
Means = dict[str, dict[str, dict[str, float | None]]]


def request_parts(
    requests: Mapping[str, Column],
    events: Mapping[str, Column],
    record: Record,
    costs: Sequence[CostModel],
    *,
    requests_of: Column | None = None,
    is_staged: bool = False,
    has_window: bool = False,
) -> dict[str, Column]:
    """The columns of `PARTS` and `TTFT_PARTS` for the requests of a run, seconds; NaN where nothing ended.

    `costs` price the steps of each replica; `requests_of` is the request that each row of the core is a visit
    of, if it is not of itself; `has_window`: whether some layers of the model have one. Where requests are
    handed over (`is_staged`) there are the columns of `HAND_OVER_PARTS` too. All sums are of whole ticks, so
    that the parts of a request add up to its latency, in which arrival and end are rounded to a tick.
    """
    arrival_s = requests["arrival_s"]
    over = HandOvers.of(len(arrival_s), events) if is_staged else None
    of_e2e = PARTS if over is None else PARTS | HAND_OVER_PARTS
    # Memory that nothing is written to is not taken: most parts of most runs are 0.
    columns = {name: np.zeros(len(arrival_s)) for name in (*of_e2e.values(), *TTFT_PARTS.values())}
    has_e2e, has_ttft = np.zeros((2, len(arrival_s)), dtype=bool)
    origin_s = math.floor(arrival_s[0]) if len(arrival_s) else 0.0
    ends_s = (start_s + length_s for start_s, length_s in record.pieces("steps", "start_s", "duration_s"))
    ticks = Ticks(max((float(end_s.max()) for end_s in ends_s), default=0.0) - origin_s)
    visits = Visits(len(arrival_s), None if over is None else over.receiver)
    came_s = arrival_s if over is None else np.concatenate([arrival_s, over.loaded_s])
    num_prompt_tokens = np.resize(requests["num_prompt_tokens"], len(visits))
    kinds = list({id(cost): cost for cost in costs})
    groups = np.array([kinds.index(id(cost)) for cost in costs])
    windows = Windows(record, groups, visits, requests_of, has_window=has_window)
    waits = Waits(len(costs), came_s, windows.replica_of)
    for stretch in windows:
        times = StepTimes(stretch, origin_s, ticks)
        waits.add(stretch, times)
        charges = Charges(stretch, costs[stretch.replicas[0].number], times)
        spans = spans_of(stretch, times, charges.chunks, num_prompt_tokens)
        is_finished = requests["state"][visits.requests(spans.visit)] == RequestState.FINISHED
        has_first = _up_to_first_token(spans, stretch) & ~visits.take_over(spans.visit)
        ledger = Ledger(charges, times, waits, came_s)
        for names, chosen, has in ((of_e2e, is_finished, has_e2e), (TTFT_PARTS, has_first, has_ttft)):
            visit, parts = ledger.split(spans.only(chosen))
            request, is_further = visits.requests(visit), visits.take_over(visit)
            has[request] = True
            if over is not None:
                parts = _with_waits(over, request, is_further, parts, times)
            # Of a request that is handed over each replica adds its share.
            for rows in (np.flatnonzero(is_further == kind) for kind in (False, True)):
                for part, name in names.items():
                    if parts[part][rows].any():
                        columns[name][request[rows]] += ticks.seconds(parts[part][rows])
    for names, has in ((of_e2e, has_e2e), (TTFT_PARTS, has_ttft)):
        for name in names.values() if not has.all() else ():
            columns[name][~has] = np.nan
    return columns


def _with_waits(
    over: HandOvers, request: Column, is_here: Column, parts: dict[str, Column], times: StepTimes
) -> dict[str, Column]:
    """Parts of visits, ticks, with the waits of those to replicas that took requests over (`is_here`)."""
    taken, waits = request[is_here], ("queue", "no_slot", "no_kv")
    instants = [times.at(at_s[taken]) for at_s in (over.handed_over_s, over.load_started_s, over.loaded_s)]
    spent = dict(zip(HAND_OVER_PARTS, np.diff(instants, axis=0), strict=False))
    spent["decode_queue"] = sum(parts[name][is_here] for name in waits)
    parts = parts | {name: np.where(is_here, 0, parts[name]) for name in waits}
    for name, ticks in spent.items():
        parts[name] = np.zeros(len(request), dtype=np.int64)
        parts[name][is_here] = ticks
    return parts


def _up_to_first_token(spans: Spans, stretch: Stretch) -> Column:
    """The spans of each visit until its first token came out; none where it never did."""
    emits = of_prefills(spans, stretch.prefills, "emits") > 0
    starts = _starts(spans.visit)
    if not len(starts):
        return emits
    num_emitted: Column = np.cumsum(emits) - emits
    of_visit = np.cumsum(np.isin(np.arange(len(emits)), starts)) - 1
    has_token = np.add.reduceat(emits, starts, dtype=np.int64) > 0
    until: Column = (num_emitted == num_emitted[starts][of_visit]) & has_token[of_visit]
    return until


def _starts(visit: Column) -> Column:
    """Where the spans of each visit begin."""
    if not len(visit):
        return np.empty(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(visit[1:] != visit[:-1]) + 1])


class Ledger(NamedTuple):
    """Adds up what spans are charged with, and says what the time between them was."""

    charges: Charges
    times: StepTimes
    waits: Waits
    came_s: Column
    """By visit, seconds."""

    def split(self, spans: Spans) -> tuple[Column, dict[str, Column]]:
        """Visits, and the ticks of each part from their beginnings to the ends of their last spans."""
        times, starts = self.times, _starts(spans.visit)
        visit = spans.visit[starts]
        came = times.at(self.came_s[visit])
        ends = np.append(starts, len(spans.visit))[1:] - 1
        charged = self.charges.of(spans)
        sums = {
            name: np.add.reduceat(ticks, starts) if len(starts) else ticks for name, ticks in charged.items()
        }
        running, others = self._periods(spans, starts, ends)
        wait = times.start(spans.first[starts]) - came
        whole = times.end(spans.last[ends]) - came
        no_slot, no_kv = self.waits.until_first_step[:, visit]
        in_steps, beside = sums.pop("in_steps"), sums.pop("beside_chunks")
        passed_over = others - beside
        return visit, {
            "queue": wait - no_slot - no_kv,
            "no_slot": no_slot,
            "no_kv": no_kv,
            **sums,
            "others_prefill": sums["others_prefill"] + passed_over,
            "skipped": running - in_steps - passed_over,
            "preempted": whole - wait - running,
        }

    def _periods(self, spans: Spans, starts: Column, ends: Column) -> tuple[Column, Column]:
        """Ticks that each visit was running, and those of steps with chunks meanwhile, its own or not."""
        if not len(starts):
            return starts, starts
        stop = spans.stop.copy()
        stop[ends] = spans.last[ends]
        begin = np.flatnonzero(spans.begins)
        first, last = spans.first[begin], stop[np.append(begin[1:], len(stop)) - 1]
        place = np.searchsorted(begin, starts)
        running = np.add.reduceat(self.times.end(last) - self.times.start(first), place)
        return running, np.add.reduceat(self.charges.chunks.over(first, last)[0], place)


def mean_parts(latencies: Mapping[str, Column], parts: Mapping[str, Column]) -> Means:
    """`{"ttft_s": {"mean": {"queue_s": ...}, "slowest": ...}, "e2e_s": ...}`: seconds by part.

    `mean` is over the requests that have the latency, `slowest` over the slowest hundredth of them, rounded
    up; `None` where there are none. `latencies` has `ttft_s` and `e2e_s`.
    """
    means: Means = {}
    for latency, names in (("ttft_s", TTFT_PARTS), ("e2e_s", PARTS | HAND_OVER_PARTS)):
        latency_s = latencies[latency]
        rows = {"mean": np.flatnonzero(~np.isnan(latency_s)), "slowest": slowest(latency_s)}
        means[latency] = {
            group: {
                f"{name}_s": float(parts[each][of].mean()) if len(of) else None
                for name, each in names.items()
                if each in parts
            }
            for group, of in rows.items()
        }
    return means


def slowest(latency_s: Column, share: float = TAIL) -> Column:
    """The rows of the slowest requests, a share rounded up, the slowest first and equals by arrival."""
    has = np.flatnonzero(~np.isnan(latency_s))
    order = np.argsort(-latency_s[has], kind="stable")
    # 0.01 is a little more than a hundredth.
    return has[order[: math.ceil(round(share * len(has), 6))]]
