"""`--set KEY=VALUE`, and mappings of dotted keys."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from cbsim.base.errors import ConfigError
from cbsim.config.document import as_options, parse_overrides, split_key


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("seed=1", ("seed",), 1),
        ("a.b=c", ("a", "b"), "c"),
        ("a.b=1e3", ("a", "b"), 1000),
        ("a.b=", ("a", "b"), None),
        ("a.b='7'", ("a", "b"), "7"),
        ("a=x=y", ("a",), "x=y"),
        ("a={b: [1, 2]}", ("a",), {"b": [1, 2]}),
        ("sweep.a.b=[1, 2]", ("sweep", "a.b"), [1, 2]),
        ("sweep.zip.a.b=[1]", ("sweep", "zip", "a.b"), [1]),
        ("sweep.where=a.b < 2", ("sweep", "where"), "a.b < 2"),
    ],
)
def test_values_are_yaml(text: str, keys: tuple[str, ...], value: Any) -> None:
    assert parse_overrides([text]) == [(keys, value, "--set")]


def test_a_mapping_gives_values_as_they_are() -> None:
    overrides = parse_overrides({"a.b": "1e3", "c": None})
    assert overrides == [(("a", "b"), "1e3", "overrides"), (("c",), None, "overrides")]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["seed", "=3", "a..b=1", "a=[1", "b={c: 1, c: 2}"])
    expected = "expected KEY=VALUE, as in --set scheduler.max_num_seqs=64"
    assert caught.value.problems == (
        f"--set: got 'seed'; {expected}",
        f"--set: got '=3'; {expected}",
        f"--set: got 'a..b=1'; {expected}",
        "--set: a: not valid YAML: expected ',' or ']', but got '<stream end>' while parsing a flow sequence",
        "--set: b: c: given twice, first in line 1",
    )


def test_split_key() -> None:
    assert split_key("sweep") == ("sweep",)
    assert split_key("sweep.zip") == ("sweep", "zip")
    assert split_key("a.0.b") == ("a", "0", "b")


def test_settings_as_options_are_read_back_as_they_were() -> None:
    settings = {
        "workload.rate_scale": 1.5,
        "seed": 3,
        "model": "llama-3-8b",
        "name": "it's 7",
        "slo.ttft_s": None,
        "kv_cache.prefix_caching": True,
        "scheduler": {"type": "static", "max_num_seqs": 16, "sizes": [1, 2], "why": "x" * 200},
    }
    options = as_options(settings)
    assert options.startswith("--set workload.rate_scale=1.5 --set seed=3 --set model=llama-3-8b --set ")
    words = shlex.split(options)
    assert set(words[::2]) == {"--set"}
    assert {".".join(map(str, read.keys)): read.value for read in parse_overrides(words[1::2])} == settings
