"""Records in their three forms: arrays, objects in their place, and objects that read the arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from cbsim.base import records
from cbsim.base.records import LiveTable, live, packed, plain

PAIR = np.dtype([("count", "i4"), ("share", "f8")])


class Several(NamedTuple):
    one: Any
    table: Any
    numbers: Any
    rows: Any
    matrix: Any
    other: Any


def several() -> Several:
    table = np.array([(1, 0.5), (2, np.nan), (3, 2.0)], PAIR)
    rows = np.array([[(4, 0.0)], [(5, 1.0)]], PAIR)
    return Several(np.zeros(1, PAIR)[0], table, np.arange(4.0), rows, np.arange(6).reshape(2, 3), "else")


def told(value: Any) -> str:
    """All that can be read of it, with its types."""
    if isinstance(value, (str, int, float)):
        return repr(value)
    if hasattr(value, "count") and hasattr(value, "share"):
        return f"({value.count!r}, {value.share!r})"
    if hasattr(value, "matrix"):
        return told([getattr(value, name) for name in Several._fields])
    return f"[{', '.join(told(each) for each in value)}]"


def test_what_is_live_reads_as_what_is_plain() -> None:
    assert told(live(several())) == told(plain(several()))
    assert told(live(several()).table[1:]) == told(plain(several()).table[1:])
    assert len(live(several()).table) == 3


def test_what_is_live_shows_what_stands_there_now_and_a_slice_what_stood_there() -> None:
    arrays = several()
    shown = live(arrays)
    first, rest = shown.table[0], shown.table[1:]
    arrays.one["count"], arrays.table["count"], arrays.rows[1]["share"] = 7, 8, 9.0
    arrays.numbers[0], arrays.matrix[1, 2] = 10.0, 11
    assert (shown.one.count, first.count, shown.rows[1][0].share) == (7, 8, 9.0)
    assert (shown.numbers[0], shown.matrix[1][2]) == (10.0, 11)
    assert [each.count for each in rest] == [2, 3]


def test_what_is_live_cannot_be_set() -> None:
    shown = live(several())
    with pytest.raises(AttributeError):
        shown.one.count = 1
    with pytest.raises(TypeError):
        shown.numbers[0] = 1.0
    with pytest.raises(TypeError):
        shown.table[0] = shown.one


def test_a_live_table_is_gone_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "COPIED_AT_ONCE", 2)
    assert [each.count for each in live(several()).table] == [1, 2, 3]


def test_live_records_may_be_of_a_class_of_ones_own() -> None:
    class Counted:
        __slots__ = ("count", "name", "share")

        def double(self) -> int:
            return 2 * int(self.count)

    table = np.array([(1, 0.5), (2, 0.5)], PAIR)
    counted = LiveTable(table, Counted)[1]
    counted.name = "b"
    table["count"] = 5
    assert isinstance(counted, Counted)
    assert (counted.double(), counted.name) == (10, "b")


def test_packed_is_the_inverse_of_plain() -> None:
    table = several().table
    assert packed(plain(table), PAIR).tobytes() == table.tobytes()
