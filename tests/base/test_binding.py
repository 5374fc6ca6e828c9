"""Rules are bound by name, compiled or not, and a changed rule is never served from a stale cache."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import numpy as np
import pytest

from cbsim.base import binding
from cbsim.base.binding import Bound, Compiled, can_compile
from cbsim.base.paths import cache_folder
from cbsim.base.records import plain

RULES = """
    from cbsim.base.binding import Bound

    STEP = {step}

    def price(n):
        return 1.0

    def own_price(n):
        return {own} * n + STEP

    def add_up(n):
        total = 0.0
        for i in range(n):
            total += price(i)
        return total
"""


def price(n: int) -> float:
    return 1.0


def dear(n: int) -> float:
    return 10.0 * n


def add_up(n: int) -> float:
    total = 0.0
    for i in range(n):
        total += price(i)
    return total


def looked_up(n: int) -> float:
    return {1: 2.0}[n]


def test_a_name_stands_for_another_function() -> None:
    assert Bound(add_up, {}).interpreted(4) == 4.0
    assert Bound(add_up, {"price": dear}).interpreted(4) == 60.0
    assert add_up(4) == 4.0


def test_what_takes_part_makes_the_key() -> None:
    keys = {Bound(add_up, parts).key for parts in ({}, {"price": dear}, {"unused": dear})}
    assert len(keys) == 2


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CBSIM_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CBSIM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cbsim"


def test_without_numba_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(package: str) -> str:
        raise binding.metadata.PackageNotFoundError(package)

    binding._version.cache_clear()
    monkeypatch.setattr(binding.metadata, "version", no_version)
    binding._version.cache_clear()
    assert not can_compile()
    assert Bound(add_up, {"price": dear}).interpreted(4) == 60.0
    assert len(Bound(add_up, {}).key) == 24
    binding._version.cache_clear()


COMPILED: list[Compiled] = []
"""Never let go, as cbsim lets go of none: LLVM would, of what all share."""


@pytest.fixture
def run_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[float, bool]]:
    """Gives the sum of 4 prices by compiled rules, new to this process, and whether they were cached."""
    monkeypatch.setenv("CBSIM_CACHE_DIR", str(tmp_path / "cache"))

    modules: dict[float, dict[str, Any]] = {}

    def run_rules(own: float = 2.0, step: float = 0.0) -> tuple[float, bool]:
        if own not in modules:
            modules[own] = {"__name__": "own_rules"}
            exec(dedent(RULES.format(own=own, step=step)), modules[own])
        rules = modules[own]
        rules["STEP"] = step
        COMPILED.append(Compiled(Bound(rules["add_up"], {"price": rules["own_price"]})))
        COMPILED[-1].prepare(4)
        return COMPILED[-1](4), COMPILED[-1].was_cached

    return run_rules


class Tally(NamedTuple):
    total: Any
    others: tuple[Any, ...]


def count_up(world: Any, by: int) -> int:
    world.total.count += by
    for row in world.others[0]:
        row.count += 1
    return int(world.total.count)


@pytest.mark.skipif(not can_compile(), reason="needs numba")
def test_a_repeated_call_sees_and_changes_the_records_themselves() -> None:
    rows = np.zeros(3, [("count", "i8")])
    world = Tally(rows[0], (rows[1:],))
    again = Bound(count_up, {}).compiled.bound_to(world, 5)
    assert (again(), again()) == (5, 10)
    rows["count"][0] = 100
    assert again() == 105
    assert rows["count"].tolist() == [105, 3, 3]


def count_at(world: Any, place: int) -> int:
    return int(world.others[0][place].count)


@pytest.mark.skipif(not can_compile(), reason="needs numba")
def test_an_index_means_the_same_at_both_speeds_and_none_reaches_beyond_a_table() -> None:
    rows = np.array([(7,), (8,), (9,)], [("count", "i8")])
    world, bound = Tally(rows[0], (rows,)), Bound(count_at, {})
    for place in (0, 2, -1, -3):
        assert bound.compiled(world, place) == bound.interpreted(plain(world), place) == rows["count"][place]
    for place in (3, -4, 2**40, -(2**40), 2**63 - 1, -(2**63)):
        for run, records in ((bound.compiled, world), (bound.interpreted, plain(world))):
            with pytest.raises(IndexError):
                run(records, place)


def test_a_changed_rule_gives_another_result(tmp_path: Path, run_rules: Any) -> None:
    assert run_rules() == (12.0, False)
    assert run_rules() == (12.0, True)
    assert run_rules(own=3.0) == (18.0, False)
    assert run_rules(own=3.0, step=1.0) == (22.0, False)
    assert run_rules() == (12.0, True)
    for path in tmp_path.rglob("*.code"):
        path.write_bytes(path.read_bytes()[:50])  # as a killed process might have left it
    assert run_rules() == (12.0, False)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, run_rules: Any) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    assert run_rules() == (12.0, False)


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    (tmp_path / "own_rules.py").write_text(dedent(RULES.format(own=2.0, step=0.0)), encoding="utf-8")
    code = (
        "import own_rules as r; from cbsim.base.binding import Bound\n"
        "c = Bound(r.add_up, {'price': r.own_price}).compiled; c.prepare(4); print(c(4))"
    )
    environment = {"CBSIM_CACHE_DIR": str(tmp_path / "c"), "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
    several = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in several] == ["12.0"] * 2


@pytest.mark.skipif(not hasattr(os, "fork") or not can_compile(), reason="needs fork and numba")
def test_ctrl_c_ends_what_llvm_is_doing_at_once() -> None:
    from cbsim.base.translation import in_a_copy

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def sleep() -> bytes:
        ctypes.PyDLL(None).sleep(30)  # holds the interpreter's lock, as nothing of LLVM's even does
        return b"late"

    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            in_a_copy(sleep)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - began < 1.0
    assert in_a_copy(lambda: b"x" * 1_000_000) == b"x" * 1_000_000
    with pytest.raises(ZeroDivisionError):  # what fails there is done here, and fails again
        in_a_copy(lambda: bytes([1 // 0]))
