"""Small runs, and a cost model with host time."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from cbsim.core.record import TABLES, Record
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.results.run_log import RunLog
from cbsim.schedulers import SCHEDULERS, Scheduler
from cbsim.studies.simulation import simulate_core
from cbsim.testing import Case


class HostedCost(CostModel):
    """Depends on all that a cost model may depend on, with host time of its own."""

    def __init__(self, step_s: float = 0.01, token_s: float = 0.001) -> None:
        self.fixed_s, self.token_s = step_s, token_s

    def step_s(self, shape: StepShape) -> float:
        pairs = sum(tokens * (context + tokens) for tokens, context in shape.chunks)
        context = shape.decode_context - shape.num_shared_tokens + shape.max_decode_context
        return (
            self.fixed_s
            + self.token_s * (shape.num_tokens + shape.num_finishing_chunks)
            + 0.00001 * (pairs + context)
            + self.added_s(shape.num_requests)
        )

    def added_s(self, num_requests: int) -> float:
        return 0.002 + 0.0005 * num_requests

    def host_s(self, step_s: Any, num_requests: Any, columns_of: Any) -> Any:
        return self.added_s(num_requests)


def run(kind: str | type[Scheduler], case: Case, cost: CostModel, stop_at_s: float | None = None) -> RunLog:
    """A case, interpreted, with batches."""
    scheduler_class = SCHEDULERS.get(kind) if isinstance(kind, str) else kind
    setup = case.make_setup(scheduler_class, with_batches=True)
    log, *_ = simulate_core(
        replace(setup, cost=cost, until_s=inf if stop_at_s is None else stop_at_s), "interpreted"
    )
    return log


def record_of(log: RunLog, piece: int = 1 << 20) -> Record:
    """The core's record of a log, in pieces of `piece` steps."""
    assert log.slices is not None
    record = Record()
    place = {each: i for i, each in enumerate(zip(*columns(log.steps, "replica", "step"), strict=True))}
    of = np.array(
        [place[each] for each in zip(*columns(log.slices.prefills, "replica", "step"), strict=True)]
    )
    for first in range(0, len(place), piece):
        mine = slice(first, first + piece)
        record.add("steps", packed_rows("steps", log.steps, mine))
        prefills = np.flatnonzero((of >= first) & (of < first + piece))
        if len(prefills):
            record.add("prefills", packed_rows("prefills", log.slices.prefills, prefills))
        record.end_piece()
    record.add("decodes", packed_rows("decodes", log.slices.decodes, slice(None)))
    record.add("events", packed_rows("events", log.events, slice(None)))
    return record


def columns(table: Any, *names: str) -> list[list[int]]:
    return [table[name].tolist() for name in names]


def packed_rows(table: str, of: Any, chosen: Any) -> np.ndarray[Any, Any]:
    """Rows of a table of the core."""
    dtype = TABLES[table]
    given = {name: of[name][chosen] for name in dtype.names or () if name in of}
    packed = np.zeros(len(next(iter(given.values()))), dtype)
    for name, column in given.items():
        packed[name] = column
    return packed
