"""What happens in a run: `Recorder` writes it down, `RunLog` hands it on, in arrays, nothing derived."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbsim.observers.audience import Audience
from cbsim.workload.request import Request, RequestState

if TYPE_CHECKING:
    from cbsim.cluster.engine.slice_log import Slices

Column = NDArray[Any]

EVENTS = ("arrived", "admitted", "resumed", "preempted", "emitted", "finished", "rejected")
"""Names of the event codes 0, 1, 2, ... in `RunLog.events["event"]`."""
ARRIVED, ADMITTED, RESUMED, PREEMPTED, EMITTED, FINISHED, REJECTED = range(7)
DECISIONS = {"admitted": ADMITTED, "resumed": RESUMED, "preempted": PREEMPTED}
"""Event codes by a scheduler's decisions."""
KINDS = ("prefill", "decode")
"""Names of the codes in `RunLog.batches["kind"]`."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The whole record of a run: tables as named columns of equal length.

    NaN stands for an instant that never came, -1 for "no step" and "no replica". Equal runs have equal logs
    to the last bit, compiled or interpreted.
    """

    requests: dict[str, Column]
    """One row a request in order of arrival: `request_id` (str objects), `replica`, `arrival_s`,
    `first_scheduled_at_s`, `first_token_at_s`, `finished_at_s`, `num_prompt_tokens`, `num_output_tokens`,
    `num_generated_tokens`, `num_cached_tokens`, `num_preemptions`, `priority`, `state` (RequestState codes),
    `max_itl_s`."""
    steps: Mapping[str, Column]
    """One row a step in order of (start, replica): the columns of `steps.parquet`, and for MFU and MBU
    `num_attention_pairs` (sum over all slices of (query token, key) pairs, prefill and decode alike),
    `num_context_tokens` (sum over all slices of the KV entries read: context before plus tokens now),
    `num_logits` (rows of logits) and `num_kv_tokens` (KV entries of running requests computed by the
    step's end, for the waste of reservations). Where there are `slices`, also `transfer_s` (seconds of the
    step spent moving KV blocks to and from host memory), `waiting_for` (codes of `core.layout`: what the
    head of the queue lacked) and `max_decode_context` (0 in steps without chunks)."""
    events: Mapping[str, Column]
    """In the order they happened: `time_s`, `replica`, `step`, `request` (row in `requests`), `event`
    (codes of `EVENTS`), `num_tokens`."""
    batches: dict[str, Column] | None
    """One row a slice, only on demand: `replica`, `step`, `start_s`, `position`, `request` (row in
    `requests`), `num_tokens`, `num_computed_tokens`, `kind` (codes of `KINDS`)."""
    gaps: Sequence[tuple[Column, Column]]
    """The gaps between tokens in pieces `(seconds, how often each occurred)`, in any order."""
    rejections: dict[int, str] = field(default_factory=dict)
    """Row in `requests` -> why it was rejected."""
    num_tokens_recomputed: int = 0
    """Tokens computed again after preemptions."""
    num_prompt_tokens_queried: int = 0
    """Tokens looked up in the prefix cache at admissions; 0 when it is off."""
    num_prompt_tokens_hit: int = 0
    """Tokens found there."""
    num_padding_tokens: int = 0
    """Tokens computed only to fill padded batches."""
    end_s: float = 0.0
    """The instant the run ended: the last finish, or where it was stopped."""
    slices: Slices | None = None
    """Who was in which step; `None` where that was not recorded."""
    parts: Mapping[str, Column] | None = None
    """Where each request's time went (`results.latency`), made when asked for; `None` without `slices`."""


def distinct_gaps(gaps: Iterable[tuple[Column, Column]]) -> tuple[Column, Column]:
    """The distinct gaps of all pieces, rising, and how often each occurred."""
    several = list(gaps)
    gap_s = np.concatenate([np.empty(0), *(seconds for seconds, _ in several)])
    count = np.concatenate([np.empty(0, dtype=np.int64), *(count for _, count in several)])
    order = np.argsort(gap_s, kind="stable")
    gap_s, count = gap_s[order], count[order]
    if not len(gap_s):
        return gap_s, count
    first = np.flatnonzero(np.concatenate([[True], gap_s[1:] != gap_s[:-1]]))
    return gap_s[first], np.add.reduceat(count, first)


def empty_float() -> Column:
    """An empty column of float64."""
    return np.empty(0, dtype=np.float64)


def as_column(values: array[Any]) -> Column:
    """A typed array as a numpy array that shares its memory: nothing may be added after this."""
    return np.frombuffer(values, dtype=values.typecode) if values else np.empty(0, values.typecode)


class Table:
    """Rows gathered as bytes in one buffer, and no objects."""

    __slots__ = ("_dtype", "_pack", "_rows", "integers", "reals")

    def __init__(self, reals: tuple[str, ...], integers: tuple[str, ...], typecode: str = "q") -> None:
        """The names of the real (float64) and of the integer columns, the latter of a `struct` typecode."""
        self.reals = reals
        self.integers = integers
        # Packing a row is five times as quick as extending typed arrays with it.
        self._pack = Struct(f"={len(reals)}d{len(integers)}{typecode}").pack
        self._dtype = np.dtype([*((name, "d") for name in reals), *((name, typecode) for name in integers)])
        self._rows = bytearray()

    def append(self, *row: float) -> None:
        """Add a row: its reals, then its integers, each in the order of the columns."""
        self._rows += self._pack(*row)

    def __len__(self) -> int:
        return len(self._rows) // self._dtype.itemsize

    def to_columns(self) -> dict[str, Column]:
        """As numpy arrays, views of the rows: nothing may be added after this."""
        rows = np.frombuffer(self._rows, dtype=self._dtype)
        return {name: rows[name] for name in (*self.reals, *self.integers)}


STEP_COLUMNS = (
    "replica",
    "step",
    "scheduled_at_s",
    "start_s",
    "duration_s",
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_prefill_seqs",
    "num_decode_seqs",
    "num_running",
    "num_waiting",
    "num_preempted",
    "num_finished",
    "kv_blocks_used",
    "kv_blocks_total",
    "num_attention_pairs",
    "num_context_tokens",
    "num_logits",
    "num_kv_tokens",
)
"""Columns of `RunLog.steps`, in this order."""
SLICE_STEP_COLUMNS = ("transfer_s", "waiting_for", "max_decode_context")
"""Further columns of `RunLog.steps`, present if slices were recorded."""

REQUEST_REALS = ("arrival_s", "first_scheduled_at_s", "first_token_at_s", "finished_at_s", "max_itl_s")
REQUEST_INTEGERS = (
    "index",
    "replica",
    "num_prompt_tokens",
    "num_output_tokens",
    "num_generated_tokens",
    "num_cached_tokens",
    "num_preemptions",
    "priority",
    "state",
)
BATCH_INTEGERS = (
    "replica",
    "step",
    "position",
    "request",
    "num_tokens",
    "num_computed_tokens",
    "kind",
)


class Recorder:
    """Takes down what happens to requests and in which order, for all replicas.

    A request's row is written once, when it has ended or the run has. Times are seconds. What it takes down
    it tells to `audience`, if there is one.
    """

    def __init__(self, *, with_batches: bool = False, audience: Audience | None = None) -> None:
        self.with_batches = with_batches
        self.audience = audience
        self.ids: list[str] = []
        self._requests = Table(REQUEST_REALS, REQUEST_INTEGERS)
        self._events = Table(("time_s",), ("replica", "step", "request", "event", "num_tokens"))
        self.batches = Table(("start_s",), BATCH_INTEGERS)
        self.rejections: dict[int, str] = {}
        self._longest_gaps: list[tuple[Column, Column]] = []

    def rejected(self, request: Request, replica: int, reason: str) -> None:
        """A request that arrived this instant can never be served."""
        self.rejections[request.index] = reason
        request.state = RequestState.REJECTED
        self.close(request, replica)

    def event(
        self, code: int, request: Request, now: float, replica: int, step: int, num_tokens: int
    ) -> None:
        """A decision or a result; `step` is -1 if the call that decided made none."""
        self._events.append(now, replica, step, request.index, code, num_tokens)
        if self.audience is not None:
            self.audience.tell_event(EVENTS[code], now, request, replica)

    def close(
        self,
        request: Request,
        replica: int,
        first_token_at_s: float = np.nan,
        last_token_at_s: float = np.nan,
        max_itl_s: float = np.nan,
    ) -> None:
        """A request has ended, or the run has: nothing more happens to it."""
        state = request.state
        is_finished = state is RequestState.FINISHED
        first_scheduled_at_s = request.first_scheduled_at_s
        self.ids.append(request.request_id)
        self._requests.append(
            request.arrival_s,
            np.nan if first_scheduled_at_s is None else first_scheduled_at_s,
            first_token_at_s,
            last_token_at_s if is_finished else np.nan,
            max_itl_s,
            request.index,
            replica,
            request.num_prompt_tokens,
            request.num_output_tokens,
            request.num_generated_tokens,
            request.num_cached_tokens,
            request.num_preemptions,
            request.priority,
            state if is_finished or state is RequestState.REJECTED else RequestState.UNFINISHED,
        )

    def longest_gaps(self, requests: Column, gap_s: Column) -> None:
        """Further gaps between tokens, by the requests' index: a request's longest is its `max_itl_s`."""
        self._longest_gaps.append((requests, gap_s))

    def request_columns(self) -> dict[str, Column]:
        """The table `RunLog.requests`."""
        columns = self._requests.to_columns()
        order = np.argsort(columns.pop("index"), kind="stable")
        ids = np.empty(len(self.ids), dtype=object)
        ids[:] = self.ids
        table = {name: column[order] for name, column in {"request_id": ids, **columns}.items()}
        for requests, gap_s in self._longest_gaps:
            np.fmax.at(table["max_itl_s"], requests, gap_s)
        return table

    def event_columns(self, requests: dict[str, Column], *, answers_first: bool = False) -> dict[str, Column]:
        """The table `RunLog.events`, in the order of time.

        At one instant: arrivals in their order, then results, then decisions, each by replica; with
        `answers_first`, as for clients that send when they are answered, results come before arrivals.
        """
        rejected = np.array(sorted(self.rejections), dtype=np.int64)
        arrived = np.arange(len(requests["arrival_s"]))
        recorded = self._events.to_columns()
        request = np.concatenate([arrived, rejected, recorded["request"]])
        num_outside = len(arrived) + len(rejected)
        no_step = np.full(num_outside, -1)
        event = np.concatenate(
            [np.full(len(arrived), ARRIVED), np.full(len(rejected), REJECTED), recorded["event"]]
        )
        outside = request[:num_outside]
        time_s = np.concatenate([requests["arrival_s"][outside], recorded["time_s"]])
        replica = np.concatenate([requests["replica"][outside], recorded["replica"]])
        is_result = (event == EMITTED) | (event == FINISHED)
        phase = np.where(is_result, 1, 3)
        phase[:num_outside] = 2 if answers_first else 0
        place, by_replica = request.copy(), replica.copy()
        place[num_outside:] = 0
        by_replica[:num_outside] = 0
        order = np.lexsort((place, by_replica, phase, time_s))
        columns = {
            "time_s": time_s,
            "replica": replica,
            "step": np.concatenate([no_step, recorded["step"]]),
            "request": request,
            "event": event,
            "num_tokens": np.concatenate([np.zeros(num_outside, dtype=np.int64), recorded["num_tokens"]]),
        }
        return {name: column[order] for name, column in columns.items()}


class Deferred(Mapping[str, Column]):
    """Columns that are made when the first of them is asked for."""

    def __init__(self, make: Callable[[], dict[str, Column]]) -> None:
        self._make = make

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return self._make()

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]


class MergedSteps(Mapping[str, Column]):
    """The steps of several replicas in order of (start, replica), a column at a time."""

    def __init__(self, replicas: Sequence[Mapping[str, Column]]) -> None:
        self._replicas = replicas
        self._order: Column | None = None
        if len(replicas) > 1:
            self._order = np.lexsort((self._joined("replica"), self._joined("start_s")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._replicas[0])

    def __len__(self) -> int:
        return len(self._replicas[0])

    def __getitem__(self, name: str) -> Column:
        values = self._joined(name)
        return values if self._order is None else values[self._order]

    def _joined(self, name: str) -> Column:
        if len(self._replicas) == 1:
            return self._replicas[0][name]
        return np.concatenate([columns[name] for columns in self._replicas])
