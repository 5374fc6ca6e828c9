"""ThinkTimes: the mean and the spread asked for, and the same for a request whoever ends first."""

import numpy as np
import pytest
from pydantic import ValidationError

from cbsim.workload.request_source import WorkloadConfig
from cbsim.workload.streams import BLOCK, ThinkTimes


def think_times(seed: int = 0, **settings: float) -> ThinkTimes:
    return ThinkTimes(WorkloadConfig(type="trace", concurrency=2, **settings), seed)


def test_no_spread_is_always_the_same():
    think = think_times(think_time_s=0.25)
    assert [think.after(index) for index in (0, 7, 5 * BLOCK)] == [0.25] * 3
    assert think_times().after(3) == 0.0


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_mean_and_spread_are_those_asked_for(cv):
    """Of 40,000 draws: the mean within 4 of its standard errors, the spread within 5 %."""
    think = think_times(think_time_s=2.0, think_time_cv=cv)
    drawn = np.array([think.after(index) for index in range(40_000)])
    assert drawn.min() >= 0
    assert abs(drawn.mean() - 2.0) < 4 * 2.0 * cv / np.sqrt(len(drawn))
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.05)


def test_a_request_is_thought_about_as_long_whoever_ends_first():
    settings = {"think_time_s": 1.0, "think_time_cv": 1.0}
    forwards, backwards = think_times(**settings), think_times(**settings)
    indices = [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK]
    assert [forwards.after(i) for i in indices] == [backwards.after(i) for i in reversed(indices)][::-1]
    assert think_times(seed=1, **settings).after(0) != forwards.after(0)


def test_a_spread_needs_a_time():
    with pytest.raises(ValidationError, match="think_time_cv: got a spread of no time"):
        WorkloadConfig(type="trace", think_time_cv=0.5)
