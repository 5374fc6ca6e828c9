"""An engine driven step by step: every single step is asked for and seen to end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from cbsim.cluster.engine.engine_interface import Engine
from cbsim.workload.request import Request


def drive(engine: Engine, requests: Iterator[Request]) -> None:
    """Run requests to the end on one replica, as the world would, without its clock.

    At one instant arrivals join, then the step that ends takes effect, then the next is decided. Timers of
    schedulers (`wake_at_s`) are not kept.
    """
    index = 0
    for arrival_s, arriving in groupby(requests, attrgetter("arrival_s")):
        _run_until(engine, arrival_s)
        for request in arriving:
            request.index = index
            index += 1
            engine.submit(request)
        if engine.next_end_s is None:
            engine.call(arrival_s)
    _run_until(engine, math.inf)


def _run_until(engine: Engine, until_s: float) -> None:
    while (end_s := engine.next_end_s) is not None and end_s < until_s:
        engine.end_step()
        engine.call(end_s)
