"""Records of requests: made as a run comes to them, given back when nobody looks at them any more."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cbsim.base.binding import can_compile
from cbsim.core import request_rows
from cbsim.core.layout import (
    FAILED,
    FINISHED,
    HANDED_OVER,
    NOBODY,
    OWN,
    PREEMPTED,
    REJECTED,
    REQUEST,
    RUNNING,
    WAITING,
)
from cbsim.core.request_rows import give_back, num_over
from cbsim.testing import Case
from tests.core.drawn import Setting, request
from tests.core.runs import assert_same

Array = NDArray[Any]

OWNS = np.zeros(2, OWN)
OWNS["last_call"] = (5, 7)


def visits(*states: int) -> Array:
    rows = np.zeros(len(states), REQUEST)
    rows["state"], rows["next_visit"], rows["replica"] = states, NOBODY, 1
    rows["index"] = np.arange(100, 100 + len(states))
    return rows


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), 0),
        ((FINISHED, REJECTED, FAILED), 3),
        ((FINISHED, RUNNING, FINISHED), 1),
        ((WAITING, FINISHED), 0),
        ((FINISHED, PREEMPTED), 1),
    ],
)
def test_what_has_ended_goes_up_to_the_first_that_has_not(states: tuple[int, ...], expected: int) -> None:
    rows = visits(*states)
    assert num_over(rows, OWNS) == expected


def test_what_has_ended_stays_while_it_holds_blocks() -> None:
    rows = visits(FINISHED, FINISHED, FINISHED)
    rows["num_blocks"][1] = 1
    assert num_over(rows, OWNS) == 1


def test_what_has_ended_stays_while_a_step_of_its_replica_holds_it() -> None:
    rows = visits(FINISHED, FINISHED, FINISHED)
    rows["last_call"] = (7, 5, 8)
    rows["replica"] = (1, 0, 1)
    assert num_over(rows, OWNS) == 2, "the last calls whose results were taken are 5 and 7"


def test_what_was_handed_over_stays_as_long_as_what_follows() -> None:
    rows = visits(HANDED_OVER, FINISHED, RUNNING)
    assert num_over(rows, OWNS) == 0, "nobody has taken it over yet"
    rows["next_visit"][0] = 102
    assert num_over(rows, OWNS) == 0
    rows["state"][2] = FINISHED
    assert num_over(rows, OWNS) == 3


@pytest.mark.skipif(not can_compile(), reason="interpreted runs have all records")
@pytest.mark.parametrize("kind", ["static", "vllm"])
def test_long_runs_are_as_with_all_records(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch keeps the blocks of those of it that have ended; all others go."""
    rows = tuple(request(i, 16 * (i // 4) + i % 4, 3 + i % 7, (1, 2, 14, 3)[i % 4]) for i in range(120))
    num_gone = num_held = 0

    def counted(rows: Array, own: Array) -> int:
        nonlocal num_gone, num_held
        num_gone += num_over(rows, own)
        num_held += int((rows["num_blocks"][rows["state"] == FINISHED] > 0).sum())
        return num_over(rows, own)

    monkeypatch.setattr(request_rows, "num_over", counted)
    limits = {"max_num_seqs": 6} | ({"max_model_len": 64} if kind == "static" else {})
    assert_same(Setting(kind, Case(rows, limits, num_blocks=200)).make_setup(), ("compiled", "interpreted"))
    assert num_gone > 80
    assert (num_held > 10) == (kind == "static")


@pytest.mark.skipif(sys.platform != "linux", reason="memory stays with the process elsewhere")
def test_whole_pages_go_back_and_nothing_beside_them() -> None:
    array = np.ones(3 * request_rows.PAGE_BYTES, np.uint8)
    give_back(array[100:-100])
    assert array[:100].all()
    assert array[-100:].all()
    assert request_rows.PAGE_BYTES <= (array == 0).sum() <= len(array) - 200
