"""Little's law, and the tables of a run against each other: exact, as all instants are multiples of 1/8 s."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings

from cbsim.results.run_log import (
    ADMITTED,
    ARRIVED,
    EMITTED,
    FINISHED,
    PREEMPTED,
    RESUMED,
    RunLog,
    distinct_gaps,
)
from cbsim.schedulers import SCHEDULERS
from cbsim.testing import Case, observe
from cbsim.workload.request import RequestState
from tests.strategies import cases


def run(kind: str, case: Case) -> RunLog:
    return observe(SCHEDULERS.get(kind), case).log


def without_transfers(case: Case) -> Case:
    """Moves to host memory take odd times: sums of instants would round."""
    return replace(case, settings={key: value for key, value in case.settings.items() if key != "preemption"})


def integral(
    log: RunLog, enters: tuple[int, ...], leaves: tuple[int, ...], replica: int | None = None
) -> float:
    """Time integral of the number of requests inside, by the events of entering and leaving."""
    events = log.events
    chosen = np.isin(events["event"], enters + leaves)
    if replica is not None:
        chosen &= events["replica"] == replica
    times = events["time_s"][chosen]
    inside = np.cumsum(np.where(np.isin(events["event"][chosen], enters), 1, -1))
    return float((inside[:-1] * np.diff(times)).sum()) if len(times) else 0.0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases())
def test_mean_number_is_rate_times_mean_sojourn(drawn: tuple[str, Case]) -> None:
    """The integral of the number in the system is the sum of the sojourn times."""
    kind, case = drawn
    log = run(kind, without_transfers(case))
    events, requests = log.events, log.requests
    rejected = requests["state"] == RequestState.REJECTED
    kept = ~rejected[events["request"]]
    accepted = replace(log, events={name: column[kept] for name, column in events.items()})
    sojourn_s = requests["finished_at_s"] - requests["arrival_s"]
    assert integral(accepted, (ARRIVED,), (FINISHED,)) == sojourn_s[~rejected].sum()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases(async_scheduling=False))
def test_running_requests_are_the_same_in_steps_and_in_events(drawn: tuple[str, Case]) -> None:
    """Each step's `num_running` for its duration is the time from admissions to leaves: idle, nobody runs."""
    kind, case = drawn
    case = without_transfers(case)
    log = run(kind, case)
    steps = log.steps
    for replica in range(case.num_replicas):
        mine = steps["replica"] == replica
        in_steps = float((steps["num_running"] * steps["duration_s"])[mine].sum())
        assert in_steps == integral(log, (ADMITTED, RESUMED), (PREEMPTED, FINISHED), replica)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases())
def test_steps_batches_and_events_tell_the_same_tokens(drawn: tuple[str, Case]) -> None:
    log = run(*drawn)
    steps, batches, events, requests = log.steps, log.batches, log.events, log.requests
    assert batches is not None
    for replica, step, prefill, decode, seqs in zip(
        steps["replica"],
        steps["step"],
        steps["num_prefill_tokens"],
        steps["num_decode_tokens"],
        steps["num_prefill_seqs"] + steps["num_decode_seqs"],
        strict=True,
    ):
        part = (batches["replica"] == replica) & (batches["step"] == step)
        assert part.sum() == seqs
        assert batches["num_tokens"][part & (batches["kind"] == 0)].sum() == prefill
        assert batches["num_tokens"][part & (batches["kind"] == 1)].sum() == decode
    num_emitted = np.bincount(events["request"][events["event"] == EMITTED], minlength=len(requests["state"]))
    finished = requests["state"] == RequestState.FINISHED
    assert (num_emitted == np.where(finished, requests["num_output_tokens"], 0)).all()
    gap_s, gap_count = distinct_gaps(log.gaps)
    assert gap_count.sum() == (requests["num_output_tokens"][finished] - 1).sum()
    spans = (requests["finished_at_s"] - requests["first_token_at_s"])[finished]
    np.testing.assert_allclose((gap_s * gap_count).sum(), spans.sum(), rtol=1e-12)
