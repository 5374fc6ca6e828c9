"""YAML text to plain values with the line of every key: YAML 1.2 numbers, no silent duplicates, bounded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from cbsim.base.errors import ConfigError

Keys = tuple[str | int, ...]
"""The way from the top of a document to a value: mapping keys and list positions."""

MAX_VALUES = 100_000
"""Most values a document may hold once its aliases are followed."""
MAX_INT = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WHOLE_FLOAT = re.compile(r"([-+]?[0-9]+)[eE]\+?([0-9]{1,2})")


class _CoreLoader(yaml.BaseLoader):
    """Composes nodes and resolves scalars by the YAML 1.2 core schema (PyYAML's own is YAML 1.1)."""


class _CoreDumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as a number too (`1e3`)."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always: equal values are written out."""
        return True


for _name, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    for _class in (_CoreLoader, _CoreDumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern.pattern})$"), None)
_CoreLoader.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), ["<"])


@dataclass(slots=True)
class ParsedYaml:
    """A value read from YAML text."""

    value: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    """Line (from 1) of every key and list item; of the first one for the way `()`."""
    problems: list[str] = field(default_factory=list)
    """Mistakes that leave the rest readable: duplicate keys, integers out of range, unknown tags."""


def parse_yaml(text: str, source: str) -> ParsedYaml:
    """Read one YAML document; `source` names it in messages. Raises `ConfigError` on a syntax error."""
    builder = _Builder(source)
    with _syntax_told(text, source):
        node = _CoreLoader(text).get_single_node()
        if node is not None:
            builder.parsed.lines[()] = node.start_mark.line + 1
            builder.parsed.value = builder.build(node, ())
    return builder.parsed


def parse_documents(text: str, source: str) -> list[Any]:
    """The values of all YAML documents in a text, whatever else is wrong in them; raises as `parse_yaml`."""
    builder, values = _Builder(source), []
    with _syntax_told(text, source):
        loader = _CoreLoader(text)
        while loader.check_node() and (node := loader.get_node()) is not None:
            values.append(builder.build(node, ()))
    return values


@contextmanager
def _syntax_told(text: str, source: str) -> Iterator[None]:
    """Raise `ConfigError` with a line for what is wrong with the form of a text."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, text, source)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise ConfigError(f"{source}:{line}: character {code} is not allowed in YAML") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply to be read") from None
    except (ValueError, OverflowError):  # of an escape such as "\U00110000"
        raise ConfigError(f"{source}: an escape names no character; expected up to \\U0010FFFF") from None


def dump_yaml(data: Any, **style: Any) -> str:
    """YAML text that any YAML reader, 1.1 or 1.2, reads as the same plain data, keys in their order."""
    text: str = yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, **style)
    return text


class _Builder:
    """Turns composed nodes into plain values, keeping lines and mistakes."""

    def __init__(self, source: str) -> None:
        self.parsed = ParsedYaml(None)
        self._source = source
        self._num_values = 0
        self._open: set[int] = set()

    def build(self, node: Node, keys: Keys) -> Any:
        """The value of a node at a place; the same node may stand at several places by aliases."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise ConfigError(
                f"{self._source}: more than {MAX_VALUES:,} values once its aliases are followed"
            )
        if id(node) in self._open:
            raise ConfigError(f"{self._at(node)}: an alias that holds itself")
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, keys)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                for i, item in enumerate(node.value):
                    self.parsed.lines[(*keys, i)] = item.start_mark.line + 1
                return [self.build(item, (*keys, i)) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode):
                return self._scalar(node, keys)
            return self._unknown_tag(node, keys)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, keys: Keys) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = key_node.value
            if key_node.tag == _TAG + "merge":
                merged |= self._merged(value_node, keys) | merged
            elif not isinstance(key_node, ScalarNode) or key_node.tag == _TAG + "null":
                self._problem(key_node, keys, "a key must be plain text")
            elif name in own:
                first = self.parsed.lines[(*keys, name)]
                self._problem(key_node, (*keys, name), f"given twice, first in line {first}")
            else:
                self.parsed.lines[(*keys, name)] = key_node.start_mark.line + 1
                own[name] = self.build(value_node, (*keys, name))
        return {**merged, **own}

    def _merged(self, node: Node, keys: Keys) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*a, *b]` brings in; of several the first wins."""
        merged: dict[str, Any] = {}
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(source, MappingNode):
                merged |= self.build(source, keys) | merged
            else:
                self._problem(node, keys, "'<<' merges mappings only")
        return merged

    def _scalar(self, node: ScalarNode, keys: Keys) -> Any:
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "merge":
                return text
            case "null":
                return None
            case "bool" if _BOOL.fullmatch(text):
                return text.lower() == "true"
            case "int" if _INT.fullmatch(text):
                return self._integer(text, node, keys)
            case "float" if _FLOAT.fullmatch(text):
                return self._float(text)
        return self._unknown_tag(node, keys)

    def _integer(self, text: str, node: Node, keys: Keys) -> int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        digits = text[2:] if base != 10 else text
        number = int(digits, base) if len(digits) <= 20 else MAX_INT + 1
        if abs(number) > MAX_INT:
            shown = text if len(text) <= 30 else f"{text[:12]}... ({len(text)} characters)"
            self._problem(node, keys, f"got {shown}; expected an integer below 2**63")
            return 1
        return number

    def _float(self, text: str) -> float | int:
        # 1e6 is how people write a large count; as an int it fits both integer and number settings.
        if whole := _WHOLE_FLOAT.fullmatch(text):
            number: int = int(whole[1]) * 10 ** int(whole[2])
            if abs(number) <= MAX_INT:
                return number
        plain = text.lower().replace(".inf", "inf").replace(".nan", "nan")
        return math.nan if plain == "nan" else float(plain)

    def _unknown_tag(self, node: Node, keys: Keys) -> None:
        tag = node.tag.replace(_TAG, "!!")
        content = f" for '{node.value}'" if isinstance(node, ScalarNode) else ""
        self._problem(node, keys, f"tag {tag} can't be used{content}")

    def _problem(self, node: Node, keys: Keys, message: str) -> None:
        self.parsed.problems.append(f"{self._at(node)}: {format_keys(keys)}{': ' if keys else ''}{message}")

    def _at(self, node: Node) -> str:
        return f"{self._source}:{node.start_mark.line + 1}"


def format_keys(keys: Keys) -> str:
    """A way as users write it: `sweep.scheduler[0].type`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _syntax_message(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = error.problem or error.context or "not valid YAML"
    if "'\\t'" in problem:
        return f"{source}:{line}: a tab can't indent YAML; use spaces"
    if "single document" in (error.context or ""):
        return f"{source}:{line}: a second document ('---'); expected one"
    if problem.startswith("found undefined alias"):
        name = text.splitlines()[line - 1][mark.column :].split()[0] if mark else ""
        return f"{source}:{line}: {name}: no such anchor above"
    context = f" {error.context}" if error.context else ""
    return f"{source}:{line}: not valid YAML: {problem}{context}"
