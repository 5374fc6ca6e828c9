"""Gaps of all replicas together, against a count one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cluster.engine.token_gaps import distinct_gaps

parts = st.lists(
    st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.3, 1.0, 7.5]), st.integers(1, 9)), max_size=6)
)


@settings(max_examples=200, deadline=None)
@given(drawn=parts)
def test_each_gap_once_and_rising_with_how_often_it_occurred(drawn: list[list[tuple[float, int]]]) -> None:
    expected: Counter[float] = Counter()
    for part in drawn:
        for gap_s, count in part:
            expected[gap_s] += count
    columns = [
        np.array([gap for gap, _ in part]) + 1j * np.array([n for _, n in part], dtype=np.int32)
        for part in drawn
    ]
    gap_s, gap_count = distinct_gaps(columns)
    assert gap_s.tolist() == sorted(expected)
    assert gap_count.tolist() == [expected[gap] for gap in sorted(expected)]
