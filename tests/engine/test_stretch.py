"""How many steps a stretch may have, against counting blocks step by step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.engine.stretch import num_affordable, num_taken

needs_of_a_round = st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any)


def naive_taken(num_steps: int, needs: list[int]) -> int:
    return sum(needs[step % len(needs)] for step in range(num_steps))


@settings(max_examples=300, deadline=None)
@given(needs=needs_of_a_round, num_steps=st.integers(0, 60))
def test_blocks_taken(needs: list[int], num_steps: int) -> None:
    assert num_taken(num_steps, sum(needs), needs) == naive_taken(num_steps, needs)


@settings(max_examples=300, deadline=None)
@given(needs=needs_of_a_round, num_steps=st.integers(1, 60), num_free=st.integers(0, 80))
def test_steps_that_find_their_blocks(needs: list[int], num_steps: int, num_free: int) -> None:
    expected = max(n for n in range(num_steps + 1) if naive_taken(n, needs) <= num_free)
    assert num_affordable(num_steps, sum(needs), needs, num_free) == expected


def test_where_no_blocks_are_taken_all_steps_are_affordable() -> None:
    assert num_affordable(17, 5, [], 0) == 17
