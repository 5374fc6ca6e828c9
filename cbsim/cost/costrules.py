"""CostRules: what a step costs as a plain function over records, run interpreted or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.binding import Bound, CannotCompile, Compiled, can_compile
from cbsim.base.records import plain
from cbsim.cost.step_columns import Floats, StepColumns, StepShape, split_shape

MAX_TOKENS = 16_384
MAX_DECODES = 1024
"""Sizes up to which a cost model lists what counts alone decide, unless told others."""
STEPS_TO_COMPILE = 2_000_000
STEPS_TO_LOAD = 150_000
"""From so many steps on, compiling the loop (some 6 s), or loading what another process compiled (0.5 s),
takes less time than interpreting it (4 us a step)."""


class CostRules(NamedTuple):
    """A cost model as the core runs it."""

    step_s: Callable[[Any, Any, Any], float]
    """`step_s(cost, shape, chunks)`: seconds of a step, a plain function of a module that numba can compile.

    `shape` has the fields of `SHAPE`, and the first `shape.num_chunks` of `chunks` those of `CHUNK`.
    """
    record: Any
    """`cost`: a named tuple of arrays and records; `cbsim.base.records.plain` gives the interpreted form."""


class Figures(NamedTuple):
    """The record of a formula that takes numbers alone."""

    figures: Any
    """As `as_record` makes them."""


def seconds_of(rules: CostRules) -> Callable[[StepShape], float]:
    """The rule, interpreted, as a function of a `StepShape`."""
    rule, cost = rules.step_s, plain(rules.record)
    return lambda shape: rule(cost, *split_shape(shape))


def price(rules: CostRules, columns: StepColumns) -> Floats:
    """Seconds of each step: the same bits as the rule gives for it alone."""
    shapes, chunks = columns.records()
    loop = _Loop.of(rules.step_s)
    compiled = loop.compiled_for(len(shapes), rules, shapes, chunks)
    if compiled is None:
        prices = [0.0] * len(shapes)
        loop.bound.interpreted(plain(rules.record), plain(shapes), plain(chunks), prices)
        return np.array(prices, dtype=np.float64)
    seconds = np.zeros(len(shapes))
    compiled(rules.record, shapes, chunks, seconds)
    return seconds


def price_steps(cost: Any, shapes: Any, chunks: Any, seconds: Any) -> None:
    """Fill in the seconds of many steps, whose chunks follow each other; bind it to a model's `step_s`."""
    first = 0
    for place in range(len(shapes)):
        shape = shapes[place]
        end = first + shape.num_chunks
        seconds[place] = step_s(cost, shape, chunks[first:end])
        first = end


def step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Stands for a cost model's rule."""
    raise NotImplementedError


class _Loop:
    """The loop over steps for one rule; it is compiled once in a process."""

    def __init__(self, step_s: Any) -> None:
        self.bound = Bound(price_steps, {"step_s": step_s})
        self._compiled: Compiled | None = None
        self._can_compile = can_compile()

    @staticmethod
    @cache
    def of(step_s: Any) -> _Loop:
        """The one of a rule."""
        return _Loop(step_s)

    def compiled_for(self, num_steps: int, rules: CostRules, shapes: Any, chunks: Any) -> Compiled | None:
        """The compiled loop, if there is one or so many steps are worth it."""
        is_long = num_steps >= STEPS_TO_COMPILE or (num_steps >= STEPS_TO_LOAD and self.bound.is_cached)
        if self._compiled is None and self._can_compile and is_long:
            try:
                self.bound.compiled.prepare(rules.record, shapes, chunks, np.zeros(0))
                self._compiled = self.bound.compiled
            except CannotCompile:
                self._can_compile = False
        return self._compiled


def as_record(values: Mapping[str, float]) -> np.void:
    """Numbers as a record: bools, integers and floats keep their kind."""
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    array = np.zeros(1, dtype=[(name, kinds[type(value)]) for name, value in values.items()])
    array[0] = tuple(values.values())
    record: np.void = array[0]
    return record
