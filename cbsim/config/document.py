"""Document: plain configuration values that know the file and line, or the `--set`, they came from."""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.base.paths import is_file, is_folder
from cbsim.base.registry import did_you_mean
from cbsim.base.text_files import read_text
from cbsim.base.units import MIB
from cbsim.config.yaml_text import Keys, dump_yaml, format_keys, parse_yaml

MAX_FILE_BYTES = MIB
"""A larger file is no configuration."""


class Place(NamedTuple):
    """Where a value stands, as an error line begins."""

    where: str
    """`experiments/a.yaml:8`, `--set`, or `config` for a mapping given in Python."""
    key: str
    """The dotted key there; empty for the document itself."""

    def problem(self, message: str) -> str:
        """One error line."""
        return f"{self.where}: {self.key}: {message}" if self.key else f"{self.where}: {message}"


@dataclass(slots=True)
class Document:
    """A mapping of settings and the origin of each. Copies share nothing that can change."""

    data: dict[str, Any]
    source: str = "config"
    lines: Mapping[Keys, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Mistakes found while reading, which don't keep the rest from being checked."""
    _origins: dict[Keys, tuple[Document, Keys] | str] = field(default_factory=dict)
    """Of what was put here: the document and place that it came from, or where from in words."""

    def copy(self) -> Document:
        """An independent copy."""
        data, problems = copy.deepcopy(self.data), list(self.problems)
        return replace(self, data=data, problems=problems, _origins=dict(self._origins))

    def get(self, keys: Keys) -> Any:
        """The value at a place, `None` where there is nothing."""
        value: Any = self.data
        for key in keys:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and (place := place_in(value, key)) is not None:
                value = value[place]
            else:
                return None
        return value

    def placed(self, keys: Keys) -> Keys:
        """The place that keys lead to, with each item of a list that is there told by its number."""
        node: Any = self.data
        way: list[str | int] = []
        for key in keys:
            place = place_in(node, key) if isinstance(node, list) else None
            way.append(key if place is None else place)
            node = node.get(key) if isinstance(node, dict) else None if place is None else node[place]
        return tuple(way)

    def put(self, keys: Keys, value: Any, origin: Document | str, origin_keys: Keys = ()) -> None:
        """Set a value that came from elsewhere: from a document, or from what `origin` says in words.

        Mappings on the way are made; raises `ConfigError` where something else stands in the way.
        """
        keys = self.placed(keys)
        node: Any = self.data
        made: Keys = ()
        for depth, key in enumerate(keys[:-1], start=1):
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
                made = made or keys[:depth]
            node = node[key]
            if not isinstance(node, dict | list) or (
                isinstance(node, list) and place_in(node, keys[depth]) is None
            ):
                where = origin if isinstance(origin, str) else origin.place(origin_keys).where
                below = format_keys(keys[:depth])
                names = [name for name in _names(node) if isinstance(name, str)]
                told = f"'{below}' is {describe_value(node)}, not a mapping"
                if names:
                    told = f"'{below}' has no '{keys[depth]}'{did_you_mean(str(keys[depth]), names)}"
                raise ConfigError(f"{where}: {format_keys(keys)}: {told}")
        node[keys[-1]] = copy.deepcopy(value)
        for known in [known for known in self._origins if known[: len(keys)] == keys]:
            del self._origins[known]
        for known in (made, keys) if made else (keys,):
            self._origins[known] = origin if isinstance(origin, str) else (origin, origin_keys)

    def place(self, keys: Keys) -> Place:
        """Where a value came from; for one that isn't there, where its nearest parent came from."""
        for depth in range(len(keys), 0, -1):
            head, tail = keys[:depth], keys[depth:]
            match self._origins.get(head):
                case str() as where:
                    return Place(where, format_keys(keys))
                case (Document() as origin, origin_keys):
                    place = origin.place((*origin_keys, *tail))
                    return place._replace(key=format_keys(keys)) if origin.source == self.source else place
        known = (keys[:depth] for depth in range(len(keys), -1, -1))
        line = next((self.lines[head] for head in known if head in self.lines), 0)
        return Place(f"{self.source}:{line}" if line else self.source, format_keys(keys))


def read_document(path: Path) -> Document:
    """The document in a YAML file. Raises `ConfigError` if it can't be read, is no YAML or no mapping."""
    source = str(path)
    if not (is_file(path) or is_folder(path)):
        raise ConfigError(f"{source}: no such file")
    parsed = parse_yaml(read_text(path, ConfigError, MAX_FILE_BYTES), source)
    if parsed.value is None and not parsed.problems:
        raise ConfigError(f"{source}: is empty; expected a mapping of settings")
    if not isinstance(parsed.value, dict):
        line = parsed.lines.get((), 1)
        got = describe_value(parsed.value)
        raise ConfigError(*parsed.problems, f"{source}:{line}: got {got}; expected a mapping of settings")
    return Document(parsed.value, source, parsed.lines, parsed.problems)


def in_order_of_lines(problems: Iterable[str], source: str) -> list[str]:
    """Error lines, each once: those of the file `source` by line, then the others as they come."""

    def rank(problem: str) -> tuple[bool, int]:
        file, _, line = problem.partition(": ")[0].rpartition(":")
        return (False, int(line)) if file == source and line.isdecimal() else (True, 0)

    return sorted(dict.fromkeys(problems), key=rank)


def describe_value(value: object) -> str:
    """A value as error lines show it: `'abc' (str)`, `3`, `true`, `null`, `a list`, `a mapping`."""
    if isinstance(value, dict | list | tuple | set):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        return f"{shown!r} (str)"
    if isinstance(value, int | float):
        return repr(value)
    return f"{type(value).__name__} {str(value)[:60]}"


def place_in(items: list[Any], key: str | int) -> int | None:
    """The place in a list that a key means: its number, or the `name` of the mapping there."""
    names = _names(items)
    if key in names:
        return names.index(key)
    return int(key) if str(key).isdecimal() and int(key) < len(items) else None


def _names(items: Any) -> list[Any]:
    """The `name` of each item of a list, `None` where it has none; of anything else nothing."""
    if not isinstance(items, list):
        return []
    return [item.get("name") if isinstance(item, dict) else None for item in items]


SWEEP, TUNE = "sweep", "tune"
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

    Values of the mapping may be mappings in turn, which change the keys that they have and leave the others;
    one that has a `type` or a `name`, a sweep and a tune stand for the whole section. Raises `ConfigError`
    with a line for each text that is neither.
    """
    if isinstance(overrides, Mapping):
        return [Override(key, value, "overrides") for key, value in _nested(overrides)]
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


def _nested(overrides: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each key that some overrides change, and to what."""
    for key, value in overrides.items():
        keys = (*above, *split_key(key))
        is_part = isinstance(value, Mapping) and value and not value.keys() & {"type", "name"}
        if is_part and keys[0] not in (SWEEP, TUNE):
            yield from _nested(value, keys)
        else:
            yield keys, value


def split_key(dotted: str) -> Keys:
    """The way that a dotted key means.

    What follows `sweep.` or `tune.` is one key, since what these vary is dotted itself.
    """
    head, _, rest = dotted.partition(".")
    if head in (SWEEP, TUNE) and rest:
        word, _, axis = rest.partition(".")
        return (head, word, axis) if word == "zip" and axis else (head, rest)
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
