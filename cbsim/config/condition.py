"""Condition: a comparison of settings, as `where:` of a sweep has it, read and applied without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.config.document import place_in

MAX_LENGTH = 1000
"""Characters of a condition: a longer one is no condition."""
MAX_DEPTH = 50
"""Parentheses, signs and the like within each other."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
Rule = Callable[[Mapping[str, Any]], Any]
"""A value that follows from nested settings."""
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Condition:
    """`scheduler.chunk_size <= scheduler.max_tokens_per_step`; also `and`, `or`, `not`, `in`, arithmetic."""

    text: str
    names: tuple[str, ...]
    """The dotted keys it reads."""
    _rule: Rule

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether it holds for nested settings; where they lack one of its keys it says nothing, and holds.

        Raises `ConfigError` where values can't be compared or computed with.
        """
        if any(lookup(settings, name) is ABSENT for name in self.names):
            return True
        try:
            return bool(self._rule(settings))
        except (TypeError, ArithmeticError) as error:
            raise ConfigError(f"'{self.text}': {error}") from None


def parse_condition(text: str) -> Condition:
    """Read a condition. Raises `ConfigError` for anything but comparisons of keys, numbers and texts."""
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"{len(text)} characters; expected a comparison of at most {MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"'{text}' can't be read; expected a comparison, as in 'seed < 3'") from None
    names: dict[str, None] = {}
    rule = _rule(tree, text, names)
    return Condition(text, tuple(names), rule)


ABSENT = object()
"""What a key has that is not there."""


def has_key(settings: Mapping[str, Any], dotted: str) -> bool:
    """Whether nested settings have a value under a dotted key."""
    return lookup(settings, dotted) is not ABSENT


def _rule(node: ast.expr, text: str, names: dict[str, None], depth: int = 0) -> Rule:
    """What a node of `text` says of settings; collects its keys. Raises `ConfigError` for anything else."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"'{text[:40]}...' is nested more than {MAX_DEPTH} deep; expected a comparison")

    def rules(*nodes: ast.expr) -> list[Rule]:
        return [_rule(each, text, names, depth + 1) for each in nodes]

    match node:
        case ast.BoolOp(op=op, values=parts):
            holds, terms = all if isinstance(op, ast.And) else any, rules(*parts)
            return lambda settings: holds(term(settings) for term in terms)
        case ast.UnaryOp(op=ast.Not() | ast.USub() as op, operand=operand):
            sign, (term,) = operator.not_ if isinstance(op, ast.Not) else operator.neg, rules(operand)
            return lambda settings: sign(term(settings))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            compute, (first, second) = _ARITHMETIC[type(op)], rules(left, right)
            return lambda settings: compute(_number(first(settings)), _number(second(settings)))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            compare, terms = [_COMPARE[type(op)] for op in ops], rules(left, *others)
            return lambda settings: all(
                each(*pair)
                for each, pair in zip(compare, pairwise([term(settings) for term in terms]), strict=True)
            )
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            terms = rules(*parts)
            return lambda settings: [term(settings) for term in terms]
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return lambda settings: value
        case ast.Name() | ast.Attribute() if (name := _dotted(node)) is not None:
            if name in _CONSTANTS:
                return lambda settings: _CONSTANTS[name]
            names[name] = None
            return lambda settings: lookup(settings, name)
    shown = ast.get_source_segment(text.strip(), node) or text
    raise ConfigError(
        f"'{shown}' is not allowed; expected keys and values with < <= > >= == != in and or not"
    )


def _number(value: Any) -> int | float:
    """A number to compute with: `'a' * 10**9` would be a text too large for any memory."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"can't compute with {value!r}")
    return value


def _dotted(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name) if (head := _dotted(inner)) is not None:
            return f"{head}.{name}"
    return None


def lookup(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value that nested settings have under a dotted key, or `ABSENT`."""
    value: Any = settings
    for part in dotted.split("."):
        if isinstance(value, list) and (place := place_in(value, part)) is not None:
            value = value[place]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            return ABSENT
    return value
