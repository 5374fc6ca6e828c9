"""Request: what a client asks for, and how far its replica has come with it; many of them as columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Segments = tuple[tuple[str, int], ...]
"""A prompt as `(segment name, number of tokens)`: two prompts share exactly their common leading
(segment, offset) run; generated token i of request X is offset i of segment `o:X`."""


class RequestState(IntEnum):
    """Where a request stands. `UNFINISHED` is its state in the results of a run that ended before it did,
    `HANDED_OVER` that of a visit to a replica after which another one went on.
    """

    UNFINISHED = 0
    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED = 4
    REJECTED = 5
    FAILED = 6
    HANDED_OVER = 7


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One request: its fixed part comes from the workload, its progress is kept by the scheduler.

    Token counts (`num_*`) are of tokens; instants (`*_at_s`) are seconds of simulated or wall-clock time;
    `None` means "not yet". `num_computed_tokens` counts the tokens whose KV is computed or scheduled to be,
    steps in flight included; `num_generated_tokens` those whose result has been taken.
    """

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    priority: int = 0
    session_id: str | None = None
    user: str | None = None
    deadline_s: float | None = None
    """Seconds from the arrival."""
    prompt: Segments | None = None
    extra: Mapping[str, Any] | None = None
    """What it brings along for speculation and KV connectors, by fields of `cbsim.core.layout.EXTRA`; lists
    as `accepted` and `proposed`."""
    follows: int = -1
    """Place among the workload's requests of the one whose answer it waits for; -1: it waits for none, and
    arrives at its `arrival_s`. Otherwise that is the earliest instant at which it does."""
    delay_s: float = 0.0
    """Seconds from that answer's end to its arrival."""

    index: int = field(default=-1, init=False)
    """Place in order of arrival, given by the world: breaks every tie."""
    state: RequestState = field(default=RequestState.WAITING, init=False)
    num_computed_tokens: int = field(default=0, init=False)
    num_generated_tokens: int = field(default=0, init=False)
    num_in_flight_tokens: int = field(default=0, init=False)
    """Output tokens that steps under way may emit, with asynchronous scheduling."""
    prefill_until: int = field(init=False)
    """Tokens to compute before it decodes: its prompt, after a preemption its answer so far too."""
    num_preemptions: int = field(default=0, init=False)
    num_cached_tokens: int = field(default=0, init=False)
    """Prefix-cache tokens found at the first admission."""
    admission: int = field(default=-1, init=False)
    """Place in order of admission to the running list; a resumed request gets a new one."""
    num_lost_tokens: int = field(default=0, init=False)
    """Computed tokens that the last preemption threw away."""
    num_blocks: int = field(default=0, init=False)
    blocks: list[int] = field(default_factory=list, init=False)
    """KV block numbers in order of position, where the pool keeps identities."""
    first_scheduled_at_s: float | None = field(default=None, init=False)
    first_token_at_s: float | None = field(default=None, init=False)
    last_token_at_s: float | None = field(default=None, init=False)
    max_itl_s: float = field(default=math.nan, init=False)
    """Longest gap between two tokens so far, seconds; NaN before the second token."""
    waiting_since_s: float = field(init=False)
    """When it last began to wait: its arrival or its last preemption."""
    waited_s: float = field(default=0.0, init=False)
    """Time spent waiting before that."""

    # What the core keeps of it: see `cbsim.core.layout.REQUEST`.
    job_length: float = field(init=False)
    think_s: float = field(default=0.0, init=False)
    source: int = field(default=0, init=False)
    stage: int = field(default=0, init=False)
    previous: int = field(default=-1, init=False)
    next_visit: int = field(default=-1, init=False)
    attempt: int = field(default=0, init=False)
    num_reroutes: int = field(default=0, init=False)
    user_number: int = field(default=0, init=False)
    route: int = field(default=0, init=False)
    rejection: int = field(default=0, init=False)
    first_link: int = field(default=0, init=False)
    end_link: int = field(default=0, init=False)
    preempted_in_call: int = field(default=0, init=False)
    num_swapped_blocks: int = field(default=0, init=False)
    num_launched_tokens: int = field(default=0, init=False)
    last_call: int = field(default=0, init=False)
    num_drafts: int = field(default=0, init=False)
    num_junction_tokens: int = field(default=0, init=False)
    place_in_line: int = field(default=0, init=False)
    resumes_at_call: int = field(default=0, init=False)
    samples: int = field(default=0, init=False)
    was_passed_over: int = field(default=0, init=False)
    replica: int = field(default=-1, init=False)
    affinity: int = field(default=-1, init=False)
    slot: int = field(default=-1, init=False)
    first_decode: int = field(default=-1, init=False)
    last_decode: int = field(default=-1, init=False)

    def __post_init__(self) -> None:
        self.prefill_until = self.num_prompt_tokens
        self.waiting_since_s = self.arrival_s
        self.job_length = float(self.num_output_tokens)

    @property
    def num_known_tokens(self) -> int:
        """Prompt and generated tokens whose values are known."""
        return self.num_prompt_tokens + self.num_generated_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether prompt (or, after a preemption, prompt and answer) tokens are still to be computed."""
        return self.num_computed_tokens < self.prefill_until

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}: {RequestState(self.state).name.lower()}, "
            f"computed {self.num_computed_tokens}, prompt {self.num_prompt_tokens}, "
            f"generated {self.num_generated_tokens}/{self.num_output_tokens})"
        )


def split_turns(requests: Iterable[Request]) -> tuple[list[Request], dict[int, Request]]:
    """Those that wait for no answer; and, by the `id()` of a request, the one that waits for its answer.

    `follows` of a request is the place, in `requests`, of the one that it waits for.
    """
    every = list(requests)
    following = {id(every[turn.follows]): turn for turn in every if turn.follows >= 0}
    return [request for request in every if request.follows < 0], following


BATCH_SIZE = 8192
"""Requests made from columns at a time: enough for numpy, little to keep in memory."""

IntColumn = NDArray[np.int64]
FloatColumn = NDArray[np.float64]
ObjectColumn = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Some requests of a workload: columns of equal length; a column that no request has is `None`."""

    number: IntColumn
    """Place in the source, from 0: a request without an id of its own is `r<number>`."""
    arrival_s: FloatColumn
    num_prompt_tokens: IntColumn
    num_output_tokens: IntColumn
    request_id: ObjectColumn | None = None
    priority: IntColumn | None = None
    session_id: ObjectColumn | None = None
    user: ObjectColumn | None = None
    deadline_s: FloatColumn | None = None
    """Seconds after the arrival by which the answer is due; NaN for none."""
    prompt: list[Segments | None] | None = None
    extra: list[Mapping[str, Any] | None] | None = None
    """See `Request.extra`."""
    follows: IntColumn | None = None
    """See `Request.follows`; a request stands behind the one that it follows, which no other follows."""
    delay_s: FloatColumn | None = None
    """See `Request.delay_s`."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, start: int, stop: int) -> RequestBatch:
        """The requests from `start` up to `stop`."""

        def cut(column: Any) -> Any:
            return None if column is None else column[start:stop]

        return RequestBatch(**{each.name: cut(getattr(self, each.name)) for each in fields(RequestBatch)})

    @property
    def named_by(self) -> IntColumn | ObjectColumn:
        """The column that tells the ids of the requests to `names_by`."""
        return self.number if self.request_id is None else self.request_id

    def names(self) -> list[str]:
        """The ids of the requests."""
        return names_by(self.named_by)

    def requests(self) -> Iterator[Request]:
        """New `Request` objects, with Python's own numbers."""
        given = [] if self.deadline_s is None else self.deadline_s.tolist()
        deadlines = [None if math.isnan(deadline_s) else deadline_s for deadline_s in given] or None
        return map(
            Request,
            self.names(),
            self.arrival_s.tolist(),
            self.num_prompt_tokens.tolist(),
            self.num_output_tokens.tolist(),
            repeat(0) if self.priority is None else self.priority.tolist(),
            *(
                repeat(None) if each is None else each
                for each in (self.session_id, self.user, deadlines, self.prompt, self.extra)
            ),
            repeat(-1) if self.follows is None else self.follows.tolist(),
            repeat(0.0) if self.delay_s is None else self.delay_s.tolist(),
        )


COLUMN_TYPES: dict[str, type] = {
    "request_id": object,
    "arrival_s": float,
    "num_prompt_tokens": np.int64,
    "num_output_tokens": np.int64,
    "priority": np.int64,
    "session_id": object,
    "user": object,
    "deadline_s": float,
}
"""The columns that a request has a value for, by its name for them; `prompt` and `extra` are lists."""


def names_by(column: IntColumn | ObjectColumn) -> list[str]:
    """The ids of requests by their numbers, or the ids themselves."""
    values: list[Any] = column.tolist()
    return [f"r{number}" for number in values] if column.dtype.kind == "i" else values


def batches_of(requests: Iterable[Request]) -> Iterator[RequestBatch]:
    """Requests as columns, `BATCH_SIZE` at a time."""
    rest = iter(requests)
    first = 0
    while rows := list(islice(rest, BATCH_SIZE)):
        columns: dict[str, Any] = {
            name: np.array([getattr(row, name) for row in rows], dtype)
            for name, dtype in COLUMN_TYPES.items()
        }
        number = np.arange(first, first + len(rows))
        prompts, extras = [row.prompt for row in rows], [row.extra for row in rows]
        waiting: dict[str, Any] = {}
        if any(row.follows >= 0 for row in rows):
            waiting = {
                name: np.array([getattr(row, name) for row in rows]) for name in ("follows", "delay_s")
            }
        yield RequestBatch(number, **columns, prompt=prompts, extra=extras, **waiting)
        first += len(rows)
