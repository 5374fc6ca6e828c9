"""Conditions: what they mean, and that nothing but comparisons gets in."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import ConfigError
from cbsim.config.condition import parse_condition

SETTINGS = {"s": {"chunk": 512, "budget": 2048, "type": "static"}, "seed": 3, "on": True, "off": None}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("s.chunk <= s.budget", True),
        ("s.chunk > s.budget", False),
        ("s.chunk * 4 == s.budget", True),
        ("s.budget // s.chunk - 1 >= seed", True),
        ("s.budget % 2 != 0", False),
        ("s.budget / s.chunk < 3.9", False),
        ("1 < seed < 4", True),
        ("1 < seed < 3", False),
        ("s.type == 'static' and not seed == 4", True),
        ("s.type in ['vllm', 'static'] or seed == 9", True),
        ("s.type not in ('vllm', 'static')", False),
        ("on == true and off == null", True),
        ("on", True),
        ("seed > -1", True),
        ("s.gone < 3", True),
    ],
)
def test_what_conditions_mean(text: str, holds: bool) -> None:
    assert parse_condition(text).holds(SETTINGS) is holds


def test_the_keys_it_reads() -> None:
    assert parse_condition("s.chunk <= s.budget and s.chunk > 1").names == ("s.chunk", "s.budget")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("__import__('os')", "__import__('os')"),
        ("seed.__class__()", "seed.__class__()"),
        ("2 ** 999999", "2 ** 999999"),
        ("[x for x in y]", "[x for x in y]"),
        ("lambda: 1", "lambda: 1"),
        ("s['chunk'] < 2", "s['chunk']"),
        ("f'{seed}' == 'a'", "f'{seed}'"),
        ("seed is None", "seed is None"),
        ("b'x' == seed", "b'x'"),
        ("(a := 3) < 2", "a := 3"),
    ],
)
def test_anything_else_is_refused(text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_condition(text)
    assert caught.value.problems == (
        f"'{shown}' is not allowed; expected keys and values with < <= > >= == != in and or not",
    )


@pytest.mark.parametrize("text", ["", "seed <", "seed < 3;", "seed = 3", "a" + "(" * 500, "\x00"])
def test_no_expression_at_all(text: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be read; expected a comparison, as in 'seed < 3'"):
        parse_condition(text)


def test_a_text_too_long_is_not_parsed() -> None:
    with pytest.raises(ConfigError, match="1001 characters; expected a comparison of at most 1000"):
        parse_condition("a" * 1001)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s.type < 3", "'<' not supported between instances of 'str' and 'int'"),
        ("s.type * 3 == 'x'", "can't compute with 'static'"),
        ("seed / 0 > 1", "division by zero"),
    ],
)
def test_values_that_do_not_go_together(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_condition(text).holds(SETTINGS)
    assert caught.value.problems == (f"'{text}': {reason}",)


NUMBERS = st.integers(-50, 50)
OPERATORS: dict[str, Any] = {"<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne}


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from(sorted(OPERATORS)), st.sampled_from(sorted(OPERATORS)))
def test_chains_mean_what_they_mean_in_python(a: int, b: int, c: int, first: str, second: str) -> None:
    condition = parse_condition(f"a {first} b {second} c")
    assert condition.holds({"a": a, "b": b, "c": c}) is (OPERATORS[first](a, b) and OPERATORS[second](b, c))


@pytest.mark.parametrize("text", ["-" * 990 + "1", "not " * 200 + "1"])
def test_what_is_nested_too_deeply_is_told(text):
    with pytest.raises(ConfigError, match="nested more than 50 deep"):
        parse_condition(text)


def test_parentheses_alone_nest_nothing():
    assert parse_condition("(" * 80 + "1" + ")" * 80 + " < 2").holds({})
