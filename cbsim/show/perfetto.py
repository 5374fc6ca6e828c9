"""The Perfetto timeline: a run as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.

The format is Google's "Trace Event Format": spans are complete events (`ph: X`), counters `ph: C`, names
`ph: M`; times are microseconds, `pid` is a replica, `tid` a slot of its batch, a place in its queue, its
steps, its state (starting, serving, draining, slow, failed), or a KV cache on its way to it. Spans of one
thread are nested or disjoint. Arrows (`ph: s`, `t`, `f`) lead from the slot where a prompt was computed over
the transfer of its KV cache to the slot where it decodes.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cbsim.base.paths import written_whole
from cbsim.base.units import US_PER_S
from cbsim.results.hand_overs import hand_over_table
from cbsim.results.result import Result
from cbsim.results.step_work import has_utilization, step_mbu, step_mfu

MAX_REQUESTS = 20_000
"""Of more requests, every n-th is shown."""
MAX_STEPS = 50_000
"""Of more steps, every n-th is shown."""
STEPS_TID = 1
STATE_TID = 2
FIRST_SLOT_TID = 10
FIRST_QUEUE_TID = 1_000_000
FIRST_TRANSFER_TID = 2_000_000
"""Threads of a replica: its steps, its state, then the slots of its batch, the places in its queue, and what
is brought to it."""
_STATES = {
    "started": "starting",
    **dict.fromkeys(("ready", "repaired", "restored"), "serving"),
    **{"draining": "draining", "failed": "failed", "slowed": "slow"},
}
"""What a replica is after an event; after others it is gone."""
_COUNTERS = {
    "queue (requests)": {"waiting": "num_waiting"},
    "batch (requests)": {"running": "num_running"},
    "batch (tokens)": {"prefill": "num_prefill_tokens", "decode": "num_decode_tokens"},
    "KV blocks": {"used": "kv_blocks_used"},
}

Event = dict[str, Any]


def write_timeline(
    result: Result, path: Path, max_requests: int = MAX_REQUESTS, max_steps: int = MAX_STEPS
) -> list[str]:
    """Write the trace as gzipped JSON, whole or not at all; returns the notes on what it leaves out.

    Equal runs give equal bytes. Raises `CbsimError` if the file can't be written.
    """
    notes: list[str] = []
    requests = _sampled(result.requests, max_requests, "requests", notes)
    steps = _sampled(result.steps, max_steps, "steps", notes)
    if result.batches is None:
        notes.append("prefill is one span: chunks are told apart only with output.batches")
    with (
        written_whole(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8") as stream,
    ):
        for piece in _json(result, requests, steps, notes):
            stream.write(piece)
    return notes


def _sampled(table: pd.DataFrame, limit: int, what: str, notes: list[str]) -> pd.DataFrame:
    stride = max(1, math.ceil(len(table) / limit))
    if stride > 1:
        notes.append(f"sampled: one of {stride} {what} is shown, of {len(table):,}")
    return table[::stride]


def _json(result: Result, requests: pd.DataFrame, steps: pd.DataFrame, notes: list[str]) -> Iterator[str]:
    """The file's text in pieces."""
    told = {"experiment": result.name, "notes": notes, "versions": result.manifest.get("versions", {})}
    yield '{"displayTimeUnit":"ms","otherData":' + json.dumps(told) + ',"traceEvents":[\n'
    for place, event in enumerate(_events(result, requests, steps)):
        yield ",\n" * (place > 0) + json.dumps(event, separators=(",", ":"), allow_nan=False)
    yield "\n]}\n"


def _events(result: Result, requests: pd.DataFrame, steps: pd.DataFrame) -> Iterator[Event]:
    spans = RequestSpans(result)
    shown = set(requests["request_id"])
    waits = spans.waits(requests["request_id"])
    of_pool = _pools(result)
    changes = result.replicas
    changing = set() if changes is None else {*changes["replica"]}
    for replica in sorted({*result.steps["replica"], *spans.stays["replica"], *changing}):
        yield _name("process_name", replica, 0, f"{of_pool.get(replica, '')}replica {replica}")
        yield _name("thread_name", replica, STEPS_TID, "steps")
        yield from _step_events(result, steps[steps["replica"] == replica], replica)
        if changes is not None:
            yield from _state_events(changes[changes["replica"] == replica], replica, _end_s(result))
        yield from _slot_events(spans, shown, replica)
        yield from _lane_events("queue", FIRST_QUEUE_TID, waits[replica], replica)
        brought = spans.transfers(shown, replica)
        yield from _lane_events("KV transfer", FIRST_TRANSFER_TID, brought, replica)
        yield from _arrow_events(spans, brought, replica)


def _pools(result: Result) -> dict[int, str]:
    """By replica what stands before its name: its pool, where there are several or one has a name."""
    if not result.config.get("cluster"):
        return {}
    tables = [table[["replica", "pool"]] for table in (result.steps, result.replicas) if table is not None]
    first = pd.concat([table.astype({"pool": str}) for table in tables]).drop_duplicates("replica")
    return {replica: f"{pool}: " for replica, pool in zip(first["replica"], first["pool"], strict=True)}


def _step_events(result: Result, steps: pd.DataFrame, replica: int) -> Iterator[Event]:
    """A span and the counters of each step; those of work fall to 0 where idle time begins."""
    shares = {"MFU (%)": step_mfu, "MBU (%)": step_mbu} if has_utilization(result) else {}
    counters = _COUNTERS | {name: {"share": name} for name in shares}
    percent = {name: share(result, steps) * 100 for name, share in shares.items()}
    rounded = {name: [round(float(value), 3) for value in values] for name, values in percent.items()}
    rows = steps.assign(**rounded).to_dict("records")
    for row, following in zip_longest(rows, rows[1:]):
        start_s, end_s = row["start_s"], row["start_s"] + row["duration_s"]
        name = f"{row['num_prefill_tokens']} prefill + {row['num_decode_tokens']} decode"
        yield _complete(Span(name, start_s, end_s), replica, STEPS_TID, {"step": row["step"]})
        for counter, series in counters.items():
            yield _counter(counter, replica, start_s, {label: row[name] for label, name in series.items()})
        if following is None or (
            following["step"] == row["step"] + 1 and _us(following["start_s"]) > _us(end_s)
        ):
            for counter in ("batch (tokens)", *shares):
                yield _counter(counter, replica, end_s, dict.fromkeys(counters[counter], 0))


def _state_events(changes: pd.DataFrame, replica: int, end_s: float) -> Iterator[Event]:
    """A span for each state that a replica of a cluster that changes is in."""
    yield _name("thread_name", replica, STATE_TID, "state")
    rows = changes.sort_values("time_s", kind="stable")
    for event, start_s, until_s in zip(
        rows["event"], rows["time_s"], [*rows["time_s"][1:], end_s], strict=True
    ):
        if event in _STATES and until_s > start_s:
            yield _complete(Span(_STATES[event], start_s, until_s), replica, STATE_TID, {})


def _slot_events(spans: RequestSpans, shown: set[str], replica: int) -> Iterator[Event]:
    """Each stay in the batch on the slot it takes among all of them, its phases within."""
    stays = spans.stays[spans.stays["replica"] == replica]
    is_shown = stays["request_id"].isin(shown)
    for lane in sorted(set(stays["lane"][is_shown])):
        yield _name("thread_name", replica, FIRST_SLOT_TID + lane, f"slot {lane}")
    for stay in stays[is_shown].to_dict("records"):
        tid = FIRST_SLOT_TID + stay["lane"]
        outer = Span(stay["request_id"], stay["start_s"], stay["end_s"])
        yield _complete(outer, replica, tid, {"end": stay["end"]})
        for phase in spans.phases(stay["request_id"], stay["start_s"], stay["end_s"]):
            yield _complete(phase, replica, tid, {"request": stay["request_id"]})


def _lane_events(name: str, first_tid: int, held: list[Held], replica: int) -> Iterator[Event]:
    """What requests wait for, or bring, each on the lowest place that is free among them."""
    for lane in sorted({each.lane for each in held}):
        yield _name("thread_name", replica, first_tid + lane, f"{name} {lane}")
    for span, request_id, lane, args in held:
        named = Span(f"{span.name} {request_id}", span.start_s, span.end_s)
        yield _complete(named, replica, first_tid + lane, {"request": request_id, **args})


def _arrow_events(spans: RequestSpans, brought: list[Held], replica: int) -> Iterator[Event]:
    """From the end of the prompt's stay to the transfer of its KV cache, and on to the stay that decodes."""
    for number, (span, request_id, lane, _) in enumerate(brought):
        stays = spans.stays_of(request_id).to_dict("records")
        place = max(place for place, stay in enumerate(stays) if stay["end"] == "handed_over")
        before, after = stays[place], stays[place + 1 : place + 2]
        named = {"name": "KV cache", "cat": "KV", "id": f"{replica}.{number}"}
        # An arrow begins within a span, which its end is not.
        start = max(_us(before["start_s"]), _us(before["end_s"]) - _NS)
        slot = FIRST_SLOT_TID + before["lane"]
        yield named | {"ph": "s", **_where(before["replica"], slot), "ts": round(start, 3)}
        yield named | {"ph": "t", **_where(replica, FIRST_TRANSFER_TID + lane), "ts": _us(span.start_s)}
        for stay in after:
            where = _where(stay["replica"], FIRST_SLOT_TID + stay["lane"])
            yield named | {"ph": "f", "bp": "e", **where, "ts": _us(stay["start_s"])}


def _complete(span: Span, replica: int, tid: int, args: Event) -> Event:
    ts, end = _us(span.start_s), _us(span.end_s)
    named = {"ph": "X", "name": span.name, "cat": span.name.partition(" ")[0]}
    return named | _where(replica, tid) | {"ts": ts, "dur": max(0.0, round(end - ts, 3)), "args": args}


def _counter(name: str, replica: int, time_s: float, series: Event) -> Event:
    return {"ph": "C", "name": name, "pid": int(replica) + 1, "tid": 0, "ts": _us(time_s), "args": series}


def _name(kind: str, replica: int, tid: int, name: str) -> Event:
    """Threads and processes are named by metadata, and stand in the order of their numbers."""
    return {"ph": "M", "name": kind, **_where(replica, tid), "ts": 0, "args": {"name": name}}


def _where(replica: int, tid: int) -> Event:
    return {"pid": int(replica) + 1, "tid": int(tid)}


def _us(seconds: float) -> float:
    """Microseconds to the nanosecond."""
    return round(float(seconds) * US_PER_S, 3)


_NS = 1e-3
"""A nanosecond in the file's unit."""
_STARTS, _ENDS = ("admitted", "resumed"), ("preempted", "finished", "handed_over", "failed")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a request's time, seconds."""

    name: str
    start_s: float
    end_s: float


class Held(NamedTuple):
    """A span of a request on the lowest lane that is free among those of its kind."""

    span: Span
    request_id: str
    lane: int
    args: Event


class _Slice(NamedTuple):
    start_s: float
    end_s: float
    num_tokens: int
    kind: str


class RequestSpans:
    """The spans of a run's requests, from its events and, where they were recorded, its batches."""

    def __init__(self, result: Result) -> None:
        columns = ["arrival_s", "ttft_s", "state", "replica"]
        by_id = result.requests.set_index("request_id")[columns]
        self._requests: dict[Any, dict[Any, Any]] = by_id.astype({"state": object}).to_dict("index")
        self._end_s = _end_s(result)
        self.stays = _stays(result, self._end_s)
        """One row for each stay in the batch: `request_id`, `replica`, `start_s`, `end_s`, `end` (preempted,
        finished, handed_over, failed or unfinished) and `lane`: the slot, lowest free first, of those running
        on its replica."""
        stays = self.stays.groupby("request_id", observed=True)
        self._stays_of = {str(name): of_one for name, of_one in stays}
        self._slices = _slices(result)
        self._hand_overs = hand_over_table(result.events).to_dict("index")

    def stays_of(self, request_id: str) -> pd.DataFrame:
        """Its rows of `stays`."""
        return self._stays_of.get(request_id, self.stays[:0])

    def waits(self, request_ids: Iterable[str]) -> dict[int, list[Held]]:
        """By replica what requests wait for there: queued until a stay, preempted between stays.

        In between, who was handed over waits for room on the other replica, and for its KV cache to come.
        """
        found: dict[int, list[tuple[Span, str, Event]]] = defaultdict(list)
        for request_id in request_ids:
            for replica, span in self._waits(request_id):
                if span.end_s > span.start_s:
                    found[replica].append((span, request_id, {}))
        return defaultdict(list, {replica: _held(spans) for replica, spans in found.items()})

    def _waits(self, request_id: str) -> Iterator[tuple[int, Span]]:
        request, stays = self._requests[request_id], self.stays_of(request_id)
        if request["state"] == "rejected" or pd.isna(request["replica"]):
            return
        ends = [*stays["start_s"], *([self._end_s] if request["state"] == "unfinished" else [])]
        starts = [request["arrival_s"], *stays["end_s"]]
        replicas = [*stays["replica"], request["replica"]]
        for number, (start_s, end_s) in enumerate(zip(starts, ends, strict=False)):
            before = stays["end"].iloc[number - 1] if number else "arrived"
            what = "preempted" if before == "preempted" else "queued"
            if before == "handed_over":
                what = "handed over"
                over = self._hand_overs.get(request_id)
                if over and over["handed_over_s"] == start_s:
                    yield replicas[number], Span(what, start_s, over["load_started_s"])
                    what, start_s = "queued", over["loaded_s"]
            yield replicas[number], Span(what, start_s, end_s)

    def transfers(self, request_ids: set[str], replica: int) -> list[Held]:
        """The KV caches of some requests that are brought to a replica."""
        return _held(
            (
                Span("KV", over["load_started_s"], over["loaded_s"]),
                str(request_id),
                {"tokens": int(over["num_tokens"]), "from": f"replica {over['sender']}"},
            )
            for request_id, over in self._hand_overs.items()
            if over["receiver"] == replica and request_id in request_ids
        )

    def phases(self, request_id: str, start_s: float, end_s: float) -> Iterator[Span]:
        """Prefill and decode within one stay: chunk by chunk if batches were recorded.

        Otherwise prefill reaches to the first token, and a stay that begins after it is called `decode`,
        although what was lost is computed again in it first.
        """
        slices = self._slices.get(request_id)
        if slices is None:
            yield from self._derived_phases(request_id, start_s, end_s)
            return
        first = bisect_left(slices, start_s, key=attrgetter("start_s"))
        decoding_since_s = None
        for piece in takewhile(lambda piece: piece.start_s < end_s, slices[first:]):
            if piece.kind == "decode":
                decoding_since_s = piece.start_s if decoding_since_s is None else decoding_since_s
                continue
            if decoding_since_s is not None:
                yield Span("decode", decoding_since_s, piece.start_s)
                decoding_since_s = None
            yield Span(f"prefill {piece.num_tokens}", piece.start_s, min(piece.end_s, end_s))
        if decoding_since_s is not None:
            yield Span("decode", decoding_since_s, end_s)

    def _derived_phases(self, request_id: str, start_s: float, end_s: float) -> Iterator[Span]:
        request = self._requests[request_id]
        first_token_s = request["arrival_s"] + request["ttft_s"]
        turn_s = min(max(start_s, first_token_s), end_s) if first_token_s == first_token_s else end_s
        if turn_s > start_s:
            yield Span("prefill", start_s, turn_s)
        if end_s > turn_s:
            yield Span("decode", turn_s, end_s)


def _stays(result: Result, run_end_s: float) -> pd.DataFrame:
    events = result.events
    kept = events[events["event"].isin([*_STARTS, *_ENDS])]
    kept = kept.sort_values("request_id", kind="stable", key=lambda column: column.cat.codes)
    following = kept.shift(-1)
    is_same = following["request_id"].cat.codes == kept["request_id"].cat.codes
    is_ended = is_same & following["event"].isin(_ENDS)
    starts = kept["event"].isin(_STARTS)
    stays = pd.DataFrame(
        {
            "request_id": kept["request_id"].astype(str),
            "replica": kept["replica"].astype("int64"),
            "start_s": kept["time_s"],
            "end_s": following["time_s"].where(is_ended, run_end_s),
            "end": following["event"].astype(object).where(is_ended, "unfinished"),
        }
    )[starts]
    stays = stays.sort_values(["replica", "start_s"], kind="stable").reset_index(drop=True)
    lanes: list[int] = []
    for _, rows in stays.groupby("replica", sort=True):
        lanes += assign_lanes(zip(rows["start_s"].tolist(), rows["end_s"].tolist(), strict=True))
    return stays.assign(lane=lanes)


def _slices(result: Result) -> dict[str, list[_Slice]]:
    """What each request computed, step by step, each piece with the end of its step."""
    slices: dict[str, list[_Slice]] = defaultdict(list)
    if result.batches is not None:
        steps = result.steps[["replica", "step", "duration_s"]]
        rows = result.batches.merge(steps, on=["replica", "step"], how="left")
        rows["end_s"] = rows["start_s"] + rows["duration_s"]
        columns = (rows[name].tolist() for name in ("request_id", *_Slice._fields))
        for request_id, *values in zip(*columns, strict=True):
            slices[request_id].append(_Slice._make(values))
    return slices


def _held(spans: Iterable[tuple[Span, str, Event]]) -> list[Held]:
    """Spans of requests in order of their start, each on a lane."""
    in_order = sorted(spans, key=lambda each: each[0].start_s)
    lanes = assign_lanes((span.start_s, span.end_s) for span, *_ in in_order)
    return [Held(span, of, lane, args) for (span, of, args), lane in zip(in_order, lanes, strict=True)]


def assign_lanes(spans: Iterable[tuple[float, float]]) -> list[int]:
    """The lane of each span `(start, end)`, given in order of start: the lowest that is free by then."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lanes.append(heapq.heappop(free) if free else len(busy))
        heapq.heappush(busy, (end, lanes[-1]))
    return lanes


def _end_s(result: Result) -> float:
    steps, events = result.steps, result.events
    ends = [float((steps["start_s"] + steps["duration_s"]).max())] if len(steps) else []
    return max([*ends, *([float(events["time_s"].max())] if len(events) else [])], default=0.0)
