"""The bracket on margins whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.studies.capacity.search import Bracket


def climb(bracket: Bracket, margin: Callable[[int], float]) -> int:
    """Try rungs until the bracket has no more to ask; returns how many."""
    for num_tried in range(200):
        rung = bracket.next_rung()
        if rung is None:
            return num_tried
        assert rung not in bracket.margins
        assert bracket.bottom <= rung <= bracket.top
        bracket.margins[rung] = margin(rung)
    raise AssertionError("never ends")


@given(bottom=st.integers(-300, 50), size=st.integers(2, 600), place=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_neighbours_that_hold_and_fail_are_found_in_few_tries(bottom: int, size: int, place: float) -> None:
    top = bottom + size
    last = bottom + int(place * (size - 1))
    bracket = Bracket(bottom, top)
    num_tried = climb(bracket, lambda rung: 0.0 if rung <= last else -1.0)
    assert (bracket.holds_at, bracket.fails_at) == (last, last + 1)
    assert num_tried <= 25


def test_the_crossing_lies_between_neighbours_by_linear_interpolation() -> None:
    bracket = Bracket(-10, 50)
    climb(bracket, lambda rung: {5: 0.05, 6: -0.15}.get(rung, 0.1 if rung < 5 else -0.9))
    assert bracket.crossing(lambda rung: 2.0**rung) == 32 + 32 * 0.05 / (0.05 + 0.15)


def test_an_slo_never_met_ends_at_once() -> None:
    bracket = Bracket(-10, 50)
    assert climb(bracket, lambda rung: -0.4) == 1
    assert bracket.holds_at is None
    assert bracket.crossing(lambda rung: 2.0**rung) == 2.0**-10


def test_an_slo_always_met_has_no_crossing() -> None:
    bracket = Bracket(-10, 50)
    climb(bracket, lambda rung: 0.1)
    assert bracket.holds_at == 50
    assert bracket.crossing(lambda rung: 2.0**rung) is None


def test_the_lowest_rate_that_fails_counts() -> None:
    bracket = Bracket(-10, 50, {0: 0.1, 4: -0.4, 8: 0.1})
    assert (bracket.holds_at, bracket.fails_at) == (0, 4)
