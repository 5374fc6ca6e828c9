"""Overrides: `--set a.b=c` from the command line, or a mapping of dotted keys in Python."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.config.yaml_text import Keys, dump_yaml, parse_yaml

SWEEP = "sweep"
SWEEP_WORDS = ("zip", "where", "replicates")
"""Keys below `sweep` that are no axes."""
_END_OF_SCALAR = "...\n"


class Override(NamedTuple):
    """One setting that goes before whatever the file says."""

    keys: Keys
    value: Any
    origin: str
    """What error lines name as its place."""


def parse_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> list[Override]:
    """Overrides in order, from `KEY=VALUE` texts (values are YAML) or a mapping of dotted keys to values.

    Raises `ConfigError` with a line for each text that is neither.
    """
    if isinstance(overrides, Mapping):
        return [Override(split_key(key), value, "overrides") for key, value in overrides.items()]
    parsed: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            parsed.append(_parse(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return parsed


def split_key(dotted: str) -> Keys:
    """The way that a dotted key means; what follows `sweep.` is one key, since axes are dotted themselves."""
    head, _, rest = dotted.partition(".")
    if head == SWEEP and rest:
        word, _, axis = rest.partition(".")
        return (SWEEP, word, axis) if word == "zip" and axis else (SWEEP, rest)
    return tuple(dotted.split("."))


def as_options(settings: Mapping[str, Any]) -> str:
    """`--set KEY=VALUE ...` as a shell takes it, of dotted keys and plain values."""
    options = []
    for key, value in settings.items():
        text = dump_yaml(value, default_flow_style=True, width=math.inf)
        options.append(f"--set {shlex.quote(f'{key}={text.removesuffix(_END_OF_SCALAR).strip()}')}")
    return " ".join(options)


def _parse(text: str) -> Override:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set: got '{text}'; expected KEY=VALUE, as in --set scheduler.max_num_seqs=64")
    try:
        parsed = parse_yaml(value, "--set")
        if parsed.problems:
            raise ConfigError(*parsed.problems)
    except ConfigError as error:
        # A text of one line needs no `--set:1: ` before the message.
        problems = (problem.split(": ", 1)[1] for problem in error.problems)
        raise ConfigError(*(f"--set: {key}: {problem}" for problem in problems)) from None
    return Override(split_key(key), parsed.value, "--set")
