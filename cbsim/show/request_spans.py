"""What each request does when: queued, running in a slot, prefill, decode, preempted."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter
from typing import Any, NamedTuple

import pandas as pd

from cbsim.results.result import Result

_STARTS, _ENDS = ("admitted", "resumed"), ("preempted", "finished")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a request's time, seconds."""

    name: str
    start_s: float
    end_s: float


class _Slice(NamedTuple):
    start_s: float
    end_s: float
    num_tokens: int
    kind: str


class RequestSpans:
    """The spans of a run's requests, from its events and, where they were recorded, its batches."""

    def __init__(self, result: Result) -> None:
        columns = ["arrival_s", "ttft_s", "state"]
        by_id = result.requests.set_index("request_id")[columns]
        self._requests: dict[Any, dict[Any, Any]] = by_id.astype({"state": object}).to_dict("index")
        self._end_s = _end_s(result)
        self.stays = _stays(result, self._end_s)
        """One row for each stay in the batch: `request_id`, `replica`, `start_s`, `end_s`, `end` (preempted,
        finished or unfinished) and `lane`: the slot, lowest free first, of those running on its replica."""
        stays = self.stays.groupby("request_id", observed=True)
        self._stays_of = {str(name): of_one for name, of_one in stays}
        self._slices = _slices(result)

    def waits(self, request_id: str) -> list[Span]:
        """Queued until its first stay, preempted between stays."""
        request, stays = self._requests[request_id], self._stays_of.get(request_id, self.stays[:0])
        if request["state"] == "rejected":
            return []
        ends = [*stays["start_s"], *([self._end_s] if request["state"] == "unfinished" else [])]
        starts = [request["arrival_s"], *stays["end_s"]]
        return [
            Span("preempted" if number else "queued", start_s, end_s)
            for number, (start_s, end_s) in enumerate(zip(starts, ends, strict=False))
            if end_s > start_s
        ]

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
