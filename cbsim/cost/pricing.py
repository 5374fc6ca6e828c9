"""Pricing of many steps at once by a cost model's rule, compiled where that pays."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from cbsim.base.binding import Bound, CannotCompile, can_compile
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
    loop, seconds = loop_of(rules.step_s), np.zeros(len(shapes))
    pays = len(shapes) >= STEPS_TO_COMPILE or (len(shapes) >= STEPS_TO_LOAD and loop.is_cached)
    if pays and can_compile():
        with suppress(CannotCompile):
            loop.compiled(rules.record, shapes, chunks, seconds)
            return seconds
    prices = seconds.tolist()
    loop.interpreted(plain(rules.record), plain(shapes), plain(chunks), prices)
    return np.array(prices, dtype=np.float64)


@cache
def loop_of(step_s: Any) -> Bound:
    """The loop over steps for one rule."""
    return Bound(price_steps, {"step_s": step_s})
