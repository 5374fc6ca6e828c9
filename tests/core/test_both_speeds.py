"""The core compiled equals the core interpreted equals its steps gone through by SimPy, to the last bit."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from cbsim.base import records
from cbsim.base.binding import can_compile
from cbsim.core import feed
from cbsim.schedulers import SCHEDULERS
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import simulate_core
from cbsim.testing import Case
from tests.core.drawn import SIMPY_ROUTERS, Setting, draw, request
from tests.core.runs import assert_same, raw_differences, run, unread

NUM_CASES = int(os.environ.get("CBSIM_NUM_DRAWN_CASES", "1000"))
"""For each scheduler; `CBSIM_NUM_DRAWN_CASES=20000` makes a campaign of it."""
WHOLE_LOG_EVERY = 25
KINDS = SCHEDULERS.builtin_names()
EACH_KIND = [pytest.param(kind, marks=pytest.mark.xdist_group(f"core-{kind}")) for kind in KINDS]
"""Tests of one scheduler run in one process, which compiles it once."""
INTERPRETED = ("interpreted", "simpy")
ENGINES = ("compiled", *INTERPRETED) if can_compile() else INTERPRETED


@pytest.mark.parametrize("kind", EACH_KIND)
def test_on_drawn_settings(kind: str) -> None:
    """All options, routers, closed loops and early ends; compared are the core's own tables."""
    num_preemptions = num_hit = num_closed = num_waiting = 0
    with unread():
        for seed in range(NUM_CASES):
            setting = draw(seed, kind)
            setup = setting.make_setup()
            engines = INTERPRETED if setting.cost == "irregular" else ENGINES
            # Every third one through SimPy, which takes longest.
            first, *others = engines if seed % 3 == 0 or len(engines) == 2 else engines[:2]
            ended: Any = run(setup, first)
            for engine in others:
                assert raw_differences(ended, run(setup, engine)) == [], (engine, repr(setting))  # type: ignore[arg-type]
            num_preemptions += int(ended.requests["num_preemptions"].sum())
            num_hit += int(ended.own["num_tokens_hit"].sum())
            num_closed += setup.is_closed
            num_waiting += any("follows" in row for row in setting.case.requests)
    assert num_waiting > NUM_CASES / 6
    assert num_closed > NUM_CASES / 5
    if kind in ("preemptive", "vllm"):
        assert num_preemptions > NUM_CASES / 3, "the cases must be tight enough to tell anything"
        assert num_hit > NUM_CASES


@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_blocks_made_on_demand_are_as_those_made_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with unread():
        for seed in range(60):
            setup = draw(seed, kind).make_setup()
            at_once: Any = run(setup, "interpreted")
            with monkeypatch.context() as patched:
                patched.setattr(records, "MANY", 0)
                assert raw_differences(at_once, run(setup, "interpreted")) == [], seed  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", EACH_KIND)
def test_whole_logs_with_batches(kind: str) -> None:
    for seed in range(0, NUM_CASES, WHOLE_LOG_EVERY):
        setting = draw(seed, kind)
        engines = INTERPRETED if setting.cost == "irregular" else ENGINES
        assert_same(setting.make_setup(with_batches=True), engines)


PRICED: dict[str, dict[str, Any]] = {
    "roofline": {
        "scheduler": {"type": "preemptive", "preemption": "cheaper"},
        "cost_model": {"type": "roofline"},
        "kv_cache": {"num_blocks": 260},
    },
    "profile": {
        "scheduler": {"type": "vllm"},
        "cost_model": {"type": "profile", "profile": "h200/llama-3-8b"},
    },
}


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.parametrize("name", PRICED)
def test_with_costs_of_real_machines(name: str) -> None:
    workload = {
        "type": "synthetic",
        "num_requests": 200,
        "arrivals": {"type": "poisson", "rate_per_s": 30.0},
        "prompt_tokens": {"type": "lognormal", "median": 300, "sigma": 1.0, "max": 3000},
        "output_tokens": {"type": "lognormal", "median": 40, "sigma": 0.8, "max": 200},
    }
    experiment = Experiment.from_mapping({"model": "llama-3-8b", "workload": workload, **PRICED[name]})
    setup = setup_of(experiment, make_workload(experiment), make_cost_model(experiment))
    log = assert_same(setup, ENGINES)
    assert len(log.steps["step"]) > 200
    if name == "roofline":
        assert log.requests["num_preemptions"].sum() > 10


@pytest.mark.parametrize("router", SIMPY_ROUTERS)
@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_with_every_router(kind: str, router: str) -> None:
    """Replicas end steps at the very instants at which requests are routed by what they hold."""
    rows = tuple(
        request(i, i / 2, 3 + i % 7, 2 + i % 11, session_id=f"s{i % 4}" if i % 3 else None) for i in range(60)
    )
    case = Case(rows, {"max_num_seqs": 4, "max_tokens_per_step": 16}, num_blocks=12, num_replicas=3)
    log = assert_same(Setting(kind, case, router=router).make_setup(), ENGINES)
    assert set(log.requests["replica"]) == {0, 1, 2}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["continuous", "chunked_prefill", "preemptive", "vllm"])
def test_with_arrivals_on_every_step_boundary(kind: str, is_async: bool) -> None:
    """A long answer runs alone; each other request arrives at the very end of some step."""
    rows = (request(0, 0.0, 4, 120), *(request(i, 3.0 * i, 2, 1 + i % 3) for i in range(1, 40)))
    case = Case(rows, {"async_scheduling": is_async}, num_blocks=200)
    log = assert_same(Setting(kind, case).make_setup(), ENGINES)
    starts, ends = log.steps["start_s"], log.steps["start_s"] + log.steps["duration_s"]
    assert set(log.requests["arrival_s"][1:]) <= set(starts) & set(ends)


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_under_thrash(kind: str, prefix_caching: bool) -> None:
    """Twice as much as fits."""
    rows = tuple(request(i, i / 8, 5 + i % 9, 20 + i % 13) for i in range(40))
    limits = {"max_num_seqs": 8, "max_tokens_per_step": 32}
    case = Case(rows, limits, num_blocks=24, prefix_caching=prefix_caching)
    log = assert_same(Setting(kind, case).make_setup(), ENGINES)
    assert log.requests["num_preemptions"].sum() > 40


@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_when_a_blocked_head_gets_room_by_an_answer_under_way(kind: str) -> None:
    """The last prompt holds the answer that is being made: a block that fills is one more to share."""
    rows = (
        request(0, 0.0, 4, 40, prompt=(("s", 4),)),
        request(1, 0.0, 19, 24),
        request(2, 2.0, 29, 2, prompt=(("s", 4), ("o:r0", 25))),
    )
    limits = {"async_scheduling": False, "max_num_seqs": 8}
    case = Case(rows, limits, num_blocks=14, prefix_caching=True)
    log = assert_same(Setting(kind, case).make_setup(), INTERPRETED)
    assert log.requests["first_scheduled_at_s"][2] < log.requests["finished_at_s"][:2].min()


def test_when_a_blocked_head_gives_way_as_time_goes_by() -> None:
    """By priority r2 comes first and lacks blocks; after 3 s r1 is aged, goes first, and fits."""
    rows = (
        request(0, 0.0, 4, 28, priority=0),
        request(1, 2.0, 11, 3, priority=2),
        request(2, 2.0, 26, 3, priority=1),
    )
    case = Case(rows, {"policy": "priority", "aging_s": 3.0}, num_blocks=8)
    log = assert_same(Setting("preemptive", case).make_setup(), INTERPRETED)
    assert log.requests["first_scheduled_at_s"][1] == 6.0


@pytest.mark.parametrize("stop_at_s", [0.0625, 1.0, 1.5, 7.0, 20.0])
def test_when_stopped_early(stop_at_s: float) -> None:
    case = Case((request(0, 0.0, 4, 50), request(1, 0.5, 4, 50)), num_blocks=64)
    log = assert_same(Setting("vllm", case, stop_at_s=stop_at_s).make_setup(), ENGINES)
    assert log.end_s == stop_at_s


@pytest.mark.parametrize("version", ["0.15", "0.20", "0.33"])
def test_nobody_is_left_behind_when_a_call_only_preempts(version: str) -> None:
    """Before 0.33 a request that gives up its own blocks ends the pass; the next call serves the rest."""
    rows = (request(0, 0.0, 8, 20, priority=1), request(1, 1.0, 8, 20, priority=0))
    limits = {"policy": "priority", "version": version, "async_scheduling": False, "reserve_full_isl": False}
    log = assert_same(Setting("vllm", Case(rows, limits, num_blocks=8)).make_setup(), ENGINES)
    assert log.requests["num_generated_tokens"].tolist() == [20, 20]
    assert log.requests["num_preemptions"].tolist() == [1, 0]


class GrowingCap(VllmScheduler):
    """Chunks grow with the number of running requests, so that an early prompt takes late decodes' budget."""

    def chunk_cap(self: Any) -> int:
        return 1 if self.own.num_running < 4 else 6


@pytest.mark.parametrize("is_async", [False, True])
def test_with_a_prompt_that_comes_before_decodes_and_leaves_them_nothing(is_async: bool) -> None:
    rows = (request(0, 0.0, 60, 3), *(request(i, 0.25 * i, 1, 12) for i in range(1, 6)))
    case = Case(rows, {"max_tokens_per_step": 8, "async_scheduling": is_async}, num_blocks=60)
    log = assert_same(Setting(GrowingCap, case).make_setup(), INTERPRETED)
    # Some decode went without: fewer than run.
    steps = log.steps
    assert (steps["num_decode_seqs"] + steps["num_prefill_seqs"] < steps["num_running"]).any()


def test_a_difference_is_noticed() -> None:
    setup = draw(3, "vllm").make_setup()
    with unread():
        one: Any = run(setup, "interpreted")
        other: Any = run(replace(setup, cost=replace_cost(setup)), "interpreted")
    assert raw_differences(one, other)


def replace_cost(setup: Any) -> Any:
    """The same model, a bit slower."""
    config = setup.cost.config
    return type(setup.cost)(config.step_s + 2**-40, config.per_decode_s)


def test_returning_after_every_bit_of_work_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core hears Ctrl-C where it returns to Python: after so much work, wherever it is."""
    settings = [draw(seed, "vllm").make_setup() for seed in range(40)]
    calls: list[int] = []
    with unread():
        whole: Any = [run(setup, "interpreted") for setup in settings]
        monkeypatch.setattr(feed, "MAX_WORK", 1)
        for setup, ended in zip(settings, whole, strict=True):
            torn: Any = simulate_core(setup, "interpreted", progress=lambda *told: calls.append(1))[0]
            assert raw_differences(ended, torn) == []
    assert len(calls) > 0.9 * sum(len(ended.record.column("steps", "step")) for ended in whole)
