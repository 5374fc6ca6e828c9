"""Schedulers of third parties: which functions can be rules, what is told of others, what can be compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from cbsim.base.binding import can_compile
from cbsim.base.errors import PluginError, plugin_error
from cbsim.core.building import config_record
from cbsim.schedulers import SCHEDULERS, Means, Scheduler
from cbsim.schedulers.chunked_prefill import ChunkedPrefillConfig, ChunkedPrefillScheduler
from cbsim.testing import Case, check_case
from cbsim.testing.conformance import what_prevents_compiling
from tests.core.drawn import request

MEANS = Means(10, 16, 1, 1.0, 100, 0)
HEAD = """
from cbsim.core.verbs import schedule
from cbsim.core.layout import Replica
from cbsim.schedulers.chunked_prefill import ChunkedPrefillScheduler
from cbsim.schedulers.chunked_prefill import decide as chunked_prefill
SEEN = {}
class Mine(ChunkedPrefillScheduler):
"""
LINE = len(HEAD.splitlines())
"""Of the class; its first function is on the next one."""

Write = Callable[[str], type[Scheduler]]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """From the body of a class to the class, in a module of the current folder."""

    def write(body: str) -> type[Scheduler]:
        (tmp_path / "mine.py").write_text(HEAD + body)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return SCHEDULERS.get("mine:Mine")
        finally:
            sys.dont_write_bytecode = before

    return write


CASE = Case(requests=tuple(request(i, i / 2, 5, 4) for i in range(6)), settings={"max_num_seqs": 2})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "    def decide(self, step):\n        self.schedule(step, self.running[0], 1)\n",
            [
                f"mine.py:{LINE + 2}: `self.schedule`: a rule's self is the records of a replica, not a "
                "scheduler; allowed: schedule(self, step, request, num_tokens) of cbsim.core.verbs"
            ],
        ),
        (
            "    def decide(self, step):\n        for request in self.running:\n            pass\n"
            "        head = self.waiting.head(step.now)\n",
            [
                f"mine.py:{LINE + 2}: `for ... in self.running`: rows of requests, and room behind them; "
                "allowed: `for place in range(self.own.num_running)`, with "
                "`self.requests[self.running[place]]`",
                f"mine.py:{LINE + 4}: `self.waiting`: a rule's self is the records of a replica, not a "
                "scheduler; allowed: head_of_queue(self, step.now) of cbsim.core.waiting_queue",
            ],
        ),
        (
            "    def decide(self, step):\n        super().decide(step)\n",
            [
                f"mine.py:{LINE + 2}: `super`: rules are plain functions; allowed: the base's rule, "
                "imported under another name"
            ],
        ),
        (
            "    def __init__(self, config, resources):\n        pass\n",
            [f"mine.py:{LINE + 1}: `__init__`: a scheduler has no instances; allowed: rules alone"],
        ),
        (
            "    def reject(self, request):\n        return 0\n",
            [f"mine.py:{LINE + 1}: nobody calls a rule `reject`; did you mean 'rejects'?"],
        ),
        (
            "    def frobnicate(self, request):\n        return 0\n",
            [f"mine.py:{LINE + 1}: nobody calls a rule `frobnicate`: only rules stand in the class"],
        ),
        (
            "    def decide(step):\n        pass\n",
            [f"mine.py:{LINE + 1}: `decide` takes (step), and is called with (self, step)"],
        ),
        (
            "    def decide(self, step):\n        rest(self, step)\n"
            "    def rest(self, step):\n        pass\n",
            [
                f"mine.py:{LINE + 2}: `rest`: rules call others by names of their module; allowed: "
                "`rest` imported there"
            ],
        ),
    ],
)
def test_what_can_be_no_rule_is_told_with_its_line(written: Write, body: str, told: list[str]) -> None:
    with pytest.raises(PluginError) as caught:
        check_case(written(body), CASE)
    assert list(caught.value.problems) == told


def test_a_scheduler_that_decides_nothing_is_told() -> None:
    class Nothing(Scheduler):
        Config = ChunkedPrefillConfig

    with pytest.raises(PluginError, match=r"test_own_scheduler.py:\d+: Nothing has no rule `decide`"):
        Nothing.rules()


@pytest.mark.parametrize("name", SCHEDULERS.builtin_names())
def test_the_built_in_rules_are_rules(name: str) -> None:
    assert "decide" in SCHEDULERS.get(name).rules()


class OwnConfig(ChunkedPrefillConfig):
    """Settings of every kind."""

    share: float = 0.5
    most: int = Field(default=3, ge=1)
    is_eager: bool = True
    limit_s: float | None = None
    order: str = "words"


class OwnScheduler(ChunkedPrefillScheduler):
    Config = OwnConfig

    def decide(self: Any, step: Any) -> None:
        pass


def test_settings_of_ones_own_arrive_as_numbers() -> None:
    numbers = OwnScheduler.numbers(OwnConfig(type="own", chunk_size=7), MEANS)
    config = config_record(numbers)
    assert (config["share"], config["most"], config["is_eager"], config["limit_s"]) == (0.5, 3, 1, 0)
    assert config["chunk_size"] == 7
    assert "order" not in config.dtype.names
    with_limit = config_record(OwnScheduler.numbers(OwnConfig(type="own", limit_s=2.5), MEANS))
    assert with_limit["limit_s"] == 2.5


NUMBERS = """    def decide(self, step):
        step.budget = min(step.budget, 5)
        chunked_prefill(self, step)
"""


@pytest.mark.skipif(not can_compile(), reason="numba is not installed")
def test_rules_within_the_subset_are_compiled(written: Write) -> None:
    scheduler = written(NUMBERS)
    assert what_prevents_compiling(scheduler, CASE) is None
    check_case(scheduler, CASE, compiled=True)


@pytest.mark.skipif(not can_compile(), reason="numba is not installed")
def test_rules_outside_of_it_are_interpreted_and_told_with_their_line(written: Write) -> None:
    body = "counts = {}\n        counts[step.number] = 1"
    scheduler = written(f"    def decide(self, step):\n        {body}\n        chunked_prefill(self, step)\n")
    check_case(scheduler, CASE, compiled=True)
    told = what_prevents_compiling(scheduler, CASE)
    assert told is not None
    assert told.startswith(f"mine.py:{LINE + 3}: ")


def test_what_a_rule_raises_is_told_with_its_line(written: Write) -> None:
    scheduler = written("    def decide(self, step):\n        step.nothing\n")
    try:
        scheduler.rules()["decide"](None, object())
    except AttributeError as error:
        parts = {"workload": type(written), "scheduler": scheduler}
        told = plugin_error(error, parts, " at 0 s")
    assert str(told) == (
        "scheduler Mine failed at 0 s: AttributeError: 'object' object has no attribute 'nothing' "
        f"(mine.py:{LINE + 2})"
    )
