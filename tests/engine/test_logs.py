"""Step log and token log against the same written out step by step and token by token."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cost.base import StepShape
from cbsim.engine.mixed_step import GroupShare, look_at
from cbsim.engine.step_log import StepFacts, StepLog
from cbsim.engine.token_log import TokenLog
from cbsim.recorder import STEP_COLUMNS
from cbsim.request import Request
from cbsim.schedulers.base import Slice, StepPlan

NEEDS = [2, 0, 1, 0]
"""Blocks that three decodes take in the steps of a stretch, over and over."""
NUM_DECODES = 3
RUNNING, WAITING = 7, 2
PROMPT = StepFacts(20, 1, 0, 0, 20, 1, 0, 210)
durations = st.floats(0.001, 10.0)


def request(index: int) -> Request:
    made = Request(f"r{index}", 0.0, 10, 10)
    made.index = index
    return made


@settings(max_examples=100, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(st.lists(durations, min_size=1, max_size=11), st.integers(0, 30)), min_size=1, max_size=6
    ),
    num_in_flight=st.integers(1, 2),
    takes_blocks=st.booleans(),
)
def test_a_run_of_steps_unfolds_to_its_steps(
    stretches: list[tuple[list[float], int]], num_in_flight: int, takes_blocks: bool
) -> None:
    """Each stretch is `(durations, first context)`; a prompt's step comes before it."""
    folded, unfolded = StepLog(), StepLog()
    needs = NEEDS if takes_blocks else []
    ends = [0.0]
    used = 10
    for times, context in stretches:
        for log in (folded, unfolded):
            log.add((ends[-1], ends[-1]), 0.5, ends[-1] + 0.5, (1, 0, 20, used), PROMPT)
        ends.append(ends[-1] + 0.5)
        first = len(ends)
        first_used = used + sum(needs[:1])
        for i, duration_s in enumerate(times):
            ends.append(ends[-1] + duration_s)
            used += needs[i % len(needs)] if needs else 0
            reach = context + i * NUM_DECODES
            facts = StepFacts(0, 0, NUM_DECODES, 0, reach, NUM_DECODES, 1, reach)
            # Decided when the step `num_in_flight` before it ends.
            instants = (ends[-1 - num_in_flight], ends[-2])
            unfolded.add(instants, duration_s, ends[-1], (RUNNING, WAITING, reach, used), facts)
        instants = (ends[first - num_in_flight], ends[first - 1])
        state = (RUNNING, WAITING, context, first_used)
        folded.add_run(instants, times, ends[first:], state, NUM_DECODES, context, needs)
    num_steps = len(ends) - 1
    one, other = (log.columns(3, num_steps, num_in_flight, 99) for log in (folded, unfolded))
    assert list(one) == list(other) == list(STEP_COLUMNS)
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_array_equal(folded.group_end_s(num_steps), unfolded.group_end_s(num_steps))


def test_steps_that_have_not_ended_and_steps_taken_apart_are_left_out() -> None:
    log = StepLog()
    log.add_run((0.0, 0.0), [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], (1, 0, 5, 2), 1, 5, [0, 1])
    log.add((3.0, 3.0), 0.5, 3.5, (1, 0, 20, 2), PROMPT)
    log.ungroup(1)
    log.finished(2, 4)
    assert log.group_end_s(4).tolist() == [1.0, 3.0]
    assert log.group_end_s(2).tolist() == [1.0]
    columns = log.columns(0, 3, 1, 10)
    assert columns["num_finished"].tolist() == [0, 0, 4]
    assert columns["kv_blocks_used"].tolist() == [2, 3, 3]


def test_facts_of_a_step_by_hand() -> None:
    """A chunk of 3 tokens after 4, a prompt of 2 that emits, a decode at 9, 2 of the group at 11."""
    parts = [
        Slice(request(0), 3, 4, True, False, 0),
        Slice(request(1), 2, 0, True, True, 0),
        Slice(request(2), 1, 8, False, True, 0),
    ]
    plan = StepPlan(0.0, 0, slices=parts, preempted=[request(3)])
    facts, shape = look_at(plan, GroupShare(2, 11, (2, 11, 7)))
    assert shape == StepShape(((3, 4), (2, 0)), 1, 3, 9 + 11, 9)
    assert facts == StepFacts(
        num_prefill_tokens=5,
        num_prefill_seqs=2,
        num_decode_seqs=3,
        num_preempted=1,
        num_attention_pairs=(5 + 6 + 7) + (1 + 2) + 9 + 11,
        num_context_tokens=7 + 2 + 9 + 11,
        num_logits=4,
        is_group_step=1,
    )


@settings(max_examples=100, deadline=None)
@given(
    ends=st.lists(durations, min_size=1, max_size=30).map(lambda gaps: np.cumsum(gaps)),
    segments=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), min_size=1, max_size=8),
)
def test_segments_hold_the_gaps_of_their_tokens(
    ends: np.ndarray[tuple[int], np.dtype[np.float64]], segments: list[tuple[int, int]]
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
    values, counts = log.gaps(ends)
    assert sorted(np.repeat(values, counts).tolist()) == sorted(gaps)
    found: dict[int, float] = {}
    for index, gap_s in zip(*log.longest_gaps(ends), strict=True):
        found[int(index)] = max(found.get(int(index), 0.0), float(gap_s))
    assert found == longest


def test_a_log_without_tokens_has_no_gaps() -> None:
    values, counts = TokenLog().gaps(np.empty(0))
    assert len(values) == len(counts) == 0


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_tokens_one_by_one(num_tokens: int) -> None:
    log, made = TokenLog(), request(0)
    for i in range(num_tokens):
        log.came_out(made, float(i * i))
    values, counts = log.gaps(np.empty(0))
    assert values.tolist() == [2.0 * i + 1 for i in range(num_tokens - 1)]
    assert counts.tolist() == [1] * (num_tokens - 1)
