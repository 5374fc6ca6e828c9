"""Record: rows come out as they went in, whatever the pieces, and steps in the order of time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbsim.core.layout import REQUEST, STEP_ROW
from cbsim.core.record import REQUESTS, Record, RequestColumns, StepColumns

NAMES = ("start_s", "replica", "step", "num_running", "kv_blocks_total")


def record_of(rows: Sequence[tuple[int, int, int]], ends: set[int], spooled: bool) -> Record:
    """Steps `(start, replica, running)`, with a piece that ends before each row in `ends`."""
    record = Record()
    steps = np.zeros(len(rows), STEP_ROW)
    for step, (number, row) in zip(steps, enumerate(rows), strict=True):
        step["start_s"], step["replica"], step["num_running"] = row
        step["step"] = number
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbsim.core.record.HELD_BYTES", 0 if spooled else 1 << 30)
        for number in range(len(rows)):
            if number in ends:
                record.end_piece()
            record.add("steps", steps[number : number + 1])
    return record


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 70_000)), max_size=25),
    ends=st.sets(st.integers(0, 25)),
    num_rows=st.integers(1, 30),
    spooled=st.booleans(),
)
def test_steps_come_in_order_whatever_the_pieces(
    rows: list[tuple[int, int, int]], ends: set[int], num_rows: int, spooled: bool
) -> None:
    """By start, then by replica, then as they were written; some at a time give what all at once give."""
    num_blocks = np.array([100, 200, 300])
    columns = StepColumns(record_of(rows, ends, spooled), NAMES, num_blocks)
    expected = [
        (start, replica, number, running, num_blocks[replica])
        for number, (start, replica, running) in sorted(enumerate(rows), key=lambda row: row[1][:2])
    ]
    assert list(zip(*(columns[name].tolist() for name in NAMES), strict=True)) == expected
    parts = list(columns.in_order(NAMES, num_rows))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in NAMES}
    assert list(zip(*(joined[name].tolist() for name in NAMES), strict=True)) == expected
    assert all(joined[name].dtype.itemsize == 8 for name in NAMES)


@pytest.mark.parametrize("are_written", [False, True])
def test_requests_are_as_an_array_of_their_records(are_written: bool) -> None:
    """Whether they stand in the record, in several pieces, or are still what they were."""
    rows = np.zeros(20, REQUEST)
    rows["index"], rows["arrival_s"] = np.arange(20), np.linspace(0.0, 1.0, 20)
    rows["num_prompt_tokens"], rows["stage"] = 3 * np.arange(20) ** 4, np.arange(20) % 2
    record = Record()
    for part in np.split(rows, [5, 17]) if are_written else ():
        record.add(REQUESTS, part)
        record.end_piece()
    columns = RequestColumns(rows[:0] if are_written else rows, record)
    assert len(columns) == 20
    for name in REQUEST.names or ():
        assert columns[name].dtype == REQUEST[name]
        assert columns[name].flags.c_contiguous
        assert columns[name].tolist() == rows[name].tolist()
    assert columns[rows["stage"] == 1].tolist() == rows[1::2].tolist()
    assert columns[7].tolist() == rows[7].tolist()
    assert columns[7]["num_prompt_tokens"] == 3 * 7**4
