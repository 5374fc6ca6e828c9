"""CostRules: what a step costs as a plain function over records, run interpreted or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.binding import Bound, CannotCompile, can_compile
from cbsim.base.records import plain
from cbsim.cost.step_columns import Floats, StepColumns, StepShape, split_shape

MAX_TOKENS = 16_384
MAX_DECODES = 1024
"""Sizes up to which a cost model lists what counts alone decide, unless told others."""
STEPS_TO_COMPILE = 1_000_000
STEPS_TO_LOAD = 10_000
"""Numbers of steps, all that a process prices, from which compiling the loop (some 6 s), or loading what
another process compiled (0.04 s), takes less time than interpreting it (4 us a step)."""


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
    loop, seconds = loop_of(rules.step_s), np.zeros(len(shapes))
    if loop.pays(len(shapes)):
        with suppress(CannotCompile):
            loop.bound.compiled(rules.record, shapes, chunks, seconds)
            loop.is_loaded = True
            return seconds
    prices = seconds.tolist()
    loop.bound.interpreted(plain(rules.record), plain(shapes), plain(chunks), prices)
    return np.array(prices, dtype=np.float64)


class PriceLoop:
    """The loop over steps for one rule, interpreted until compiling or loading it would have paid."""

    def __init__(self, step_s: Any) -> None:
        self.bound = Bound(price_steps, {"step_s": step_s})
        self.is_loaded = False
        self._num_priced = 0

    def pays(self, num_steps: int) -> bool:
        """Whether the compiled loop is to price `num_steps` more steps."""
        self._num_priced += num_steps
        if self.is_loaded or self._num_priced < STEPS_TO_LOAD:
            return self.is_loaded
        # Looks into the cache folder: not for the few steps of a small run.
        return can_compile() and (self._num_priced >= STEPS_TO_COMPILE or self.bound.is_cached)


@cache
def loop_of(step_s: Any) -> PriceLoop:
    """The loop for one rule, one in a process."""
    return PriceLoop(step_s)


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


def as_record(values: Mapping[str, float]) -> np.void:
    """Numbers as a record: bools, integers and floats keep their kind."""
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    array = np.zeros(1, dtype=[(name, kinds[type(value)]) for name, value in values.items()])
    array[0] = tuple(values.values())
    record: np.void = array[0]
    return record
