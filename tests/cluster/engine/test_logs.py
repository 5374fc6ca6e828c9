"""Step log and token log against the same written out step by step and token by token."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cluster.engine.mixed_step import GroupShare, look_at
from cbsim.cluster.engine.recorder import SLICE_STEP_COLUMNS, STEP_COLUMNS
from cbsim.cluster.engine.step_log import FACTS, StepLog
from cbsim.cluster.engine.token_log import TokenLog
from cbsim.cost.cost_model import StepShape
from cbsim.schedulers.base import Slice, StepPlan
from cbsim.workload.request import Request

NUM_DECODES = 3
RUNNING, WAITING = 7, 2
PROMPT = (20, 1, 0, 0, 20, 1, 0, False)
"""What a lone prompt of 20 tokens computes, as `FACTS`."""
PROMPT_PAIRS = 210
durations = st.floats(0.001, 10.0)


def request(index: int) -> Request:
    made = Request(f"r{index}", 0.0, 10, 10)
    made.index = index
    return made


@settings(max_examples=100, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(
            st.lists(st.tuples(durations, st.integers(0, 3)), min_size=1, max_size=11),
            st.integers(0, 30),
            st.sampled_from([0.0, 0.0, 1.25]),
        ),
        min_size=1,
        max_size=6,
    ),
    num_in_flight=st.integers(1, 2),
    piece_size=st.sampled_from([1, 3, 1 << 20]),
)
def test_a_run_of_steps_unfolds_to_its_steps(
    stretches: list[tuple[list[tuple[float, int]], int, float]], num_in_flight: int, piece_size: int
) -> None:
    """Each stretch is `([(duration, blocks taken)], first context, idle time before)`.

    A prompt's step comes before it.
    """
    folded, unfolded = StepLog(), StepLog()
    ends = [0.0]
    used = 10
    taken: list[int] = []
    for steps, context, idle_s in stretches:
        now = ends[-1] + idle_s
        for log in (folded, unfolded):
            log.add(now, now, 0.5, now + 0.5, 0.25, PROMPT_PAIRS, (1, 0, 0, 20, used), PROMPT)
        ends.append(now + 0.5)
        first, first_used = len(ends), used + steps[0][1]
        for i, (duration_s, num_taken) in enumerate(steps):
            ends.append(ends[-1] + duration_s)
            used += num_taken
            taken.append(num_taken)
            reach = context + i * NUM_DECODES
            facts = (0, 0, NUM_DECODES, 0, reach, NUM_DECODES, 0, True)
            # Decided when the step `num_in_flight` before it ends.
            decided_s, start_s = ends[-1 - num_in_flight], ends[-2]
            state = (RUNNING, WAITING, 3, reach, used)
            unfolded.add(decided_s, start_s, duration_s, ends[-1], 0.0, reach, state, facts)
        decided_s, start_s = ends[first - num_in_flight], ends[first - 1]
        state = (RUNNING, WAITING, 3, context, first_used)
        times = [duration_s for duration_s, _ in steps]
        facts = (0, 0, NUM_DECODES, 0, context, NUM_DECODES, 0, True)
        folded.add_run(decided_s, start_s, times, ends[-1], state, facts)
    num_steps = len(ends) - 1
    blocks_taken = np.array(taken)
    one, other = (log.columns(3, num_steps, num_in_flight, 99, blocks_taken) for log in (folded, unfolded))
    assert list(one) == list(other) == [*STEP_COLUMNS, *SLICE_STEP_COLUMNS]
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for log in (folded, unfolded):
        assert log.ends().tolist() == ends[1:]
        is_group_step = np.array([pairs != PROMPT_PAIRS for pairs in one["num_attention_pairs"]])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cbsim.base.column_pieces.PIECE", piece_size)
            group_end_s = log.group_end_s(num_steps)
        np.testing.assert_array_equal(group_end_s, np.array(ends[1:])[is_group_step])


def test_steps_that_have_not_ended_are_left_out() -> None:
    log = StepLog()
    log.add_run(0.0, 0.0, [1.0, 1.0, 1.0], 3.0, (1, 0, 0, 5, 2), (0, 0, 1, 0, 5, 1, 0, True))
    log.add(3.0, 3.0, 0.5, 3.5, 0.0, PROMPT_PAIRS, (1, 0, 0, 20, 2), PROMPT)
    log.finished(2, 4)
    assert log.group_end_s(4).tolist() == [1.0, 2.0, 3.0]
    assert log.group_end_s(2).tolist() == [1.0, 2.0]
    columns = log.columns(0, 3, 1, 10, np.array([1, 1, 0]))
    assert columns["num_finished"].tolist() == [0, 0, 4]
    assert columns["kv_blocks_used"].tolist() == [2, 3, 3]


def test_an_empty_log_has_no_ends() -> None:
    assert StepLog().ends().tolist() == []


def test_facts_of_a_step_by_hand() -> None:
    """A chunk of 3 tokens after 4, a prompt of 2 that emits, a decode at 9, 2 of the group at 11."""
    parts = [
        Slice(request(0), 3, 4, True, False, 0),
        Slice(request(1), 2, 0, True, True, 0),
        Slice(request(2), 1, 8, False, True, 0),
    ]
    plan = StepPlan(0.0, 0)
    plan.slices, plan.preempted = parts, [request(3)]
    shape, num_pairs, facts = look_at(plan, GroupShare(2, 11, (2, 11, 7)))
    assert shape == StepShape(((3, 4), (2, 0)), 1, 3, 9 + 11, 9)
    assert num_pairs == (5 + 6 + 7) + (1 + 2) + 9 + 11
    assert dict(zip(FACTS, facts, strict=True)) == {
        "num_prefill_tokens": 5,
        "num_prefill_seqs": 2,
        "num_decode_seqs": 3,
        "num_preempted": 1,
        "num_context_tokens": 7 + 2 + 9 + 11,
        "num_logits": 4,
        "max_decode_context": 9,
        "is_group_step": True,
    }


@settings(max_examples=100, deadline=None)
@given(
    ends=st.lists(durations, min_size=1, max_size=30).map(lambda gaps: np.cumsum(gaps)),
    segments=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), min_size=1, max_size=8),
    piece_size=st.sampled_from([1, 4, 1 << 20]),
)
def test_segments_hold_the_gaps_of_their_tokens(
    ends: np.ndarray[tuple[int], np.dtype[np.float64]], segments: list[tuple[int, int]], piece_size: int
) -> None:
    """Of each request: a token on its own, one or two segments in the group, a last token on its own."""
    log = TokenLog()
    gaps: list[float] = []
    longest: dict[int, float] = {}
    for index, (one, other) in enumerate(segments):
        made = request(index)
        first, last = sorted((min(one, len(ends) - 1), min(other, len(ends) - 1)))
        middle = (first + last) // 2
        pieces = [(first, middle), (middle + 1, last)] if middle < last else [(first, last)]
        times = [float(ends[first]) - 0.0005]
        log.came_out(made, times[0])
        for piece in pieces:
            log.came_out_in_group(made, *piece, float(ends[piece[1]]))
            times += ends[piece[0] : piece[1] + 1].tolist()
        times.append(times[-1] + 0.25)
        log.came_out(made, times[-1])
        own = [later - earlier for earlier, later in pairwise(times)]
        gaps += own
        assert made.max_itl_s == own[-1]
        assert (made.first_token_at_s, made.last_token_at_s) == (times[0], times[-1])
        longest[index] = max(own[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbsim.base.column_pieces.PIECE", piece_size)
        found_gaps = log.gaps(ends)
    assert sorted(np.repeat(found_gaps.real, found_gaps.imag.astype(int)).tolist()) == sorted(gaps)
    found: dict[int, float] = {}
    for index, gap_s in zip(*log.longest_gaps(ends), strict=True):
        found[int(index)] = max(found.get(int(index), 0.0), float(gap_s))
    assert found == longest


def test_a_log_without_tokens_has_no_gaps() -> None:
    assert len(TokenLog().gaps(np.empty(0))) == 0


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_tokens_one_by_one(num_tokens: int) -> None:
    log, made = TokenLog(), request(0)
    for i in range(num_tokens):
        log.came_out(made, float(i * i))
    assert log.gaps(np.empty(0)).tolist() == [2.0 * i + 1 + 1j for i in range(num_tokens - 1)]
