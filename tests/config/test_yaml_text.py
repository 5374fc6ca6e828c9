"""YAML 1.2 scalars, lines, and every way in which a text is no YAML."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import ConfigError
from cbsim.config.yaml_text import MAX_INT, dump_yaml, format_keys, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000),
        ("1E6", 1_000_000),
        ("-2e2", -200),
        ("1.5e3", 1500.0),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("+7", 7),
        (str(MAX_INT), MAX_INT),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(f"a: {text}", "f")
    assert parsed.problems == []
    assert parsed.value == {"a": value}
    assert type(parsed.value["a"]) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml("a: .nan", "f").value["a"])


def test_a_whole_number_too_large_to_be_exact_is_a_float() -> None:
    assert parse_yaml("a: 1e30", "f").value == {"a": 1e30}
    assert parse_yaml("a: 1e400", "f").value == {"a": math.inf}


def test_every_key_and_item_has_its_line() -> None:
    text = "# comment\na: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n"
    lines = parse_yaml(text, "f").lines
    assert lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 5,
        ("b", 1, "c"): 5,
        ("b", 1, "d"): 6,
    }


def test_anchors_and_merge_keys() -> None:
    text = "b: &b {p: 1, q: 2}\no: &o {q: 5, r: 6}\none: {<<: *b, q: 3}\ntwo: {<<: [*b, *o]}"
    parsed = parse_yaml(text, "f")
    assert parsed.problems == []
    assert parsed.value["one"] == {"p": 1, "q": 3}
    assert parsed.value["two"] == {"p": 1, "q": 2, "r": 6}


def test_values_given_twice_by_alias_are_not_shared() -> None:
    value = parse_yaml("a: &a {x: [1]}\nb: *a", "f").value
    value["a"]["x"].append(2)
    assert value["b"] == {"x": [1]}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "f:2: a tab can't indent YAML; use spaces"),
        ("a: b: c", "f:1: not valid YAML: mapping values are not allowed here"),
        (
            "a: [1, 2\nb: 3",
            "f:2: not valid YAML: expected ',' or ']', but got ':' while parsing a flow sequence",
        ),
        ("a: 1\n---\nb: 2\n", "f:2: a second document ('---'); expected one"),
        ("a: *b", "f:1: *b: no such anchor above"),
        ("x: &a [*a]", "f:1: an alias that holds itself"),
        ("a: 'b\n", "f:2: not valid YAML: found unexpected end of stream while scanning a quoted scalar"),
        ("ok: 1\na: \x07", "f:2: character U+0007 is not allowed in YAML"),
        ("[" * 5000, "f: nested too deeply to be read"),
        (BOMB, "f: more than 100,000 values once its aliases are followed"),
    ],
)
def test_a_text_that_is_no_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert caught.value.problems == (message,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a: given twice, first in line 1"),
        ("s:\n  k: 1\n  k: 1", "f:3: s.k: given twice, first in line 2"),
        ("a: 99999999999999999999", "f:1: a: got 99999999999999999999; expected an integer below 2**63"),
        ("a: -9223372036854775809", "f:1: a: got -9223372036854775809; expected an integer below 2**63"),
        (
            "a: " + "9" * 9000,
            "f:1: a: got 999999999999... (9000 characters); expected an integer below 2**63",
        ),
        ("a: !!python/object:os.system {}", "f:1: a: tag !!python/object:os.system can't be used"),
        ("a: !!int abc", "f:1: a: tag !!int can't be used for 'abc'"),
        ("a: {[1]: 2}", "f:1: a: a key must be plain text"),
        ("? [1, 2]\n: 3", "f:1: a key must be plain text"),
        ("~: 1", "f:1: a key must be plain text"),
        ("a: {<<: 3}", "f:1: a: '<<' merges mappings only"),
    ],
)
def test_mistakes_that_leave_the_rest_readable(text: str, message: str) -> None:
    assert parse_yaml(text, "f").problems == [message]


def test_a_key_given_twice_keeps_its_first_value() -> None:
    assert parse_yaml("a: 1\na: 2", "f").value == {"a": 1}


texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=8)
numbers_in_quotes = st.sampled_from(["1e3", "-2E+5", "0o7", "0x1", "1_000", "1.e1", "null", "~", "yes", ""])
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INT, MAX_INT)
    | st.floats(allow_nan=False)
    | (texts | numbers_in_quotes),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts | numbers_in_quotes, plain_values, max_size=5))
def test_what_is_written_is_read_back(data: dict[str, Any]) -> None:
    text = dump_yaml(data)
    parsed = parse_yaml(text, "f")
    assert parsed.problems == []
    assert (parsed.value or {}) == data
    assert yaml.safe_load(text) == data


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=":-[]{},&*!|>'\"%@`#? \n\tab10.e<~", max_size=40))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parsed = parse_yaml(text, "f")
        assert all(problem.startswith("f:") for problem in parsed.problems)


def test_format_keys() -> None:
    assert format_keys(("sweep", "scheduler", 0, "type")) == "sweep.scheduler[0].type"
    assert format_keys(()) == ""


def test_an_escape_of_no_character_is_told():
    with pytest.raises(ConfigError, match=r"^f: an escape names no character"):
        parse_yaml('name: "\\U00110000"', "f")
