"""The record of a run of the core as a `RunLog`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.records import pieces
from cbsim.core import layout
from cbsim.core.loop import close_decodes
from cbsim.core.record import Record, RequestColumns, StepColumns
from cbsim.core.stepping import StepwiseWorld
from cbsim.results.latency import request_parts
from cbsim.results.run_log import Deferred, RunLog, Slices, event_columns
from cbsim.results.tables import step_columns
from cbsim.studies.setup import Setup
from cbsim.workload.request import RequestState

Array = NDArray[Any]

ENDED = (layout.FINISHED, layout.REJECTED, layout.FAILED)
LEFT = (layout.FINISHED, layout.HANDED_OVER)


def stepwise_log(world: StepwiseWorld, setup: Setup) -> RunLog:
    """The record of a stepwise run that has ended."""
    for request in world.requests:
        close_decodes(world.replicas[max(request.replica, 0)].records, request)
    answers_first = setup.is_closed or any(request.follows >= 0 for request in world.requests)
    record, own, planned = world.record(), world.own_rows(), world.records.planned
    rows = RequestColumns(world.request_rows(), record)
    num_output_tokens = None
    if setup.comes_again:
        output = [planned[visit.source].num_output_tokens for visit in world.requests]
        num_output_tokens = np.array(output, "i4")
    return log_of(
        rows,
        lambda: ids_of(world)[rows["previous"] == layout.NOBODY],
        own,
        record,
        setup,
        answers_first=answers_first,
        num_output_tokens=num_output_tokens,
    )


def ids_of(world: StepwiseWorld) -> NDArray[np.object_]:
    """The names of its requests, by row."""
    ids = np.empty(len(world.requests), dtype=object)
    ids[:] = [request.request_id for request in world.requests]
    return ids


def log_of(
    rows: RequestColumns,
    names_of: Callable[[], NDArray[np.object_]],
    own: Array,
    record: Record,
    setup: Setup,
    *,
    answers_first: bool,
    num_output_tokens: Array | None = None,
    from_tiers: Mapping[str, int] | None = None,
) -> RunLog:
    """The core's record as a `RunLog`, as results need it; `rows`: its visits, as they came.

    `answers_first`: whether answers make clients send, so that at one instant they come before arrivals.
    `num_output_tokens`, of the request that a row is a visit of, where requests are handed over.
    `from_tiers`: tokens that each tier of KV brought.
    """
    until_s, visits = setup.until_s, Visits.of(rows)
    state = visits.of_last(rows["state"])
    known: dict[str, Array] = {
        **{name: visits.of_first(rows[name]) for name in OF_FIRST_VISIT},
        "first_scheduled_at_s": visits.earliest(rows["first_scheduled_at_s"]),
        **{name: visits.of_last(rows[name]) for name in OF_LAST_VISIT},
        "finished_at_s": np.where(state == layout.FINISHED, visits.of_last(rows["last_token_at_s"]), np.nan),
        "state": np.where(np.isin(state, ENDED), state, RequestState.UNFINISHED),
        "num_preemptions": visits.total(rows["num_preemptions"]),
        "num_generated_tokens": visits.total(visits.kept_tokens(rows)),
    }
    if num_output_tokens is not None:
        known["num_output_tokens"] = visits.of_first(num_output_tokens)
    requests = Deferred(lambda: {"request_id": names_of()}, known)
    pool_of = np.repeat(np.arange(len(setup.pools)), [pool.num_replicas for pool in setup.pools])
    rejections = {}
    rejected = np.flatnonzero(state == layout.REJECTED)
    last_visits = rows[visits.last[rejected]] if len(rejected) else ()
    for request, last in zip(rejected.tolist(), last_visits, strict=True):
        pool = setup.pools[pool_of[last["replica"]]]
        is_full = last["rejection"] == layout.QUEUES_FULL
        rejections[request] = (
            f"every replica has its queue full (max_queue: {setup.router.max_queue}): HTTP 429"
            if is_full
            else setup.rung.rejection(last, pool.numbers, pool.means)
        )
    columns_of = partial(visits.columns, record)
    slices = Slices(*(Deferred(partial(columns_of, table)) for table in ("prefills", "decodes")))
    has_drafts = setup.scheduler.drafting is not None
    num_blocks = np.array([setup.pools[pool].means.num_blocks for pool in pool_of])
    costs = [setup.pools[pool].cost for pool in pool_of]
    names = step_columns(has_drafts=has_drafts, has_window=setup.window > 0)
    events = Deferred(
        lambda: event_columns(requests, columns_of("events"), rejections, answers_first=answers_first)
    )
    steps = StepColumns(record, names, num_blocks)
    # Parts of latencies take steps to follow one another, each with a token of a request at most, and that a
    # request comes to a replica once.
    comes_back = bool(rows["attempt"].any() or rows["num_reroutes"].any())
    is_shared = has_drafts or comes_back or setup.num_stages > 1 or setup.has_ranks
    parts_of = partial(
        request_parts,
        requests,
        events,
        record,
        costs,
        requests_of=None if visits.are_single else visits.request,
        is_staged=setup.is_staged,
        has_window=setup.window > 0,
    )
    batches = None
    if setup.with_batches:
        columns = columns_of("batches")
        order = np.lexsort((columns["position"], columns["replica"], columns["start_s"]))
        batches = {name: column[order] for name, column in columns.items()}
    end_s = max(float(own["last_end_s"].max()), float(rows["arrival_s"].max(initial=0.0)))
    if until_s < inf and own["num_outstanding"].any():
        end_s = until_s
    return RunLog(
        requests=requests,
        steps=steps,
        events=events,
        batches=batches,
        gaps=Gaps(record),
        rejections=rejections,
        num_tokens_recomputed=int(own["num_tokens_recomputed"].sum()),
        num_prompt_tokens_queried=int(own["num_tokens_queried"].sum()),
        num_prompt_tokens_hit=int(own["num_tokens_hit"].sum()),
        num_padding_tokens=int(own["num_padding_tokens"].sum()),
        end_s=end_s,
        front_end_s=setup.front_end_s,
        slices=slices,
        has_drafts=has_drafts,
        parts=None if is_shared else Deferred(parts_of),
        visits=visits.table(rows, record) if setup.comes_again else None,
        changes=record.columns("changes") if setup.changes is not None else None,
        losses=visits.losses(rows),
        num_tokens_from_tiers=dict(from_tiers or {}),
        pool_of=pool_of if setup.others or setup.changes else None,
        pools=tuple((pool.pool_name, pool.role) for pool in setup.pools),
    )


OF_FIRST_VISIT = ("arrival_s", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "priority")
OF_LAST_VISIT = ("replica", "first_token_at_s", "max_itl_s")
"""Columns of requests that are those of their records."""
LOSSES = {
    "num_lost_to_failures": (layout.REPLICA_LOST, layout.KV_LOST),
    "num_given_back": (layout.PREEMPTED_THERE,),
    "num_timed_out": (layout.TIMED_OUT,),
    "num_refused": (layout.QUEUES_FULL,),
}
"""Counts of visits that ended before their time, by why."""


@dataclass(frozen=True, slots=True)
class Visits:
    """Which records are visits of one request: rows of the first and the last, the request of each row."""

    first: Array
    last: Array
    request: Array
    handed_over: Array
    """By row, whether another replica went on."""

    @classmethod
    def of(cls, rows: RequestColumns) -> Visits:
        """The visits that `REQUEST` records stand for, in order of arrival."""
        previous = rows["previous"]
        first = np.flatnonzero(previous == layout.NOBODY).astype("i4")
        last = request = first
        if len(first) < len(previous):
            request = np.searchsorted(first, _ends_of(previous))
            last = _ends_of(rows["next_visit"])[first]
        return cls(first, last, request, rows["state"] == layout.HANDED_OVER)

    @property
    def are_single(self) -> bool:
        """Whether each is the only one of its request."""
        return len(self.first) == len(self.request)

    def of_first(self, column: Array) -> Array:
        """By request, what a column of visits says of the first."""
        return column if self.are_single else column[self.first]

    def of_last(self, column: Array) -> Array:
        """By request, what a column of visits says of the last."""
        return column if self.are_single else column[self.last]

    def total(self, column: Array) -> Array:
        """By request, the sum of a column of visits."""
        if self.are_single:
            return column
        return np.bincount(self.request, column, len(self.first)).astype(column.dtype)

    def earliest(self, instants: Array) -> Array:
        """By request, the instant (seconds) of its first visit that has one; NaN if none has.

        `instants` are those of visits.
        """
        if self.are_single:
            return instants
        known = np.flatnonzero(~np.isnan(instants))[::-1]
        found = np.full(len(self.first), np.nan)
        found[self.request[known]] = instants[known]
        return found

    def kept_tokens(self, rows: RequestColumns) -> Array:
        """Tokens that each visit brought, but for those that clients threw away as they started anew."""
        if self.are_single:
            column: Array = rows["num_generated_tokens"]
            return column
        attempt = rows["attempt"]
        return np.where(attempt == attempt[self.last][self.request], rows["num_generated_tokens"], 0)

    def losses(self, rows: RequestColumns) -> dict[str, int]:
        """How many visits ended before their time, by why; and how many followed."""
        rejection = rows["rejection"]
        if not rejection.any():
            return {}
        counts = {name: int(np.isin(rejection, codes).sum()) for name, codes in LOSSES.items()}
        further = {"num_reroutes": "num_reroutes", "num_retries": "attempt"}
        counts |= {name: int(self.of_last(rows[field]).sum()) for name, field in further.items()}
        return {name: count for name, count in counts.items() if count}

    def columns(self, record: Record, table: str) -> dict[str, Array]:
        """A table of the record, in which requests are named instead of their visits."""
        columns = record.columns(table)
        if self.are_single:
            return columns
        row = columns["request"]
        if table == "events":
            over = (columns["event"] == layout.FINISHED_NOW) & self.handed_over[row]
            columns["event"] = np.where(over, layout.HANDED_OVER_NOW, columns["event"])
        return columns | {"request": self.request[row]}

    def table(self, rows: RequestColumns, record: Record) -> dict[str, Array]:
        """`RunLog.visits`."""
        names = ("replica", "arrival_s", "first_scheduled_at_s", "num_prompt_tokens", "num_generated_tokens")
        kept = {name: rows[name] for name in (*names, "state")}
        state = kept["state"]
        left_at_s = np.where(np.isin(state, LEFT), rows["last_token_at_s"], np.nan)
        events = {name: record.column("events", name) for name in ("event", "request", "time_s")}
        has_failed = events["event"] == layout.FAILED_NOW
        left_at_s[events["request"][has_failed]] = events["time_s"][has_failed]
        return {
            "request": self.request,
            "replica": kept["replica"],
            "arrived_at_s": kept["arrival_s"],
            "admitted_at_s": kept["first_scheduled_at_s"],
            "left_at_s": np.where(state == layout.REJECTED, kept["arrival_s"], left_at_s),
            "num_prefill_tokens": kept["num_prompt_tokens"],
            "num_output_tokens": kept["num_generated_tokens"],
            "state": np.where(np.isin(state, (*ENDED, layout.HANDED_OVER)), state, RequestState.UNFINISHED),
        }


def _ends_of(following: Array) -> Array:
    """Where each row's way ends that leads from row to row; `NOBODY` ends one."""
    ends = np.where(following == layout.NOBODY, np.arange(len(following)), following)
    while not np.array_equal(further := ends[ends], ends):
        ends = further
    return ends


class Gaps:
    """`RunLog.gaps`: the gaps between tokens as pieces `(seconds, how often)`, read when asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for gap_s, count in self._record.pieces("steps", "gap_s", "num_usual_gaps"):
            for rows in pieces(len(count)):
                is_gap = count[rows] > 0
                yield gap_s[rows][is_gap], count[rows][is_gap]
        gap_s = self._record.column("gaps", "gap_s")
        yield gap_s, np.ones(len(gap_s), dtype=np.int64)
        num_joint = sum(int(count.sum()) for (count,) in self._record.pieces("steps", "num_joint_tokens"))
        yield np.zeros(int(num_joint > 0)), np.full(int(num_joint > 0), num_joint)
