"""The forced replay: right records go through without contradiction, wrong ones are caught where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cbsim.lab.validate.recorded_run import RecordedSteps, replay, replay_log
from cbsim.lab.validate.server_log import LoggedWorkload, ServerLog
from cbsim.lab.validate.token_clock import Engine, RecordedTokens, waiting_since
from cbsim.results.run_log import RunLog
from tests.lab.validate.logs import SETTINGS, make_experiment, serve, server_log

ASYNC = make_experiment()
ENGINE = Engine(2, 512)
SYNC = make_experiment(scheduler={"type": "chunked_prefill", "max_num_seqs": 12, "chunk_size": 256})


def clock_of(log: ServerLog) -> RecordedTokens:
    clock = RecordedTokens(log, ENGINE)
    replay(ASYNC, LoggedWorkload(log, log.sent_s), clock)
    return clock


@pytest.mark.parametrize("experiment", [ASYNC, SYNC], ids=["async", "sync"])
def test_a_server_of_the_same_decisions_replays_without_contradiction(experiment):
    log = server_log(serve(experiment, decode=1.25, other=1.1, noise=0.02), with_tokens=True)
    clock = replay_log(experiment, log)
    assert clock.contradictions == []
    assert clock.num_recorded_steps > 50


@pytest.mark.parametrize("experiment", [ASYNC, SYNC], ids=["async", "sync"])
def test_first_and_last_tokens_alone_leave_little_in_doubt(experiment):
    """Where nothing says how many steps lie between two instants, a wrong guess may cost a contradiction."""
    log = server_log(serve(experiment, decode=1.25, other=1.1, noise=0.02), with_tokens=False)
    estimated = RecordedTokens(log, ENGINE)
    replay(experiment, LoggedWorkload(log, waiting_since(log, ENGINE)), estimated)
    clock = replay_log(experiment, log)
    assert len(clock.contradictions) <= 0.05 * clock.num_recorded_steps
    assert len(clock.contradictions) < len(estimated.contradictions)


def test_preempted_requests_sit_out_the_steps_that_they_did():
    """First and last tokens alone, of more requests than a KV cache of 6,400 tokens has room for."""
    traffic = {
        **SETTINGS["workload"],
        "num_requests": 120,
        "arrivals": {"type": "poisson", "rate_per_s": 30.0},
        "output_tokens": {"type": "uniform", "min": 30, "max": 120},
    }
    crowded = make_experiment(
        workload=traffic,
        kv_cache={"num_blocks": 400, "block_size": 16},
        scheduler={"type": "vllm", "max_num_seqs": 24, "max_tokens_per_step": 512},
    )
    served = serve(crowded, decode=1.25, other=1.1, noise=0.02)
    assert served.steps["num_preempted"].sum() >= 20
    clock = replay_log(crowded, server_log(served, with_tokens=False))
    assert clock.contradictions == []
    assert clock.num_recorded_steps > 200


def test_who_comes_while_the_first_step_is_launched_is_in_the_second():
    """A server that has just started launches for 0.4 s; its second step, decided then, has a second request
    beside the rest of a prompt of two chunks.
    """
    columns = {"num_prompt_tokens": [700, 100], "num_output_tokens": [3, 3], "first_token_s": [0.7, 0.7]}
    log = ServerLog(
        path=Path("log"),
        request_id=("first", "late"),
        **{name: np.array(values) for name, values in columns.items()},
        sent_s=np.array([0.0, 0.3]),
        queued_s=np.array([0.0, 0.4]),
        last_token_s=np.array([0.72, 0.72]),
        scheduled_s=np.array([0.0, 0.4]),
    )
    assert waiting_since(log, ENGINE).tolist() == [0.0, 0.0]
    assert replay_log(ASYNC, log).contradictions == []
    apart = replace(log, first_token_s=np.array([0.7, 0.71]))
    assert waiting_since(apart, ENGINE).tolist() == [0.0, 0.4]


def test_the_replayed_steps_are_those_that_were_served():
    served = serve(ASYNC, decode=1.3, other=0.9, noise=0.05)
    log = server_log(served, with_tokens=True)
    again = replay(ASYNC, LoggedWorkload(log, log.sent_s), RecordedTokens(log, ENGINE))
    assert_same_decisions(served, again)


def test_a_run_replays_from_its_steps_alone():
    served = serve(ASYNC, decode=1.3, other=0.9, noise=0.05)
    log = server_log(served, with_tokens=True)
    ends_s = served.steps["start_s"] + served.steps["duration_s"]
    again = replay(ASYNC, LoggedWorkload(log, log.sent_s), RecordedSteps(ends_s.tolist()))
    assert_same_decisions(served, again)


def assert_same_decisions(first: RunLog, second: RunLog) -> None:
    assert first.batches is not None
    assert second.batches is not None
    for name in ("step", "request", "num_tokens", "num_computed_tokens"):
        assert np.array_equal(first.batches[name], second.batches[name])


def test_cost_error_is_told_by_kind():
    log = server_log(serve(ASYNC, decode=1.25, other=0.8), with_tokens=True)
    ratios = {kind: ratio for kind, (_, ratio) in clock_of(log).recorded_over_predicted().items()}
    assert ratios["decode"] == pytest.approx(1.25, rel=1e-6)
    assert ratios["mixed"] == pytest.approx(0.8, rel=1e-6)


def test_a_swapped_token_time_is_caught_at_its_step():
    """Two tokens of one request change places: the earlier of the two steps is contradicted, none before."""
    served = serve(ASYNC, noise=0.02)
    log = server_log(served, with_tokens=True)
    assert log.token_times_s is not None
    assert served.batches is not None
    row = int(np.flatnonzero(log.num_output_tokens > 60)[10])
    times = log.token_times_s[row].copy()
    everybodys = np.concatenate(log.token_times_s)
    one, other = [index for index in range(10, 50) if np.sum(everybodys == times[index]) > 2][:2]
    ends_s = served.steps["start_s"] + served.steps["duration_s"]
    step = int(np.searchsorted(ends_s, times[one]))
    times[[one, other]] = times[[other, one]]
    wrong = replace(log, token_times_s=(*log.token_times_s[:row], times, *log.token_times_s[row + 1 :]))
    found = clock_of(wrong).contradictions
    assert found[0].step == step
    assert log.request_id[row] in found[0].reason
    assert "get tokens at" in found[0].reason


def test_first_tokens_exchanged_between_requests_are_caught():
    log = server_log(serve(ASYNC, noise=0.02), with_tokens=False)
    first = log.first_token_s.copy()
    order = np.argsort(first)
    one, other = order[20], order[23]
    first[[one, other]] = first[[other, one]]
    wrong = replace(log, first_token_s=first)
    found = replay_log(ASYNC, wrong).contradictions
    assert found
    early = float(min(first[one], first[other]))
    assert found[0].at_s == pytest.approx(early, abs=0.15)


def test_another_scheduler_contradicts_the_record():
    """Half the seats: the record can't be of this scheduler."""
    log = server_log(serve(ASYNC), with_tokens=True)
    other = make_experiment(scheduler={"type": "vllm", "max_num_seqs": 6, "max_tokens_per_step": 512})
    assert len(replay_log(other, log).contradictions) > 20
