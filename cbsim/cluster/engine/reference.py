"""The naive engine: one event a step, a loop over every request in it. The oracle for the others."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from cbsim.cluster.engine.engine_interface import Engine, checked_s
from cbsim.cluster.engine.recorder import (
    DECISIONS,
    EMITTED,
    FINISHED,
    SLICE_STEP_COLUMNS,
    STEP_COLUMNS,
    Column,
    Recorder,
    Table,
)
from cbsim.cluster.engine.slice_log import SliceLog, Slices
from cbsim.cost.cost_model import CostModel
from cbsim.observers.step_view import StepView
from cbsim.schedulers.base import Scheduler, StepPlan
from cbsim.workload.request import Request

STEP_REALS = ("scheduled_at_s", "start_s", "duration_s", "transfer_s")
STEP_INTEGERS = (
    "step",
    "num_prefill_tokens",
    "num_prefill_seqs",
    "num_decode_seqs",
    "num_running",
    "num_waiting",
    "num_preempted",
    "num_finished",
    "kv_blocks_used",
    "num_attention_pairs",
    "num_context_tokens",
    "num_logits",
    "num_kv_tokens",
    "waiting_for",
    "max_decode_context",
)


@dataclass(slots=True)
class Step:
    """A step under way."""

    number: int
    plan: StepPlan
    start_s: float
    duration_s: float
    end_s: float
    view: StepView | None = None
    """What observers are shown of it, where there are some."""


class ReferenceEngine(Engine):
    """Goes step by step: whoever drives it calls `call` when it is idle and `end_step` when a step ends.

    Up to `num_in_flight` steps are under way; a step starts at the call that decided it or at the end of the
    one before, whichever is later.
    """

    def __init__(
        self, replica: int, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int
    ) -> None:
        super().__init__(replica, scheduler, cost, recorder, num_in_flight)
        self.under_way: deque[Step] = deque()
        self._num_steps = 0
        self._last_end_s = 0.0
        self._steps = Table(STEP_REALS, STEP_INTEGERS)
        self._slice_log = SliceLog()
        self._token_times: dict[int, array[float]] = {}
        self._requests: dict[int, Request] = {}
        self._gaps = array("d")

    def submit(self, request: Request) -> bool:
        """See `Engine.submit`."""
        accepted = super().submit(request)
        if accepted:
            self._token_times[request.index] = array("d")
            self._requests[request.index] = request
        return accepted

    @property
    def next_end_s(self) -> float | None:
        """See `Engine.next_end_s`."""
        return self.under_way[0].end_s if self.under_way else None

    @property
    def last_end_s(self) -> float:
        """See `Engine.last_end_s`."""
        return self._last_end_s

    def call(self, now: float) -> None:
        """See `Engine.call`."""
        while len(self.under_way) < self.num_in_flight:
            plan = self.scheduler.plan(now)
            number = self._num_steps if plan.slices else -1
            self._record_decisions(plan, number)
            if not plan.slices:
                if plan.preempted and not self.under_way:
                    continue  # Nothing runs whose end would make anybody ask again.
                return
            duration_s = checked_s(self.cost.step_s(plan.priced_shape()) + plan.transfer_s, self.cost)
            start_s = self.under_way[-1].end_s if self.under_way else now
            self.num_padding_tokens += plan.num_padding_tokens
            self._num_steps += 1
            self._begin(Step(number, plan, start_s, duration_s, start_s + duration_s))

    def end_step(self) -> list[Request]:
        """See `Engine.end_step`."""
        step = self.under_way.popleft()
        now = self._last_end_s = step.end_s
        first_tokens: list[Request] = []
        for part in step.plan.slices:
            if part.emits:
                times = self._token_times[part.request.index]
                if not times:
                    part.request.first_token_at_s = now
                    first_tokens.append(part.request)
                times.append(now)
                if self.recorder.with_batches:
                    self.recorder.event(EMITTED, part.request, now, self.replica, step.number, 1)
        finished = self.scheduler.commit(step.plan)
        if self.recorder.audience is not None:
            for request in first_tokens:
                self.recorder.audience.tell("on_first_token", now, request, self.replica)
        for request in finished:
            self.num_outstanding -= 1
            self.recorder.event(FINISHED, request, now, self.replica, step.number, 0)
            self._close(request)
        self._record_step(step, len(finished))
        for request in finished:
            self._slice_log.close(request.index)
        self._tell_ended(step, finished)
        return finished

    def finish_record(self) -> None:
        """See `Engine.finish_record`."""
        for request in list(self._requests.values()):
            self._close(request)
            self._slice_log.close(request.index)

    def step_columns(self) -> Mapping[str, Column]:
        """See `Engine.step_columns`."""
        columns = self._steps.to_columns()
        columns["replica"] = np.full(len(self._steps), self.replica)
        columns["num_decode_tokens"] = columns["num_decode_seqs"]
        columns["kv_blocks_total"] = np.full(len(self._steps), self.scheduler.pool.num_blocks)
        return {name: columns[name] for name in (*STEP_COLUMNS, *SLICE_STEP_COLUMNS)}

    def slice_columns(self) -> Slices | None:
        """See `Engine.slice_columns`."""
        return self._slice_log.slices(self.replica)

    def gaps(self) -> Column:
        """See `Engine.gaps`."""
        return np.array(self._gaps) + 1j

    def _begin(self, step: Step) -> None:
        """A step comes under way, its start and its length known or not yet (NaN)."""
        self.under_way.append(step)
        audience = self.recorder.audience
        if audience is not None and audience.hears_steps:
            step.view = view_of(step, self.replica, self.scheduler.pool.num_blocks)
            audience.tell("before_step", step.plan.now, step.view, self.replica)

    def _tell_ended(self, step: Step, finished: list[Request]) -> None:
        if step.view is not None and self.recorder.audience is not None:
            step.view.start_s, step.view.duration_s = step.start_s, step.duration_s
            step.view.finished = finished
            step.view.make_slices = partial(tuple, step.plan.slices)
            self.recorder.audience.tell("after_step", step.end_s, step.view, self.replica)

    def _record_decisions(self, plan: StepPlan, number: int) -> None:
        for decision, request, num_cached in plan.decisions:
            self.recorder.event(DECISIONS[decision], request, plan.now, self.replica, number, num_cached)

    def _record_step(self, step: Step, num_finished: int) -> None:
        plan = step.plan
        num_prefill_tokens = num_prefill_seqs = num_decode_seqs = pairs = context = num_logits = longest = 0
        for position, part in enumerate(plan.slices):
            tokens, before = part.num_tokens, part.num_computed_tokens
            pairs += tokens * before + tokens * (tokens + 1) // 2
            context += before + tokens
            num_logits += part.emits
            if part.is_prefill:
                num_prefill_tokens += tokens
                num_prefill_seqs += 1
                self._slice_log.prefill(step.number, part.request.index, tokens, before, part.emits)
            else:
                num_decode_seqs += 1
                longest = max(longest, before + tokens)
                self._slice_log.decode(step.number, part.request.index)
            if self.recorder.with_batches:
                kind = int(not part.is_prefill)
                row = (self.replica, step.number, position, part.request.index, tokens, before, kind)
                self.recorder.batches.append(step.start_s, *row)
        self._steps.append(
            plan.now,
            step.start_s,
            step.duration_s,
            plan.transfer_s,
            step.number,
            num_prefill_tokens,
            num_prefill_seqs,
            num_decode_seqs,
            plan.num_running,
            plan.num_waiting,
            len(plan.preempted),
            num_finished,
            plan.num_blocks_used,
            pairs,
            context,
            num_logits,
            plan.num_kv_tokens,
            plan.waiting_for,
            longest if num_prefill_seqs else 0,
        )

    def _close(self, request: Request) -> None:
        """Turn the token times of a request that ended, or of a run that did, into gaps."""
        del self._requests[request.index]
        times = self._token_times.pop(request.index)
        if times:
            gaps = [later - earlier for earlier, later in pairwise(times)]
            self._gaps.extend(gaps)
            self.recorder.close(request, self.replica, times[0], times[-1], max(gaps, default=np.nan))
        else:
            self.recorder.close(request, self.replica)


def view_of(step: Step, replica: int, num_blocks: int) -> StepView:
    """What observers are shown of a step."""
    plan = step.plan
    return StepView(
        replica=replica,
        number=step.number,
        scheduled_at_s=plan.now,
        start_s=step.start_s,
        duration_s=step.duration_s,
        num_prefill_tokens=sum(part.num_tokens for part in plan.slices if part.is_prefill),
        num_decodes=sum(not part.is_prefill for part in plan.slices),
        num_new_tokens=sum(part.emits for part in plan.slices),
        num_running=plan.num_running,
        num_waiting=plan.num_waiting,
        kv_blocks_used=plan.num_blocks_used,
        kv_blocks_total=num_blocks,
        preempted=tuple(plan.preempted),
        make_slices=partial(tuple, plan.slices),
    )
