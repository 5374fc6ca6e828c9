"""Machine: a scheduler's rules, a cost model's formula and the step loop, put together at either speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import numpy as np

from cbsim.base.binding import Bound
from cbsim.base.records import packed, plain, rows_on_demand
from cbsim.core import layout
from cbsim.core.feed import ARRIVAL, DECISION, DONE, FAULT, FULL, STEP_END
from cbsim.core.layout import World, with_replicas
from cbsim.core.record import Record
from cbsim.core.request_rows import RequestRows

Progress = Callable[[int, float], None]
"""Called now and then with the number of requests that have arrived and the simulated time, seconds."""
Watch = Callable[[World], Callable[[int], None]]
"""Takes a world as it is run, arrays or lists of objects. Gives what is called with each `ARRIVAL`,
`DECISION` and `STEP_END` for which `feed.run` returns."""


class RuleFault(Exception):
    """A rule did what it must not, at `now`, seconds: `code` says what (see `cbsim.core.layout`).

    `request` is its row or `NOBODY`, `num_asked` the tokens or KV blocks that it asked for, `num_allowed` how
    many there could have been, `budget` the tokens that the step could still take.
    """

    def __init__(
        self, replica: int, now: float, code: int, request: int, num_asked: int, num_allowed: int, budget: int
    ) -> None:
        # All of them: SimPy makes a copy from `args`.
        super().__init__(replica, now, code, request, num_asked, num_allowed, budget)
        self.replica, self.now, self.code, self.request = replica, now, code, request
        self.num_asked, self.num_allowed, self.budget = num_asked, num_allowed, budget


@dataclass(frozen=True)
class Parts:
    """What differs between two runs of the core: a scheduler's rules, by name, and the seconds of a step."""

    rules: Mapping[str, Callable[..., Any]]
    step_s: Callable[..., Any]
    instead: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    """Rules that others stand for, such as those of what a run does without."""

    def bound(self, function: Callable[..., Any]) -> Bound:
        """A function of the core in which calls of these names reach these rules and this price."""
        return Bound(function, {**self.rules, "step_s": self.step_s}, self.instead)


def drive(
    world: World,
    bound: Bound,
    record: Record,
    rows: RequestRows,
    *,
    is_compiled: bool,
    until_s: float = inf,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> None:
    """Run a world of arrays to its end or to an instant; `rows` are those of its requests.

    What came of it is in the record and in the arrays, at either speed; of many requests in the record alone.
    Raises `RuleFault`, and what the watch does. Without a `watch` the world must be `UNWATCHED`.
    """
    end = len(world.requests)
    rows.make()
    as_run = world if is_compiled else interpreted(world)
    run = (
        bound.compiled.bound_to(world, end, until_s)
        if is_compiled
        else partial(bound.interpreted, as_run, end, until_s)
    )
    try:
        tell = None if watch is None else watch(as_run)
        while (status := run()) != DONE:
            if tell is not None and status in (ARRIVAL, DECISION, STEP_END):
                tell(status)
                continue
            if status == FULL and world.clients["num_sent"] == world.clients["num_made"]:
                rows.write_down(record)
                rows.make()
                continue
            _empty_log(as_run, record, progress)
            if status == FAULT:
                raise _fault(as_run)
        _empty_log(as_run, record, progress)
    finally:
        if as_run is not world:
            write_back(as_run, world)
    _close_decodes(rows.sent, record)
    rows.write_down(record, has_ended=True)
    record.close()


def _empty_log(world: World, record: Record, progress: Progress | None) -> None:
    record.take(world.log)
    if progress is not None:
        ends_s = [float(_field(own, "last_end_s")) for own in world.own]
        progress(int(_field(world.clients, "num_sent")), max(ends_s))


def interpreted(world: World) -> World:
    """A world's records as lists of objects; of KV blocks, there may be millions, when they are used."""
    names = ("blocks", "keys", "tier_blocks", "tier_keys")
    columns = ("num_prompt_tokens", "num_output_tokens")
    num_tokens = sum(rows[name].sum() for rows in (world.requests, world.planned) for name in columns)
    num_used = num_tokens / world.own["block_size"].min()
    on_demand: dict[str, Any] = {name: rows_on_demand(getattr(world, name), num_used) for name in names}
    later: dict[str, Any] = dict.fromkeys(names, ())
    others = plain(world._replace(replicas=(), **later))
    return with_replicas(others._replace(**on_demand))


def write_back(objects: World, world: World) -> None:
    """Copy what happened to requests and replicas from lists of objects into a world's arrays."""
    for rows, into in (
        (objects.requests, world.requests),
        (objects.own, world.own),
        (objects.tiers, world.tiers),
    ):
        into[...] = packed(rows, into.dtype)
    for name in world.clients.dtype.names or ():
        world.clients[name] = getattr(objects.clients, name)


def _close_decodes(requests: Any, record: Record) -> None:
    """Write down the runs of decodes of requests that were still decoding when the run was stopped."""
    left = requests[requests["last_decode"] != layout.NOBODY]
    rows = np.zeros(len(left), layout.DECODES_ROW)
    for name, of in (
        ("replica", "replica"),
        ("request", "index"),
        ("first_step", "first_decode"),
        ("last_step", "last_decode"),
    ):
        rows[name] = left[of]
    if len(rows):
        record.add("decodes", rows)


def _fault(world: Any) -> RuleFault:
    for own in world.own:
        if int(_field(own, "fault")) != layout.NO_FAULT:
            return fault_of(own, float(_field(world.clients, "now")))
    raise AssertionError("the core told a fault that no replica has")


def fault_of(own: Any, now: float) -> RuleFault:
    """What a replica's records say that a rule did."""
    names = ("fault", "fault_request", "fault_tokens", "fault_limit", "fault_budget")
    return RuleFault(int(_field(own, "replica")), now, *(int(_field(own, name)) for name in names))


def _field(row: Any, name: str) -> Any:
    return row[name] if isinstance(row, np.void) else getattr(row, name)
