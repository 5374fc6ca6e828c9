"""The decode group's few integers against a list of members counted one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cluster.engine.decode_group import DecodeGroup
from cbsim.schedulers.kvcache import BlockPool
from cbsim.workload.request import Request

BLOCK_SIZE = 4


@dataclass
class Naive:
    """A member as it stands, every token counted."""

    request: Request
    computed: int
    left: int
    num_blocks: int
    steps: list[int] = field(default_factory=list)


def joining(number: int, computed: int, left: int) -> Request:
    """A request with so many tokens computed, one of them the first of its answer, and `left` to make."""
    request = Request(f"r{number}", 0.0, computed, left + 1)
    request.admission = number
    request.num_computed_tokens = computed
    request.num_generated_tokens = 1
    request.num_blocks = -(-computed // BLOCK_SIZE)
    return request


joins = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 15)), max_size=3)
"""Computed tokens and tokens left of those that join before a step."""


@settings(max_examples=150, deadline=None)
@given(plan=st.lists(joins, min_size=1, max_size=25), lag=st.integers(0, 1), takes_blocks=st.booleans())
def test_equals_counting_one_by_one(plan: list[list[tuple[int, int]]], lag: int, takes_blocks: bool) -> None:
    """`lag` is how many decided steps have not run yet, as with asynchronous scheduling."""
    pool = BlockPool(1000, BLOCK_SIZE)
    group = DecodeGroup(pool, takes_blocks=takes_blocks)
    members: list[Naive] = []
    decided: list[list[Naive]] = []
    blocks_taken: list[int] = []
    number = 0
    for step, newcomers in enumerate(plan):
        for computed, left in newcomers:
            request = joining(number, computed, left)
            members.append(Naive(request, computed, left, request.num_blocks))
            group.join(request)
            number += 1
        active = [member for member in members if member.left]
        if not active:
            break
        lingering = [member for member in members if not member.left and member.steps[-1] >= step - lag]
        needing = [member for member in active if member.computed % BLOCK_SIZE == 0]
        assert group.num_active == len(active)
        assert group.context == sum(member.computed for member in active)
        assert group.max_context == max(member.computed for member in active) + 1
        assert group.next_end == step + min(member.left for member in active) - 1
        assert group.num_needed == (len(needing) if takes_blocks else 0)
        assert group.num_lingering == len(lingering)
        assert group.lingering_context == sum(member.computed for member in lingering)

        num_free = pool.num_free
        group.step()
        assert num_free - pool.num_free == (len(needing) if takes_blocks else 0)
        blocks_taken.append(num_free - pool.num_free)
        for member in active:
            member.num_blocks += member in needing and takes_blocks
            member.computed += 1
            member.left -= 1
            member.steps.append(step)
        decided.append(active)
        if step >= lag:
            committed = step - lag
            in_step = decided[committed]
            ended = [
                member.request for member in in_step if member.steps[-1] == committed and not member.left
            ]
            assert {m.request for m in group.members_of(committed)} == {m.request for m in in_step}
            assert [member.request for member in group.commit()] == ended
    num_committed, num_decided = group.num_committed, group.num_planned
    inside = {member.request for member in group.dissolve()}
    for member in members:
        gone = bool(not member.left and member.steps and member.steps[-1] < num_committed)
        assert (member.request in inside) is not gone
        num_run = sum(step < num_committed for step in member.steps)
        assert member.request.num_computed_tokens == member.computed
        assert member.request.num_generated_tokens == 1 + num_run
        assert member.request.num_in_flight_tokens == len(member.steps) - num_run
        assert member.request.num_blocks == member.num_blocks
    assert group.num_hidden == group.context == group.lingering_context == 0
    assert group.num_committed == group.num_planned == num_decided
    assert group.blocks_taken().tolist() == blocks_taken


def test_members_that_end_together_leave_in_order_of_admission() -> None:
    group = DecodeGroup(BlockPool(100, BLOCK_SIZE), takes_blocks=True)
    late, early = joining(1, 5, 2), joining(0, 5, 2)
    group.join(late)
    group.join(early)
    group.advance(2)
    assert group.commit() == []
    assert [member.request for member in group.commit()] == [early, late]


def test_advancing_at_once_equals_step_by_step() -> None:
    groups = [DecodeGroup(BlockPool(100, BLOCK_SIZE), takes_blocks=True) for _ in range(2)]
    for group in groups:
        for number, computed in enumerate((3, 8, 17)):
            group.join(joining(number, computed, 9))
    for _ in range(7):
        groups[0].step()
    groups[1].advance(7)
    for name in ("num_active", "context", "max_context", "num_needed", "next_end", "num_planned"):
        assert getattr(groups[0], name) == getattr(groups[1], name)


@settings(max_examples=200, deadline=None)
@given(
    contexts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    num_before=st.integers(0, 9),
    num_steps=st.integers(1, 40),
    num_free=st.integers(0, 60),
)
def test_blocks_of_many_steps_against_step_by_step(
    contexts: list[int], num_before: int, num_steps: int, num_free: int
) -> None:
    pool = BlockPool(10_000, BLOCK_SIZE)
    group = DecodeGroup(pool, takes_blocks=True)
    for number, computed in enumerate(contexts):
        group.join(joining(number, computed, 1000))
    group.take_blocks(num_before)
    group.advance(num_before)
    needed = [
        sum((computed + num_before + step) % BLOCK_SIZE == 0 for computed in contexts)
        for step in range(num_steps)
    ]
    assert group.num_blocks_of(num_steps) == sum(needed)
    pool.num_free = num_free
    affordable = max(n for n in range(num_steps + 1) if sum(needed[:n]) <= num_free)
    # One step is the least that is asked for: whoever asks has seen to its blocks.
    assert group.num_affordable(num_steps) == max(1, affordable)
    pool.num_free = 1000
    group.take_blocks(num_steps)
    assert pool.num_free == 1000 - sum(needed)


def test_where_no_blocks_are_taken_all_steps_are_affordable() -> None:
    pool = BlockPool(1, BLOCK_SIZE)
    group = DecodeGroup(pool, takes_blocks=False)
    group.join(joining(0, 5, 100))
    pool.num_free = 0
    assert group.num_affordable(17) == 17
    group.take_blocks(17)
    assert pool.num_free == 0
