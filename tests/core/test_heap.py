"""The pairing heap against a sorted list."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.records import record_class
from cbsim.core.heap import put, take_out
from cbsim.core.layout import NOBODY, NODE


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 99)), max_size=80))
def test_the_root_is_the_least_whatever_comes_and_goes(script: list[tuple[int, int, int]]) -> None:
    """A third of the time the root leaves, a third some other node, whose keys may be equal."""
    nodes: Any = [record_class(NODE)(0.0, NOBODY, NOBODY, NOBODY, 0) for _ in script]
    root, inside = NOBODY, []
    for index, (action, key, number) in enumerate(script):
        if action and inside:
            gone = inside.pop(0 if action == 1 else number % len(inside))
            root = take_out(nodes, root, gone[1])
            assert not nodes[gone[1]].is_in
        inside.append((float(key), index))
        inside.sort()
        root = put(nodes, root, index, float(key))
        assert root == inside[0][1]
        assert all(nodes[index].is_in for _, index in inside)
    for _, index in inside:
        assert root == index
        root = take_out(nodes, root, index)
    assert root == NOBODY
