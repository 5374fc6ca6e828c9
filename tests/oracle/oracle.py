"""The engine's loop and its clock around the scheduler (E, Q2), and rows in the recordings' words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.oracle.request import Request, make_requests
from tests.oracle.results import take_results
from tests.oracle.scheduler import Scheduler
from tests.oracle.settings import Settings, settings_of
from tests.oracle.step import Row, Step

MAX_CALLS = 20_000


class NeverEndsError(Exception):
    """Requests wait, and no step will ever finish them."""


def replay(
    settings: Settings, rows: Sequence[Mapping[str, Any]], duration: Callable[[Step], float]
) -> tuple[list[Step], list[Request]]:
    """Every call that did or found anything, in order, and the requests as they ended up.

    `duration` says how many seconds a step takes in all stages of a pipeline together.
    """
    scheduler = Scheduler(settings)
    pool, calls = scheduler.pool, scheduler.under_way
    requests = make_requests(rows)
    most = max(len(request.prompt) + request.num_output - 1 for request in requests)
    if None in pool.windows and -(-most // max(pool.sizes)) > len(pool.blocks):
        raise NeverEndsError("a request outgrows all blocks")
    stages = [0.0] * settings.pipeline_parallel_size
    arrivals, steps, now = list(requests), [], 0.0
    while arrivals or scheduler.has_requests or calls:
        while arrivals and arrivals[0].arrival <= now:
            scheduler.arrive(arrivals.pop(0))
        if scheduler.has_requests:
            step = scheduler.call(now)
            if scheduler.num_calls > MAX_CALLS:
                raise NeverEndsError("there is no end to it")
            launch(step, stages, duration)
            calls.append(step)
            if step.has_changed:
                steps.append(step)
            if len(calls) < settings.num_calls:  # E3
                continue
        if not calls:
            now = arrivals[0].arrival
            continue
        oldest = calls.pop(0)
        now = now if oldest.end is None else oldest.end
        if oldest.entries or oldest.received or oldest.sent:
            oldest.end = now
            take_results(scheduler, oldest, now)
        if not any(call.has_changed for call in [oldest, *calls]):  # E4
            later = [request.arrival for request in arrivals[:1]]
            later += [end for end, _ in (*scheduler.loads, *scheduler.sends)]
            if not later and scheduler.has_requests:
                raise NeverEndsError(f"nothing can be scheduled at {now}")
            now = min(later, default=now)
    return steps, requests


def launch(step: Step, stages: list[float], duration: Callable[[Step], float]) -> None:
    """Set when it runs; `stages` are the instants from which those of the pipeline are free (A1, Q2)."""
    if step.entries:
        step.duration = duration(step)
        step.start = step.end = max(step.scheduled_at, stages[0])
        for number, free_at in enumerate(stages):
            step.end = stages[number] = max(step.end, free_at) + step.duration / len(stages)


def replay_case(case: Mapping[str, Any]) -> list[Row]:
    """The rows of a recorded case, with the recording's keys and in its words."""
    settings = settings_of(case["config"])
    steps, _ = replay(settings, case["requests"], lambda _: float(settings.pipeline_parallel_size))
    if "arrival_s" in case["requests"][0]:
        rows = [{"scheduled_at": s.scheduled_at, "start": s.start, "end": s.end} | s.row for s in steps]
    else:
        rows = with_idle_seconds(steps)
    return [recorded({"step": n} | row, settings, case["detail"]) for n, row in enumerate(rows)]


def with_idle_seconds(steps: list[Step]) -> list[Row]:
    """The rows of steps of a second each, and between them a row for each second without one."""
    rows: list[Row] = []
    idle: Row = {"sched": [], "running": 0, "waiting": 0, "used": 0, "used_end": 0, "cached_free_end": 0}
    for step in steps:
        while len(rows) != step.start:
            rows.append(idle | {"running_q": [], "waiting_q": [], "blocks": {}})
        rows.append(step.row)
        idle["cached_free_end"] = step.row["cached_free_end"]
    return rows


ALWAYS = {"step", "scheduled_at", "start", "end", "sched", "running", "waiting", "used", "used_end"}
DETAILS = {"running_q", "waiting_q", "blocks"}


def recorded(row: Row, settings: Settings, has_detail: bool) -> Row:
    """A row without the keys that a recording leaves out."""
    kept = ALWAYS | {key for key in row.keys() - DETAILS - {"cached_free_end"} if row[key]}
    if has_detail:
        kept |= DETAILS
    if has_detail and settings.enable_prefix_caching:
        kept.add("cached_free_end")
    return {key: value for key, value in row.items() if key in kept}
