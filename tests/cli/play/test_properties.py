"""Whatever a player does, nobody and no block is lost, and the same keys show the same again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbsim.cli.play.program import Program
from cbsim.cli.play.session import Session
from tests.cli.play.games import SCHEDULERS, check, check_ended, experiment, standing

STEPS = st.integers(1, 6).map(lambda count: [" "] * count)
LIMITS = st.tuples(st.sampled_from("tcnk"), st.sampled_from([0, 1, 3, 8, 16, 24, 31, 64])).map(
    lambda limit: [limit[0], *str(limit[1]), "enter"]
)
RUNGS = st.sampled_from("12345").map(lambda key: [key])
ADDITIONS = st.sampled_from(["20 6 0", "3 1 -1", "60 12 1", "200 9", "x", "0 4"]).map(
    lambda text: ["a", *text, "enter"]
)
OTHERS = st.sampled_from([["u"], ["R"], ["u", "u"], ["?", "q"], ["t", "esc"], ["r"], ["+"], ["left"], ["f"]])
SETTINGS = st.sampled_from(["policy=priority", "async_scheduling=true", "watermark=0.2", "nonsense=1"]).map(
    lambda text: [":", *text, "enter"]
)
KEYS = st.lists(st.one_of(STEPS, STEPS, LIMITS, RUNGS, ADDITIONS, OTHERS, SETTINGS), max_size=12).map(
    lambda parts: [key for part in parts for key in part]
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("scheduler", ["static", "chunked_prefill", "swap", "vllm-async"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=KEYS, shares_prefix=st.booleans())
def test_any_keys(scheduler: str, folder: Path, keys: list[str], shares_prefix: bool) -> None:
    played = experiment(folder, SCHEDULERS[scheduler], shares_prefix=shares_prefix)
    program = Program(Session(played))
    for key in keys:
        program.run_script([key])
        check(program.session.replica)
    assert all(line.cell_len == 80 for line in program.frame(80, 24))
    before = standing(program.session.replica)
    if program.session.step():
        program.session.undo()
        assert standing(program.session.replica) == before
    program.run_script(["f"])
    assert program.session.fleet.is_over
    check_ended(program.session)
    again = Program(Session(played))
    again.run_script([*keys, "f"])
    assert standing(again.session.replica) == standing(program.session.replica)
