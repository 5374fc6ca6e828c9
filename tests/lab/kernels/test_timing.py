"""Timers: what they call, how runs become a median, and what counts as unstable."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from cbsim.lab.kernels.timing import MAX_CALLS, Call, CpuTimer, Timing, num_calls


def test_median_minimum_and_tail() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.median_s, timing.min_s, timing.num_runs) == (3.0, 1.0, 5)
    assert timing.p90_s == pytest.approx(4.6)


def test_unstable_runs() -> None:
    assert not Timing.of([1.0] * 20).is_unstable
    assert Timing.of([1.0] * 10 + [1.2] * 10).is_unstable is False  # median 1.1, tail 1.2
    assert Timing.of([1.0] * 15 + [1.2] * 5).is_unstable


def test_short_calls_are_timed_in_bulk() -> None:
    assert num_calls(1.0, 1e-3) == 1
    assert num_calls(2.5e-4, 1e-3) == 4
    assert num_calls(1e-9, 1e-3) == MAX_CALLS
    assert num_calls(0.0, 1e-3) == MAX_CALLS


def test_every_call_is_made_as_often_as_the_protocol_says() -> None:
    made: list[int] = []
    counts: dict[tuple[int, int], int] = {}

    def make_calls(count: int) -> list[Call]:
        made.append(count)

        def call(place: int) -> Call:
            def run() -> None:
                key = len(made), place
                counts[key] = counts.get(key, 0) + 1

            return run

        return [call(place) for place in range(count)]

    timing = CpuTimer(num_runs=7, num_warmups=2, target_s=1.0).time(make_calls)
    assert made == [1, MAX_CALLS]
    assert counts[1, 0] == 2
    assert {counts[2, place] for place in range(MAX_CALLS)} == {7}
    assert timing.num_runs == 7
    assert 0 < timing.min_s <= timing.median_s <= timing.p90_s
    assert not timing.graph
