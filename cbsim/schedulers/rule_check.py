"""Whether the functions of a scheduler's class can be its rules, told with file and line where they can't."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType

from cbsim.base.binding import Bound
from cbsim.base.errors import PluginError
from cbsim.base.registry import did_you_mean
from cbsim.core.feed import run
from cbsim.core.layout import Replica

INSTEAD = {
    "waiting": "head_of_queue(self, step.now) of cbsim.core.waiting_queue",
    "pool": "cbsim.core.pool, self.own.num_free",
    "num_running": "self.own.num_running",
    "max_num_seqs": "self.config.max_num_seqs",
    "max_tokens_per_step": "self.config.max_tokens_per_step",
    "schedule": "schedule(self, step, request, num_tokens) of cbsim.core.verbs",
    "num_wanted": "num_wanted(request) of cbsim.core.verbs",
    "admit": "admit(self, step, request) of cbsim.core.verbs",
    "preempt": "preempt(self, step, request) of cbsim.core.verbs",
}
"""What rules say in place of attributes that schedulers with a state of their own would have."""


def check_rules(scheduler: type, rules: Mapping[str, FunctionType]) -> None:
    """Raise `PluginError` with a line for each rule of a third party that the core can't call as it is."""
    problems = _problems(scheduler, tuple(rules.items()))
    if problems:
        raise PluginError(*problems)


@cache
def _problems(scheduler: type, rules: tuple[tuple[str, FunctionType], ...]) -> tuple[str, ...]:
    given = dict(rules)
    own = {name: rule for name, rule in given.items() if rule.__module__.partition(".")[0] != "cbsim"}
    problems = [problem for rule in own.values() for problem in _strangers(rule, given)]
    if "decide" not in given:
        problems.append(f"{_place(scheduler)}: {scheduler.__name__} has no rule `decide`")
    if not problems:
        problems += _uncalled(own, given)
    return tuple(problems)


def _uncalled(own: Mapping[str, FunctionType], given: Mapping[str, FunctionType]) -> Iterator[str]:
    """Rules that nobody calls, or calls otherwise than they are written."""
    calls = Bound(run, given).calls()
    for name, rule in own.items():
        if name not in calls:
            near = did_you_mean(name, sorted(calls)).partition("; allowed")[0]
            yield f"{_place(rule)}: nobody calls a rule `{name}`{near or ': only rules stand in the class'}"
            continue
        expected, got = _parameters(calls[name]), _parameters(rule)
        if len(expected) != len(got) and calls[name] is not rule:
            called = f"is called with ({', '.join(expected)})"
            yield f"{_place(rule)}: `{name}` takes ({', '.join(got)}), and {called}"


def _strangers(rule: FunctionType, given: Mapping[str, FunctionType]) -> Iterator[str]:
    """What a rule uses as if it were the method of an object; each name once."""
    if rule.__name__ == "__init__":
        yield f"{_place(rule)}: `__init__`: a scheduler has no instances; allowed: rules alone"
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(rule)))
    except (OSError, TypeError, SyntaxError):
        return
    told: dict[str, None] = {}
    for node in ast.walk(tree):
        found = _stranger(node, rule, given)
        if found is not None and found not in told:
            told[found] = None
            place = _place(rule, rule.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1)
            yield f"{place}: {found}"


def _stranger(node: ast.AST, rule: FunctionType, given: Mapping[str, FunctionType]) -> str | None:
    if isinstance(node, ast.For) and _field_of_self(node.iter) in ("running", "order", "candidates"):
        field = _field_of_self(node.iter)
        return (
            f"`for ... in self.{field}`: rows of requests, and room behind them; "
            f"allowed: `for place in range(self.own.num_running)`, with `self.requests[self.{field}[place]]`"
        )
    field = _field_of_self(node)
    if field and field not in Replica._fields:
        instead = f"{field}(self, ...), imported by its name" if field in given else "one of its fields"
        return (
            f"`self.{field}`: a rule's self is the records of a replica, not a scheduler; "
            f"allowed: {INSTEAD.get(field, instead)}"
        )
    if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
        return None
    if node.id == "super":
        return "`super`: rules are plain functions; allowed: the base's rule, imported under another name"
    is_known = node.id in rule.__globals__ or hasattr(builtins, node.id) or node.id in _locals(rule)
    if node.id in given and not is_known:
        return f"`{node.id}`: rules call others by names of their module; allowed: `{node.id}` imported there"
    return None


def _field_of_self(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _locals(rule: FunctionType) -> tuple[str, ...]:
    return (*rule.__code__.co_varnames, *rule.__code__.co_freevars)


def _parameters(rule: FunctionType) -> tuple[str, ...]:
    return rule.__code__.co_varnames[: rule.__code__.co_argcount]


def _place(what: FunctionType | type, line: int | None = None) -> str:
    """`file.py:line`."""
    if isinstance(what, FunctionType):
        return f"{Path(what.__code__.co_filename).name}:{line or what.__code__.co_firstlineno}"
    try:
        return f"{Path(inspect.getsourcefile(what) or '').name}:{inspect.getsourcelines(what)[1]}"
    except (OSError, TypeError):
        return what.__module__
