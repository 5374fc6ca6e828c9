"""Parts: what each request did or waited for in every tick from its arrival to its first and last token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cbsim.cost.cost_model import CostModel
from cbsim.results.latency.charges import Charges
from cbsim.results.latency.spans import Spans, preemptions_of, spans_of
from cbsim.results.latency.step_times import StepTimes
from cbsim.results.latency.ticks import Ticks
from cbsim.results.run_log import Column, Slices
from cbsim.workload.request import RequestState

_NAMES = (
    *("queue", "no_slot", "no_kv", "prefill", "recompute", "others_prefill"),
    *("decode", "skipped", "preempted", "swap", "host"),
)
PARTS = {name: f"part_{name}_s" for name in _NAMES}
"""Name of a part of E2E -> its column."""
TTFT_PARTS = {name: f"ttft_part_{name}_s" for name in _NAMES if name != "decode"}
"""Name of a part of TTFT -> its column. There is no `decode`: before the first token nothing is decoded."""


class Replica(NamedTuple):
    """The record of one replica, and what its steps are priced by."""

    number: int
    steps: Mapping[str, Column]
    slices: Slices
    cost: CostModel


def request_parts(
    requests: Mapping[str, Column], events: Mapping[str, Column], replicas: Sequence[Replica]
) -> dict[str, Column]:
    """The columns of `PARTS` and `TTFT_PARTS` for the requests of a run, seconds; NaN where nothing ended.

    All sums are of whole ticks, so that the parts of a request add up to its latency, in which arrival and
    end are rounded to a tick.
    """
    arrival_s = requests["arrival_s"]
    columns = {name: np.full(len(arrival_s), np.nan) for name in (*PARTS.values(), *TTFT_PARTS.values())}
    origin_s = math.floor(arrival_s[0]) if len(arrival_s) else 0.0
    was_preempted = bool(requests["num_preemptions"].any())
    ticks = Ticks(max((_end_s(replica.steps) for replica in replicas), default=0.0) - origin_s)
    for replica in replicas:
        times = StepTimes(replica.steps, origin_s, ticks)
        charges = Charges(replica.steps, replica.slices, replica.cost, times)
        preemptions = preemptions_of(events, replica.number, times) if was_preempted else None
        spans = spans_of(replica.slices, times, charges.chunks_alone, preemptions)
        ledger = Ledger(charges, times, arrival_s)
        is_finished = requests["state"][spans.request] == RequestState.FINISHED
        _enter(columns, PARTS, ticks, ledger.split(spans.only(is_finished)))
        _enter(
            columns, TTFT_PARTS, ticks, ledger.split(spans.only(_up_to_first_token(spans, replica.slices)))
        )
    return columns


def _end_s(steps: Mapping[str, Column]) -> float:
    """When the last step of a replica ends, seconds; 0 without steps."""
    start_s = steps["start_s"]
    return float(start_s[-1] + steps["duration_s"][-1]) if len(start_s) else 0.0


def _enter(
    columns: dict[str, Column],
    names: Mapping[str, str],
    ticks: Ticks,
    split: tuple[Column, dict[str, Column]],
) -> None:
    request, parts = split
    for part, name in names.items():
        columns[name][request] = ticks.seconds(parts[part])


def _up_to_first_token(spans: Spans, slices: Slices) -> Column:
    """The spans of each request until its first token came out; none where it never did."""
    emits = (spans.prefill >= 0) & (slices.prefills["emits"][spans.prefill] > 0)
    starts = _starts(spans.request)
    if not len(starts):
        return emits
    num_emitted: Column = np.cumsum(emits) - emits
    of_request = np.cumsum(np.isin(np.arange(len(emits)), starts)) - 1
    has_token = np.add.reduceat(emits, starts, dtype=np.int64) > 0
    until: Column = (num_emitted == num_emitted[starts][of_request]) & has_token[of_request]
    return until


def _starts(request: Column) -> Column:
    """Where the spans of each request begin."""
    if not len(request):
        return np.empty(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(request[1:] != request[:-1]) + 1])


class Ledger:
    """Adds up what spans are charged with, and says what the time between them was."""

    def __init__(self, charges: Charges, times: StepTimes, arrival_s: Column) -> None:
        self._charges = charges
        self._times = times
        self._arrival_s = arrival_s

    def split(self, spans: Spans) -> tuple[Column, dict[str, Column]]:
        """Requests, and the ticks of each part from their arrivals to the ends of their last spans."""
        times, starts = self._times, _starts(spans.request)
        request = spans.request[starts]
        ends = np.append(starts, len(spans.request))[1:] - 1
        charged = self._charges.of(spans)
        sums = {
            name: np.add.reduceat(ticks, starts) if len(starts) else ticks for name, ticks in charged.items()
        }
        running, others = self._periods(spans, starts, ends)
        wait = times.start(spans.first[starts]) - times.at(self._arrival_s[request])
        whole = times.end(spans.last[ends]) - times.at(self._arrival_s[request])
        no_slot, no_kv = self._charges.waits(self._arrival_s[request], spans.first[starts])
        in_steps, beside = sums.pop("in_steps"), sums.pop("beside_chunks")
        passed_over = others - beside
        return request, {
            "queue": wait - no_slot - no_kv,
            "no_slot": no_slot,
            "no_kv": no_kv,
            **sums,
            "others_prefill": sums["others_prefill"] + passed_over,
            "skipped": running - in_steps - passed_over,
            "preempted": whole - wait - running,
        }

    def _periods(self, spans: Spans, starts: Column, ends: Column) -> tuple[Column, Column]:
        """Ticks that each request was running, and those of steps with chunks meanwhile, its own or not."""
        if not len(starts):
            return starts, starts
        stop = spans.stop.copy()
        stop[ends] = spans.last[ends]
        begin = np.flatnonzero(spans.begins)
        first, last = spans.first[begin], stop[np.append(begin[1:], len(stop)) - 1]
        place = np.searchsorted(begin, starts)
        running = np.add.reduceat(self._times.end(last) - self._times.start(first), place)
        with_chunks = np.add.reduceat(self._charges.steps_with_chunks(first, last), place)
        return running, with_chunks
