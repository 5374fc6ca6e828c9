"""The resampled trace: whole blocks of the trace, another draw for each seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import WorkloadError
from cbsim.workload import Workload

NUM_ROWS = 60


@pytest.fixture
def resampled(make: Callable[..., Workload], tmp_path: Path) -> Callable[..., Workload]:
    """A trace whose prompt lengths number its rows; row i comes i / 10 s after the one before."""
    rows, arrival_s = ["arrived_at,num_prefill_tokens,num_decode_tokens"], 0.0
    for row in range(NUM_ROWS):
        arrival_s += row / 10
        rows.append(f"{arrival_s:.6f},{row + 1},{2 * row + 1}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return lambda **settings: make(type="resampled", path="t.csv", **settings)


def numbers(workload: Workload) -> list[int]:
    return [request.num_prompt_tokens - 1 for request in workload.requests()]


def test_blocks_of_neighbours_go_round_the_end(resampled: Callable[..., Workload]) -> None:
    drawn = numbers(resampled(block_requests=8, num_requests=200))
    assert len(drawn) == 200
    for start in range(0, 200, 8):
        block = drawn[start : start + 8]
        assert block == [(block[0] + step) % NUM_ROWS for step in range(len(block))]
    assert len({drawn[start] for start in range(0, 200, 8)}) > 10


def test_requests_bring_their_lengths_and_gaps_along(resampled: Callable[..., Workload]) -> None:
    requests = list(resampled(block_requests=5).requests())
    assert [request.request_id for request in requests] == [f"r{place}" for place in range(NUM_ROWS)]
    assert requests[0].arrival_s == 0.0
    for before, request in itertools.pairwise(requests):
        row = request.num_prompt_tokens - 1
        assert request.num_output_tokens == 2 * row + 1
        if row:
            assert request.arrival_s - before.arrival_s == pytest.approx(row / 10, abs=1e-6)


def test_a_seed_is_a_draw(resampled: Callable[..., Workload]) -> None:
    assert numbers(resampled(seed=1)) == numbers(resampled(seed=1))
    assert numbers(resampled(seed=1)) != numbers(resampled(seed=2))


def test_window_and_limit_choose_what_is_drawn_from(resampled: Callable[..., Workload]) -> None:
    workload = resampled(start_s=1.0, limit=10, num_requests=100, block_requests=3)
    assert workload.num_requests() == 100
    drawn = numbers(workload)
    assert set(drawn) == set(range(4, 14))
    assert workload.notes() == ["requests drawn from 10 of the trace in blocks of 3"]


def test_rate_and_caps_apply_to_what_is_drawn(resampled: Callable[..., Workload]) -> None:
    plain, fast = (list(resampled(rate_scale=scale).requests()) for scale in (1.0, 4.0))
    assert [request.arrival_s / 4 for request in plain] == pytest.approx(
        [request.arrival_s for request in fast]
    )
    capped = resampled(max_prompt_tokens=30)
    assert max(request.num_prompt_tokens for request in capped.requests()) == 30
    assert any("prompts cut" in note for note in capped.notes())


def test_mistakes_are_those_of_a_trace(resampled: Callable[..., Workload]) -> None:
    with pytest.raises(WorkloadError, match="got no requests from start_s = 9999"):
        list(resampled(start_s=9999.0).requests())


def test_shared_prompts_stay_shared(make: Callable[..., Workload], tmp_path: Path) -> None:
    lines = [
        f'{{"timestamp": {place * 100}, "input_length": 600, "output_length": 3, "hash_ids": [7, {place}]}}'
        for place in range(8)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    drawn: list[Any] = [r.prompt for r in make(type="resampled", path="m.jsonl", num_requests=30).requests()]
    assert {prompt[0] for prompt in drawn} == {("h:7", 512)}
    assert len({prompt[1] for prompt in drawn}) > 3


def test_a_trace_comes_at_the_rate_asked_for(make: Callable[..., Workload], tmp_path: Path) -> None:
    """Of the window: the mean rate is that asked for, and gaps keep their shape."""
    arrivals = [0.0, 1.0, 1.5, 4.0, 9.0, 9.5, 20.0, 21.0]
    rows = "".join(f"{time},{place + 1},3\n" for place, time in enumerate(arrivals))
    (tmp_path / "t.csv").write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}")
    workload = make(type="trace", path="t.csv", rate_per_s=6.0, start_s=1.0, limit=5)
    own = list(workload.requests())
    assert [request.num_prompt_tokens for request in own] == [2, 3, 4, 5, 6]
    times = [request.arrival_s for request in own]
    assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(6.0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [gap / gaps[0] for gap in gaps] == pytest.approx([1.0, 5.0, 10.0, 1.0])
    twice = make(type="trace", path="t.csv", rate_per_s=6.0, rate_scale=2.0, start_s=1.0, limit=5)
    assert [request.arrival_s for request in twice.requests()] == pytest.approx([time / 2 for time in times])


@pytest.mark.parametrize("seed", range(3))
def test_every_resample_comes_at_that_rate(resampled: Callable[..., Workload], seed: int) -> None:
    times = [request.arrival_s for request in resampled(rate_per_s=2.5, seed=seed).requests()]
    assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(2.5)


def test_requests_at_one_instant_have_no_rate(make: Callable[..., Workload], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "3,5,5\n" * 4)
    with pytest.raises(
        WorkloadError, match="4 requests at one instant; allowed with rate_per_s: two or more"
    ):
        list(make(type="trace", path="t.csv", rate_per_s=1.0).requests())
