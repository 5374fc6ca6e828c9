"""Steps between recorded instants: equations kept, time followed where they say nothing, idle gaps empty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cbsim.base.errors import WorkloadError
from cbsim.lab.validate.server_log import ServerLog
from cbsim.lab.validate.token_clock import Engine, count_steps, counts_as_decided


def make_log(spans: list[tuple[float, float, int]]) -> ServerLog:
    first, last, tokens = (np.array(column) for column in zip(*spans, strict=True))
    return ServerLog(
        path=Path("log"),
        request_id=tuple(str(index) for index in range(len(spans))),
        num_prompt_tokens=np.ones(len(spans), dtype=np.int64),
        num_output_tokens=tokens,
        sent_s=np.zeros(len(spans)),
        queued_s=None,
        first_token_s=first.astype(np.float64),
        last_token_s=last.astype(np.float64),
    )


def counts(
    log: ServerLog,
    instants: list[float],
    expected: list[float],
    idle: Sequence[int] = (),
    seen: list[list[int]] | None = None,
) -> list[int]:
    may_be_idle = np.isin(np.arange(len(expected)), idle)
    shares = np.array(seen or [[-1, -1, -1]] * len(log))
    found = count_steps(log, np.array(instants), np.array(expected), may_be_idle, Engine(1, 512), shares)
    return found.tolist()


def test_tokens_decide_where_time_is_in_doubt():
    """Two requests: 10 steps from 0 to 3, 7 from 1 to 4; time alone would round otherwise."""
    log = make_log([(0.0, 3.0, 11), (1.0, 4.0, 8)])
    found = counts(log, [0.0, 1.0, 2.0, 3.0, 4.0], [4.4, 3.4, 1.6, 1.9])
    assert sum(found[:3]) == 10
    assert sum(found[1:]) == 7
    assert found == [5, 3, 2, 2]


def test_without_tokens_time_decides():
    log = make_log([(0.0, 0.0, 1)])
    assert counts(log, [0.0, 1.0, 2.0, 3.0], [2.4, 2.6, 0.2]) == [2, 3, 1]


def test_tokens_ages_apart_are_told():
    log = make_log([(0.5, 2e11, 3), (1.25, 1.5, 2)])
    with pytest.raises(WorkloadError, match=r"tokens that come 2e\+11 s apart; allowed: times of one run"):
        counts(log, [0.5, 1.25, 1.5, 2e11], [75.0, 25.0, 2e12])


def test_an_idle_gap_has_no_steps():
    log = make_log([(0.0, 1.0, 6), (2.0, 3.0, 5)])
    assert counts(log, [0.0, 1.0, 2.0, 3.0], [5.1, 0.3, 4.2], [1]) == [5, 0, 4]


def test_equations_that_cannot_hold_are_broken_as_little_as_possible():
    log = make_log([(0.0, 2.0, 9), (0.0, 2.0, 9), (0.0, 2.0, 5)])
    assert sum(counts(log, [0.0, 1.0, 2.0], [3.0, 3.0])) == 8


def test_a_preempted_request_has_as_many_steps_more_as_it_sat_out():
    """5 tokens, in steps 10 to 20 of the pass before."""
    log = make_log([(0.0, 2.0, 5)])
    assert sum(counts(log, [0.0, 1.0, 2.0], [3.0, 3.0])) == 4
    assert sum(counts(log, [0.0, 1.0, 2.0], [5.2, 4.6], seen=[[9, 10, 20]])) == 10


def test_counts_as_a_pass_decided():
    """Tokens in steps 10, 14 and 20; what lies between two of them takes up what is left."""
    log = make_log([(0.0, 1.0, 5), (1.0, 3.0, 7)])
    found = counts_as_decided(log, np.arange(4.0), np.array([3, 2, 5]), np.array([[9, 10, 14], [13, 14, 20]]))
    assert found.tolist() == [4, 2, 4]


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_found_from_times_off_by_a_tenth(seed):
    """Requests that come and go at random: counts come out right though steps are timed 10 % wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(1, 6, size=80)
    ends = np.concatenate([[0], np.cumsum(true)])
    spans = []
    for _ in range(120):
        start, end = sorted(rng.choice(len(ends), size=2, replace=False).tolist())
        spans.append((float(start), float(end), int(ends[end] - ends[start]) + 1))
    expected = true * rng.normal(1.0, 0.1, size=len(true))
    found = counts(make_log(spans), [float(index) for index in range(len(ends))], expected.tolist())
    assert np.mean(np.array(found) == true) > 0.95
    for start, end, tokens in spans:
        assert sum(found[int(start) : int(end)]) == tokens - 1
