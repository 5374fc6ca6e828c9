"""A queue that grows to the end of the trace is noted; one that is merely long now and then is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.results.run_log import Column
from cbsim.results.run_notes import backlog_notes, mean_waiting
from cbsim.workload.request import RequestState

SEEDS = range(20)
STEP_S = 0.1
"""A request of one output token on one slot of a constant cost: an M/D/1 queue."""


def run(load: float, *, seed: int = 0, num_requests: int = 3000, **settings: Any) -> list[str]:
    experiment = {
        "seed": seed,
        "workload": {
            "type": "synthetic",
            "num_requests": num_requests,
            "arrivals": {"type": "poisson", "rate_per_s": load / STEP_S},
            "prompt_tokens": {"type": "fixed", "value": 10},
            "output_tokens": {"type": "fixed", "value": 1},
        },
        "scheduler": {"type": "continuous", "max_num_seqs": 1},
        "cost_model": {"type": "constant", "step_s": STEP_S},
        "kv_cache": {"num_blocks": 10_000},
    }
    return cbsim.run({**experiment, **settings}).notes


def batches(load: float, seed: int, *, cv: float, num_requests: int, size: int = 1) -> dict[str, Column]:
    """Gamma arrivals, one a second, served in batches of up to `size` in `load * size` seconds each."""
    gaps_s = np.random.default_rng(seed).gamma(1 / cv**2, cv**2, num_requests)
    arrival_s = np.cumsum(gaps_s)
    start_s = np.empty(num_requests)
    first, free_s = 0, 0.0
    while first < num_requests:
        now = max(free_s, arrival_s[first])
        behind = min(first + size, int(np.searchsorted(arrival_s, now, side="right")))
        start_s[first:behind] = now
        first, free_s = behind, now + load * size
    return columns(arrival_s, start_s)


def columns(arrival_s: Column, start_s: Column) -> dict[str, Column]:
    state = np.full(len(arrival_s), RequestState.FINISHED)
    return {"arrival_s": arrival_s, "first_scheduled_at_s": start_s, "state": state}


def num_noted(load: float, **settings: Any) -> int:
    return sum(bool(backlog_notes(batches(load, seed, **settings))) for seed in SEEDS)


def test_a_run_in_overload_says_how_many_wait() -> None:
    (note,) = run(1.2)
    waiting = int(note.split("(")[1].split(" ")[0])
    assert note == (
        f"the queue still grew as arrivals ended ({waiting} waiting): latencies depend on trace length"
    )
    assert waiting == pytest.approx(3000 * (1 - 1 / 1.2), abs=150)


def test_a_run_below_capacity_says_nothing() -> None:
    assert run(0.8) == []


def test_static_batches_alike() -> None:
    scheduler = {"type": "static", "max_num_seqs": 8}
    assert run(0.8 * 8, scheduler=scheduler) == []
    assert len(run(1.2 * 8, scheduler=scheduler)) == 1


def test_clients_that_wait_for_answers_never_outrun_the_service() -> None:
    workload = {
        "type": "synthetic",
        "num_requests": 500,
        "concurrency": 100,
        "arrivals": {"type": "all_at_once"},
        "prompt_tokens": {"type": "fixed", "value": 10},
        "output_tokens": {"type": "fixed", "value": 1},
    }
    assert run(1.0, workload=workload) == []


def test_requests_cut_off_at_the_end_wait_too() -> None:
    assert any("still grew" in note for note in run(1.5, stop_at_s=100.0))


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("cv", [0.1, 1.0])
def test_load_decides(cv: float, size: int) -> None:
    assert num_noted(0.9, cv=cv, num_requests=2000, size=size) == 0
    assert num_noted(1.3, cv=cv, num_requests=2000, size=size) == len(SEEDS)


@pytest.mark.parametrize("num_requests", [240, 1000, 4000])
def test_bursts_alone_are_no_overload(num_requests: int) -> None:
    assert num_noted(0.8, cv=3.0, num_requests=num_requests) == 0
    assert num_noted(0.9, cv=1.0, num_requests=num_requests) == 0


def test_a_backlog_of_the_first_half_that_drains_is_not_growing() -> None:
    """Twice the rate that is served for 300 s, then half of it, with 100 waiting at the end."""
    arrival_s = np.concatenate([np.arange(0, 300, 0.5), np.arange(300, 700, 2.0)])
    assert backlog_notes(columns(arrival_s, np.maximum(arrival_s, np.arange(800.0)))) == []
    assert len(backlog_notes(columns(arrival_s[:600], np.arange(600.0)))) == 1


def test_a_queue_past_its_peak_is_not_growing() -> None:
    """It builds up to 200 from 600 s to 750 s, and 120 are left of it at 1000 s."""
    arrival_s = np.concatenate(
        [np.arange(0, 600, 2.0), np.arange(600, 750, 3 / 7), np.arange(750, 1000, 1.47)]
    )
    assert backlog_notes(served_one_a_second(arrival_s)) == []
    assert len(backlog_notes(served_one_a_second(arrival_s[arrival_s < 750]))) == 1


def test_a_stall_that_ends_with_the_arrivals_is_no_backlog() -> None:
    arrival_s = np.arange(1000.0)
    start_s = np.where(arrival_s < 900, arrival_s, 1000.0)
    assert backlog_notes(columns(arrival_s, start_s)) == []
    assert len(backlog_notes(columns(arrival_s, np.where(arrival_s < 900, arrival_s, 1100.0)))) == 1


@pytest.mark.parametrize(
    ("load", "num_requests", "is_noted"), [(1.03, 4000, 0), (1.1, 4000, 1), (1.3, 35, 0)]
)
def test_small_overloads_and_short_traces_are_let_pass(load: float, num_requests: int, is_noted: int) -> None:
    requests = served_one_a_second(np.arange(num_requests) / load)
    assert len(backlog_notes(requests)) == is_noted


def served_one_a_second(arrival_s: Column) -> dict[str, Column]:
    start_s, free_s = arrival_s.copy(), 0.0
    for row, now in enumerate(arrival_s.tolist()):
        start_s[row] = max(now, free_s)
        free_s = start_s[row] + 1.0
    return columns(arrival_s, start_s)


def test_rejected_requests_wait_for_nothing() -> None:
    requests = batches(0.5, 0, cv=1.0, num_requests=200)
    requests["first_scheduled_at_s"][50:] = np.nan
    assert len(backlog_notes(requests)) == 1
    requests["state"][50:] = RequestState.REJECTED
    assert backlog_notes(requests) == []


@pytest.mark.parametrize("num_requests", [0, 1, 200])
def test_nothing_is_said_where_all_come_at_once(num_requests: int) -> None:
    start_s = np.arange(num_requests, dtype=float)
    assert backlog_notes(columns(np.zeros(num_requests), start_s)) == []


def test_mean_waiting_is_the_integral_over_the_time() -> None:
    """By hand: from 1 to 3 s, the first waits 1 s of it, the second 2 s, the third and fourth none."""
    arrival_s, start_s = np.array([0.0, 0.5, 1.0, 3.5]), np.array([2.0, np.inf, 1.0, 4.0])
    assert mean_waiting(arrival_s, start_s, 1.0, 3.0) == 1.5
