"""The world: the order of one instant, clients, timers and the end, through SimPy and by the core alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cluster.simpy_world import ARRIVAL, PROGRESS_EVERY, Engine, Instant, Router, World, make_router
from cbsim.core import layout
from cbsim.results.run_log import EVENTS, RunLog
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.simulation import simulate_core, stepwise
from cbsim.testing import Case
from cbsim.workload.request import Request, RequestState
from cbsim.workload.request_source import WorkloadConfig
from cbsim.workload.streams import ThinkTimes

ENGINES = pytest.mark.parametrize("engine", ["simpy", "interpreted"])


def row(
    name: str, arrival_s: float, num_prompt_tokens: int, num_output_tokens: int, **more: Any
) -> dict[str, Any]:
    return {
        "request_id": name,
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt_tokens,
        "num_output_tokens": num_output_tokens,
        **more,
    }


def run(
    engine: str,
    rows: Sequence[dict[str, Any]],
    *,
    kind: str = "vllm",
    router: Router | None = None,
    num_replicas: int = 1,
    think_time_s: float = 0.0,
    think_time_cv: float = 0.0,
    concurrency: int | None = None,
    stop_at_s: float | None = None,
    progress: Any = None,
    **scheduler: Any,
) -> RunLog:
    case = Case(
        requests=tuple(rows),
        settings={"async_scheduling": False, **scheduler},
        num_blocks=100,
        num_replicas=num_replicas,
        concurrency=concurrency,
    )
    setup = case.make_setup(SCHEDULERS.get(kind))
    think = {"think_time_s": think_time_s, "think_time_cv": think_time_cv}
    setup.workload.config = setup.workload.config.model_copy(update=think)
    setup = replace(setup, until_s=inf if stop_at_s is None else stop_at_s)
    if engine == "interpreted":
        return simulate_core(setup, engine)[0]
    world = stepwise(setup)
    World(
        setup.workload,
        world.replicas,
        router or make_router(layout.ROUND_ROBIN, 0),
        stop_at_s=stop_at_s,
        progress=progress,
    ).run()
    return stepwise_log(world, setup)


def events(log: RunLog) -> list[tuple[float, str, str]]:
    names = log.requests["request_id"]
    return [
        (time_s, names[request], EVENTS[code])
        for time_s, request, code in zip(
            log.events["time_s"], log.events["request"], log.events["event"], strict=True
        )
    ]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    now=st.floats(0, 1e7, allow_subnormal=False),
    ahead=st.one_of(st.floats(0, 1e7, allow_subnormal=False), st.floats(0, 1e-9, allow_subnormal=False)),
)
def test_an_event_comes_at_its_instant_to_the_last_bit(now: float, ahead: float) -> None:
    env = simpy.Environment(now)
    at_s = now + ahead
    env.run(Instant(env, at_s, ARRIVAL))
    assert env.now == at_s


@ENGINES
def test_at_one_instant_arrivals_come_before_results_and_results_before_decisions(
    engine: str,
) -> None:
    """b arrives as a's last step ends: it is there for the step decided then, in a's slot."""
    log = run(engine, [row("a", 0.0, 2, 2), row("b", 2.0, 2, 1)], max_num_seqs=1)
    assert events(log) == [
        (0.0, "a", "arrived"),
        (0.0, "a", "admitted"),
        (2.0, "b", "arrived"),
        (2.0, "a", "finished"),
        (2.0, "b", "admitted"),
        (3.0, "b", "finished"),
    ]


@ENGINES
def test_ties_go_by_the_order_of_the_workload(engine: str) -> None:
    rows = [row(name, 1.0, 2, 1) for name in "cab"]
    log = run(engine, rows, max_num_seqs=1)
    assert [name for _, name, event in events(log) if event == "admitted"] == ["c", "a", "b"]


@ENGINES
def test_idle_time_has_no_steps(engine: str) -> None:
    log = run(engine, [row("a", 3.0, 2, 2), row("b", 100.5, 2, 1)])
    assert log.steps["start_s"].tolist() == [3.0, 4.0, 100.5]
    assert log.end_s == 101.5


@ENGINES
def test_a_client_sends_its_next_request_when_the_last_one_ended(engine: str) -> None:
    """Two clients: a and b at 0; c when b ends, d when a ends; the workload's own times are not used."""
    rows = [row("a", 9.0, 2, 3), row("b", 9.0, 2, 1), row("c", 9.0, 2, 1), row("d", 9.0, 2, 1)]
    log = run(engine, rows, concurrency=2)
    assert log.requests["arrival_s"].tolist() == [0.0, 0.0, 1.0, 2.0]
    assert log.requests["finished_at_s"].tolist() == [3.0, 1.0, 2.0, 3.0]


@ENGINES
def test_clients_think_before_the_next_one(engine: str) -> None:
    rows = [row(name, 0.0, 2, 1) for name in "abc"]
    log = run(engine, rows, concurrency=1, think_time_s=0.25)
    assert log.requests["arrival_s"].tolist() == [0.0, 1.25, 2.5]


@ENGINES
def test_clients_that_think_unevenly_leave_their_step(engine: str) -> None:
    """Two clients with equal requests: each sends when its last one has ended and been thought about."""
    rows = [row(name, 0.0, 2, 1) for name in "abcdefgh"]
    log = run(engine, rows, concurrency=2, think_time_s=0.25, think_time_cv=1.0)
    arrived, finished = log.requests["arrival_s"], log.requests["finished_at_s"]
    think = ThinkTimes(WorkloadConfig(type="listed", think_time_s=0.25, think_time_cv=1.0), seed=0)
    ready = sorted(finished[index] + think.after(index) for index in range(6))
    assert arrived.tolist() == [0.0, 0.0, *ready]
    assert len(set(arrived.tolist())) == 7


@ENGINES
def test_a_rejected_request_does_not_hold_its_client(engine: str) -> None:
    rows = [row("a", 0.0, 5000, 1), row("b", 0.0, 2, 1)]
    log = run(engine, rows, concurrency=1)
    assert log.requests["state"].tolist() == [RequestState.REJECTED, RequestState.FINISHED]
    assert log.rejections == {0: "needs 1250 KV blocks, the cache has 100"}


@ENGINES
def test_an_idle_engine_is_asked_again_when_its_scheduler_wants(engine: str) -> None:
    """A static batch waits for 2.5 s; then nothing else happens."""
    log = run(engine, [row("a", 1.0, 2, 1)], kind="static", batch_timeout_s=2.5, max_model_len=8)
    assert log.steps["start_s"].tolist() == [3.5]


@ENGINES
def test_a_run_stopped_early_says_who_had_not_ended(engine: str) -> None:
    rows = [row("a", 0.0, 2, 2), row("b", 1.0, 2, 9), row("c", 50.0, 2, 1)]
    log = run(engine, rows, stop_at_s=4.5)
    assert log.end_s == 4.5
    assert log.requests["request_id"].tolist() == ["a", "b"]
    assert log.requests["state"].tolist() == [RequestState.FINISHED, RequestState.UNFINISHED]
    # b: its prompt ended at 2, then tokens at 3 and 4; the step that would end at 5 is not there.
    assert log.requests["num_generated_tokens"].tolist() == [2, 3]
    assert np.isnan(log.requests["finished_at_s"][1])
    assert (log.steps["start_s"] + log.steps["duration_s"]).max() == 4.0


@ENGINES
def test_a_run_that_is_done_before_its_stop_ends_with_the_last_result(engine: str) -> None:
    log = run(engine, [row("a", 0.0, 2, 2)], stop_at_s=4.5)
    assert log.end_s == 2.0


def test_a_router_sees_the_replicas_before_any_step_that_ends_at_the_instant() -> None:
    """a ends at 1.0: at that instant it is still there, a moment later it is not."""
    seen: list[tuple[int, ...]] = []

    def router(request: Request, engines: Sequence[Engine]) -> int:
        """In turn, noting how many requests each replica has."""
        seen.append(tuple(engine.num_outstanding for engine in engines))
        return (len(seen) - 1) % len(engines)

    rows = [row("a", 0.0, 2, 1), row("b", 1.0, 2, 5), row("c", 1.5, 2, 1), row("d", 2.5, 2, 1)]
    run("simpy", rows, router=router, num_replicas=2)
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 1)]


@ENGINES
def test_replicas_do_not_wait_for_each_other(engine: str) -> None:
    rows = [row("a", 0.0, 2, 3), row("b", 0.5, 2, 3)]
    log = run(engine, rows, num_replicas=2)
    assert log.requests["replica"].tolist() == [0, 1]
    assert log.requests["finished_at_s"].tolist() == [3.0, 3.5]
    assert log.steps["start_s"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_progress_tells_arrivals_and_the_time() -> None:
    told: list[tuple[int, float]] = []
    rows = [row(f"r{i}", float(i), 1, 1) for i in range(PROGRESS_EVERY + 1)]
    run("simpy", rows, progress=lambda num, now: told.append((num, now)))
    assert told == [(0, 0.0), (PROGRESS_EVERY, float(PROGRESS_EVERY))]
