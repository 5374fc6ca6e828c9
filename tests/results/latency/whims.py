"""A scheduler and a cost model that no reason guides, for what the shipped ones never do."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from cbsim.core.verbs import admit, num_wanted, preempt, schedule
from cbsim.core.waiting_queue import head_of_queue
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.schedulers import Scheduler, SchedulerConfig

IDLE_S = 0.375
"""How long it does nothing when it has decided nothing."""


class WhimsicalConfig(SchedulerConfig):
    seed: int = 0


def decide(self: Any, step: Any) -> None:
    own, place = self.own, 0
    while place < own.num_running:
        if happens(self, 0.08):
            preempt(self, step, self.requests[self.running[place]])
        else:
            place += 1
    if happens(self, 0.1):
        return
    for place in range(own.num_running):
        if happens(self, 0.7):
            serve(self, step, self.requests[self.running[place]])
    while own.num_waiting and happens(self, 0.6):
        head = self.requests[head_of_queue(self, step.now)]
        if head.preempted_in_call == own.num_calls:
            break
        admit(self, step, head)
        if happens(self, 0.8):
            serve(self, step, head)
    if step.num_slices and happens(self, 0.3):
        own.unspent_transfer_s += 0.25


def wake_at_s(self: Any) -> float:
    """Some time after it was asked, while anybody is there. Nothing is under way then."""
    own = self.own
    if own.num_running == 0 and own.num_waiting == 0:
        return inf
    return self.under_way[own.first_under_way].now + IDLE_S


def serve(self: Any, step: Any, request: Any) -> None:
    wanted = num_wanted(request)
    if wanted:
        schedule(self, step, request, 1 + int(drawn(self) * wanted))


def happens(self: Any, chance: float) -> bool:
    return drawn(self) < chance


def drawn(self: Any) -> float:
    """A number from 0 to 1, of a stream that is kept where a static batch counts its tokens."""
    state = (self.own.num_padded_tokens * 1103515245 + 12345 + 2 * self.config.seed) % 2147483648
    self.own.num_padded_tokens = state
    return (state // 65536) / 32768


class WhimsicalScheduler(Scheduler):
    """Admits, passes over, preempts and idles at random; a pool that is too small never keeps it from it."""

    Config = WhimsicalConfig
    decide = decide
    wake_at_s = wake_at_s


class WhimsicalCost(CostModel):
    """A number for each shape that has nothing to do with it, and host times that may exceed the step's."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def step_s(self, shape: StepShape) -> float:
        chunks = [size for chunk in shape.chunks for size in chunk]
        return float(np.random.default_rng([self.seed, *shape[1:], *chunks]).uniform(0.1, 1.0))

    def host_s(self, step_s: Any, num_requests: Any, columns_of: Any) -> Any:
        return (num_requests * 0.37 + self.seed * 0.11) % 0.6
