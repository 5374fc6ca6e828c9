"""How often this process looks for objects that are of no use any more, but hold each other."""

from __future__ import annotations

import atexit
import gc

MADE_BETWEEN = 50_000
"""Objects that are made, less those that were let go, between two looks; Python's own number is 700."""


def collect_seldom() -> None:
    """Look for garbage less often, and not at the end, for a process that is cbsim's own.

    Nearly all that a run or a picture makes stays, and looking for what doesn't took a tenth of their time.
    At its end Python would look through all objects, for 0.1 s.
    """
    gc.set_threshold(MADE_BETWEEN, 20, 20)
    atexit.register(gc.freeze)
