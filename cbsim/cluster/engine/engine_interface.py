"""What the world sees of a replica."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from cbsim.base.errors import PluginError
from cbsim.cluster.engine.recorder import Column, Recorder
from cbsim.cluster.engine.slice_log import Slices
from cbsim.cost.cost_model import CostModel
from cbsim.schedulers.base import Scheduler
from cbsim.workload.request import Request


class Engine(ABC):
    """One replica: a scheduler, its KV cache, a cost model and a clock of its own.

    At one instant: arrivals join the queue (`submit`), the step that ends takes effect, the next step is
    scheduled. Effects become visible at a step's end, never before.

    The recorder's audience, where there is one, is told of arrivals here, by the recorder of decisions and
    of finished requests, by the engine of first tokens and, if it hears them, of steps: `before_step` as one
    comes under way, `after_step` when all that it brought was told.
    """

    def __init__(
        self, replica: int, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int
    ) -> None:
        """`num_in_flight` is how many steps may be under way: 1, or 2 for asynchronous scheduling."""
        self.replica = replica
        self.scheduler = scheduler
        self.cost = cost
        self.recorder = recorder
        self.num_in_flight = num_in_flight
        self.num_padding_tokens = 0
        """Tokens computed only to fill padded batches."""
        self.num_outstanding = 0
        """Requests submitted and not ended: what `least_outstanding` routes by."""

    def submit(self, request: Request) -> bool:
        """A request arrives, at its `arrival_s`; False if it was rejected."""
        reason = self.scheduler.rejection(request)
        if reason is not None:
            self.recorder.rejected(request, self.replica, reason)
        if self.recorder.audience is not None:
            self.recorder.audience.tell("on_request_arrived", request.arrival_s, request, self.replica)
        if reason is not None:
            return False
        self.num_outstanding += 1
        self.scheduler.add(request)
        return True

    @property
    def num_blocks_used(self) -> int:
        """KV blocks in use now: what `least_kv` routes by."""
        return self.scheduler.pool.num_used

    def wake_at_s(self) -> float | None:
        """When an idle engine should ask its scheduler again although nothing arrived; `None` for never."""
        return self.scheduler.wake_at_s()

    @property
    @abstractmethod
    def next_end_s(self) -> float | None:
        """When the running step ends; `None` if the engine is idle."""

    @property
    @abstractmethod
    def last_end_s(self) -> float:
        """When the last step that has run ended; 0 before the first."""

    @abstractmethod
    def call(self, now: float) -> None:
        """Let the scheduler decide steps until enough are under way or it has nothing to do."""

    @abstractmethod
    def end_step(self) -> list[Request]:
        """The running step ends: its tokens come out. Returns the requests that got their last one."""

    @abstractmethod
    def finish_record(self) -> None:
        """The run is over: write down the requests that have not ended. Comes before what follows."""

    @abstractmethod
    def step_columns(self) -> Mapping[str, Column]:
        """The finished steps, as in `RunLog.steps`."""

    def slice_columns(self) -> Slices | None:
        """Which request was in which of the finished steps; `None` where nobody can price those again.

        With slices, `step_columns` has those of `SLICE_STEP_COLUMNS` too.
        """
        return None

    @abstractmethod
    def gaps(self) -> Column:
        """Inter-token gaps, in any order, as complex numbers: seconds + i times how often it occurred."""


def checked_s(duration_s: float, cost: CostModel) -> float:
    """A step's seconds, as they are; `PluginError` unless they are more than 0 and finite."""
    if 0 < duration_s < math.inf:
        return duration_s
    raise PluginError(f"{type(cost).__name__}: a step of {duration_s} s; allowed: more than 0 and finite")
