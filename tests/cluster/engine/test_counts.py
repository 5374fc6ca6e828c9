"""What the fast engine is for, in counts: SimPy events and decisions grow with requests, not with steps."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.cluster.engine.engine_interface import Engine
from cbsim.cluster.engine.fast import FastEngine
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.studies.run import collect
from cbsim.testing import Case
from tests.cluster.engine.twins import ROUTERS, Setting, request

NUM_REQUESTS = 40
START_AND_END = 2
"""SimPy events of the one process that lets requests arrive."""


def setting(num_output: int, kind: str = "vllm", router: str = "round_robin", **further: Any) -> Setting:
    """Requests that come one by one, are prefilled in one step each, and overlap."""
    rows = tuple(request(i, 5.0 * (i + 1), 8, num_output) for i in range(NUM_REQUESTS))
    return Setting(kind, Case(rows, num_blocks=20_000, **further), router=router)


def count(drawn: Setting, engine_class: type[Engine]) -> tuple[int, int, int]:
    """Run: SimPy events, calls of the scheduler, and steps."""
    world, recorder = drawn.make_world(engine_class)
    num_events = num_calls = 0
    schedule = world.env.schedule

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal num_events
        num_events += 1
        schedule(*args, **kwargs)

    world.env.schedule = counted  # type: ignore[method-assign]
    for engine in world.engines:
        plan = engine.scheduler.plan

        def asked(*args: Any, plan: Any = plan) -> Any:
            nonlocal num_calls
            num_calls += 1
            return plan(*args)

        engine.scheduler.plan = asked  # type: ignore[method-assign]
    world.run()
    return num_events, num_calls, len(collect(recorder, world.engines, world.end_s).steps["step"])


@pytest.mark.parametrize("num_replicas", [1, 4])
@pytest.mark.parametrize("router", ROUTERS)
def test_there_is_one_simpy_event_an_arrival(router: str, num_replicas: int) -> None:
    for num_output in (2, 400):
        drawn = setting(num_output, router=router, num_replicas=num_replicas)
        num_events, _, num_steps = count(drawn, FastEngine)
        assert num_events == NUM_REQUESTS + START_AND_END
    assert num_steps > 400
    assert count(drawn, ReferenceEngine)[0] > num_steps


def test_requests_of_one_instant_share_an_event() -> None:
    rows = tuple(request(i, 1.0 + i // 10, 8, 5) for i in range(NUM_REQUESTS))
    assert count(Setting("vllm", Case(rows, num_blocks=1000)), FastEngine)[0] == 4 + START_AND_END


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["continuous", "chunked_prefill", "preemptive", "vllm"])
def test_the_scheduler_is_asked_by_request_and_not_by_step(kind: str, is_async: bool) -> None:
    """At its arrival, and once more if its end leaves nobody: then there is nothing to do."""
    limits = {"async_scheduling": is_async}
    calls = [count(setting(n, kind, settings=limits), FastEngine)[1:] for n in (100, 400)]
    assert max(num_calls for num_calls, _ in calls) <= 2 * NUM_REQUESTS
    assert calls[1][1] > 500
    num_calls, num_steps = count(setting(400, kind, settings=limits), ReferenceEngine)[1:]
    assert num_calls >= num_steps


@pytest.mark.parametrize("kind", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
def test_steps_decided_one_by_one_against_steps_in_stretches(kind: str) -> None:
    """A stretch ends for a reason: somebody arrives, is prefilled or ends (here no blocks run out).

    After each of these the scheduler is asked for at most one step, and the next stretch begins behind it.
    """
    world, _ = setting(400, kind, settings={"async_scheduling": False}).make_world(FastEngine)
    world.run()
    engine = world.engines[0]
    assert isinstance(engine, FastEngine)
    num_steps = len(engine.steps.duration_s)
    num_prefill_steps = int((engine.steps.runs.to_columns()["num_prefill_tokens"] > 0).sum())
    num_arrivals = num_ends = NUM_REQUESTS
    assert num_steps > 400
    assert len(engine.steps.runs) <= 2 * (num_prefill_steps + num_arrivals + num_ends)


def test_a_thousand_tokens_are_one_row() -> None:
    """One request, nobody else: the prompt's step, a stretch, and nothing more."""
    world, _ = Setting("vllm", Case((request(0, 0.0, 8, 1001),), num_blocks=1000)).make_world(FastEngine)
    world.run()
    engine = world.engines[0]
    assert isinstance(engine, FastEngine)
    assert len(engine.steps.duration_s) == 1001
    assert engine.steps.runs.to_columns()["count"].tolist() == [1, 1000]
