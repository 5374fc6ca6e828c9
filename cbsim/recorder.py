"""What happens in a run: written down by `Recorder`, handed on as `RunLog`, in arrays, with nothing derived."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.request import Request, RequestState

Column = NDArray[Any]

EVENTS = ("arrived", "admitted", "resumed", "preempted", "emitted", "finished", "rejected")
"""Names of the event codes 0, 1, 2, ... in `RunLog.events["event"]`."""
ARRIVED, ADMITTED, RESUMED, PREEMPTED, EMITTED, FINISHED, REJECTED = range(7)
KINDS = ("prefill", "decode")
"""Names of the codes in `RunLog.batches["kind"]`."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The whole record of a run: tables as named columns of equal length.

    NaN stands for an instant that never came, -1 for "no step" and "no replica". Equal runs have equal logs to
    the last bit, whichever engine made them.
    """

    requests: dict[str, Column]
    """One row a request in order of arrival: `request_id` (str objects), `replica`, `arrival_s`,
    `first_scheduled_at_s`, `first_token_at_s`, `finished_at_s`, `num_prompt_tokens`, `num_output_tokens`,
    `num_generated_tokens`, `num_cached_tokens`, `num_preemptions`, `priority`, `state` (RequestState codes),
    `max_itl_s`."""
    steps: dict[str, Column]
    """One row a step in order of (start, replica): the columns of `steps.parquet`, and for MFU and MBU
    `num_attention_pairs` (sum over all slices of (query token, key) pairs, prefill and decode alike),
    `num_context_tokens` (sum over all slices of the KV entries read: context before plus tokens now),
    `num_logits` (rows of logits) and `num_kv_tokens` (KV entries of running requests computed by the
    step's end, for the waste of reservations)."""
    events: dict[str, Column]
    """In the order they happened: `time_s`, `replica`, `step`, `request` (row in `requests`), `event`
    (codes of `EVENTS`), `num_tokens`."""
    batches: dict[str, Column] | None
    """One row a slice, only on demand: `replica`, `step`, `start_s`, `position`, `request` (row in `requests`),
    `num_tokens`, `num_computed_tokens`, `kind` (codes of `KINDS`)."""
    gap_s: Column
    """The distinct inter-token gaps, rising, seconds."""
    gap_count: Column
    """How many times each gap of `gap_s` occurred."""
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


def empty_float() -> Column:
    """An empty column of float64."""
    return np.empty(0, dtype=np.float64)


class Table:
    """Rows gathered column by column in typed arrays, 8 bytes a number and no objects.

    Columns are given as name -> array type code (`d` float64, `q` int64, `i` int32, `b` int8).
    """

    __slots__ = ("columns", "names")

    def __init__(self, **columns: str) -> None:
        self.names = tuple(columns)
        self.columns = tuple(array(code) for code in columns.values())

    def append(self, *row: float) -> None:
        """Add a row, in the order of the columns."""
        for column, value in zip(self.columns, row, strict=True):
            column.append(value)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.columns[0])

    def to_columns(self) -> dict[str, Column]:
        """As numpy arrays that share the memory."""
        return {
            name: np.frombuffer(column, dtype=column.typecode) if column else np.empty(0, column.typecode)
            for name, column in zip(self.names, self.columns, strict=True)
        }


def step_table() -> Table:
    """An empty table of steps."""
    return Table(
        replica="i",
        step="q",
        scheduled_at_s="d",
        start_s="d",
        duration_s="d",
        num_prefill_tokens="q",
        num_decode_tokens="q",
        num_prefill_seqs="q",
        num_decode_seqs="q",
        num_running="q",
        num_waiting="q",
        num_preempted="q",
        num_finished="q",
        kv_blocks_used="q",
        kv_blocks_total="q",
        num_attention_pairs="q",
        num_context_tokens="q",
        num_logits="q",
        num_kv_tokens="q",
    )


class Recorder:
    """Takes down what happens to requests and in which order, for every engine and every replica alike.

    Requests are told by `index`, their place in order of arrival. Times are seconds.
    """

    def __init__(self, *, with_batches: bool = False) -> None:
        self.with_batches = with_batches
        self.ids: list[str] = []
        self.arrivals = Table(
            replica="i", arrival_s="d", num_prompt_tokens="q", num_output_tokens="q", priority="q"
        )
        self.first_scheduled_at_s = array("d")
        self.first_token_at_s = array("d")
        self.last_token_at_s = array("d")
        self.max_itl_s = array("d")
        self.num_generated = array("q")
        self.num_cached = array("q")
        self.num_preemptions = array("q")
        self.state = array("b")
        self.events = Table(time_s="d", replica="i", step="q", request="q", event="b", num_tokens="q")
        self.batches = Table(
            replica="i",
            step="q",
            start_s="d",
            position="q",
            request="q",
            num_tokens="q",
            num_computed_tokens="q",
            kind="b",
        )
        self.rejections: dict[int, str] = {}
        self.num_finished = 0

    def arrived(self, request: Request, replica: int) -> None:
        """A request, with its index set to the number of those before it, has reached a replica."""
        self.ids.append(request.request_id)
        self.arrivals.append(
            replica, request.arrival_s, request.num_prompt_tokens, request.num_output_tokens, request.priority
        )
        for column in (
            self.first_scheduled_at_s,
            self.first_token_at_s,
            self.last_token_at_s,
            self.max_itl_s,
        ):
            column.append(np.nan)
        for column in (self.num_generated, self.num_cached, self.num_preemptions):
            column.append(0)
        self.state.append(RequestState.UNFINISHED)
        self.events.append(request.arrival_s, replica, -1, request.index, ARRIVED, 0)

    def rejected(self, request: Request, replica: int, reason: str) -> None:
        """A request that arrived this instant can never be served."""
        self.state[request.index] = RequestState.REJECTED
        self.rejections[request.index] = reason
        self.events.append(request.arrival_s, replica, -1, request.index, REJECTED, 0)

    def admitted(self, request: Request, now: float, replica: int, step: int, num_cached: int) -> None:
        """A request left the waiting queue for the first time; `step` is -1 if that call made none."""
        self.first_scheduled_at_s[request.index] = now
        self.num_cached[request.index] = num_cached
        self.events.append(now, replica, step, request.index, ADMITTED, num_cached)

    def resumed(self, request: Request, now: float, replica: int, step: int, num_cached: int) -> None:
        """A preempted request left the waiting queue."""
        self.events.append(now, replica, step, request.index, RESUMED, num_cached)

    def preempted(self, request: Request, now: float, replica: int, step: int) -> None:
        """A running request lost its place."""
        self.num_preemptions[request.index] += 1
        self.events.append(now, replica, step, request.index, PREEMPTED, 0)

    def emitted(self, request: Request, now: float, replica: int, step: int) -> None:
        """A token came out (recorded as an event with batches only)."""
        if self.with_batches:
            self.events.append(now, replica, step, request.index, EMITTED, 1)

    def finished(self, request: Request, now: float, replica: int, step: int) -> None:
        """A request got its last token."""
        self.state[request.index] = RequestState.FINISHED
        self.num_finished += 1
        self.events.append(now, replica, step, request.index, FINISHED, 0)

    def tokens(
        self, request: Request, num_tokens: int, first_s: float, last_s: float, max_gap_s: float
    ) -> None:
        """All tokens of a request that ended, or so far: how many, when, and the longest gap between two."""
        index = request.index
        self.num_generated[index] = num_tokens
        self.first_token_at_s[index] = first_s
        self.last_token_at_s[index] = last_s
        self.max_itl_s[index] = max_gap_s

    def request_columns(self) -> dict[str, Column]:
        """The table `RunLog.requests`."""
        arrivals = self.arrivals.to_columns()
        ids = np.empty(len(self.ids), dtype=object)
        ids[:] = self.ids
        state = np.array(self.state, dtype=np.int8)
        last_token_at_s = np.array(self.last_token_at_s)
        return {
            "request_id": ids,
            "replica": arrivals["replica"],
            "arrival_s": arrivals["arrival_s"],
            "first_scheduled_at_s": np.array(self.first_scheduled_at_s),
            "first_token_at_s": np.array(self.first_token_at_s),
            "finished_at_s": np.where(state == RequestState.FINISHED, last_token_at_s, np.nan),
            "num_prompt_tokens": arrivals["num_prompt_tokens"],
            "num_output_tokens": arrivals["num_output_tokens"],
            "num_generated_tokens": np.array(self.num_generated),
            "num_cached_tokens": np.array(self.num_cached),
            "num_preemptions": np.array(self.num_preemptions),
            "priority": arrivals["priority"],
            "state": state,
            "max_itl_s": np.array(self.max_itl_s),
        }

    def event_columns(self, num_replicas: int) -> dict[str, Column]:
        """The table `RunLog.events`.

        Several replicas' events come in the order of time; at one instant arrivals first, then results, then
        decisions, each by replica.
        """
        events = self.events.to_columns()
        if num_replicas > 1:
            phase = np.array([0, 2, 2, 2, 1, 1, 0])[events["event"]]
            order = np.lexsort((events["replica"], phase, events["time_s"]))
            events = {name: column[order] for name, column in events.items()}
        return events


def sort_steps(steps: dict[str, Column], num_replicas: int) -> dict[str, Column]:
    """Steps in order of (start, replica); those of one replica are in order already."""
    if num_replicas == 1:
        return steps
    order = np.lexsort((steps["replica"], steps["start_s"]))
    return {name: column[order] for name, column in steps.items()}
