"""Pricing of many steps at once by a cost model's rule, compiled where that pays."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from cbsim.base.binding import Bound, CannotCompile, Compiled, can_compile
from cbsim.base.records import plain
from cbsim.cost.costrules import CostRules, price_steps
from cbsim.cost.step_columns import Floats, StepColumns

STEPS_TO_COMPILE = 2_000_000
STEPS_TO_LOAD = 10_000
"""From so many steps on, compiling the loop (some 6 s), or loading what another process compiled (0.04 s),
takes less time than interpreting it (4 us a step)."""


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
        if self._compiled is None and self._can_compile and self._pays(num_steps):
            compiled = self.bound.compiled
            try:
                compiled.prepare(rules.record, shapes, chunks, np.zeros(0))
                self._compiled = compiled
            except CannotCompile:
                self._can_compile = False
        return self._compiled

    def _pays(self, num_steps: int) -> bool:
        return num_steps >= STEPS_TO_COMPILE or (num_steps >= STEPS_TO_LOAD and self.bound.is_cached)
