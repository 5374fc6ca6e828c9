"""GroupedEngine: how steps end whose requests are in part the scheduler's and in part a group's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from cbsim.cluster.engine.decode_group import DecodeGroup, Member
from cbsim.cluster.engine.engine_interface import Engine
from cbsim.cluster.engine.mixed_step import Step, slice_of
from cbsim.cluster.engine.recorder import Column, Recorder
from cbsim.cluster.engine.request_log import RequestLog
from cbsim.cluster.engine.slice_log import SliceLog, Slices
from cbsim.cluster.engine.step_log import Facts, State, StepLog
from cbsim.cluster.engine.token_log import TokenLog
from cbsim.cost.cost_model import CostModel
from cbsim.observers.step_view import StepView
from cbsim.schedulers.base import Scheduler, Slice, StepPlan
from cbsim.workload.request import Request, RequestState


class GroupedEngine(Engine):
    """The half of the fast engine that ends steps, lets requests leave the group, and keeps the record.

    The other half, `FastEngine`, decides steps and puts them under way.
    """

    def __init__(
        self, replica: int, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int
    ) -> None:
        super().__init__(replica, scheduler, cost, recorder, num_in_flight)
        self.under_way: deque[Step] = deque()
        self.group = DecodeGroup(scheduler.pool, takes_blocks=not scheduler.reserves_ahead)
        self.steps = StepLog()
        self.tokens = TokenLog()
        self.slices = SliceLog()
        self.requests = RequestLog(replica, recorder)
        self._audience = recorder.audience
        self._num_ended = 0
        self._last_end_s = 0.0
        self._group_end_s = 0.0
        """When the last group step ended."""
        self._head_is_blocked = False

    def end_step(self) -> list[Request]:
        """See `Engine.end_step`."""
        step = self.under_way.popleft()
        plan, now = step.plan, step.end_s
        self._num_ended += 1
        self._last_end_s = now
        leaving: list[Member] = []
        if step.in_group:
            self._group_end_s = now
            leaving = self.group.commit()
        if step.view is not None:
            number, others = self.group.num_committed - step.in_group, [] if plan is None else plan.slices
            step.view.make_slices = lambda: self._slices_of(step, number, others, leaving)
        if plan is not None:
            self._take_down(step.number, plan, now)
        finished: list[Request] = []
        if leaving:
            finished = self._let_leave(leaving, plan, now)
        if plan is not None:
            finished += self.scheduler.commit(plan)
        if self._audience is not None and plan is not None:
            for part in plan.slices:
                if part.emits and part.request.first_token_at_s == now:
                    self._audience.tell("on_first_token", now, part.request, self.replica)
        if finished:
            self._head_is_blocked = False
            self.num_outstanding -= len(finished)
            self.steps.finished(step.number, len(finished))
            for request in finished:
                self.slices.close(request.index)
            self.requests.finished(finished, now, step.number)
        if self._audience is not None and step.view is not None:
            step.view.finished = finished
            self._audience.tell("after_step", now, step.view, self.replica)
        return finished

    def _take_down(self, number: int, plan: StepPlan, now: float) -> None:
        """Write down what the scheduler's part of a step computed, and the tokens that came out."""
        for request, num_tokens, computed, is_prefill, emits, _ in plan.slices:
            if is_prefill:
                self.slices.prefill(number, request.index, num_tokens, computed, emits)
            else:
                self.slices.decode(number, request.index)
            if emits:
                self.tokens.came_out(request, now)

    # Leaving the group

    def _let_leave(self, leaving: list[Member], plan: StepPlan | None, now: float) -> list[Request]:
        """Members got their last token: those that end without the scheduler's taking part."""
        scheduler = self.scheduler
        for member in leaving:
            self.tokens.came_out_in_group(member.request, member.first, member.last, now)
        if plan is not None and not scheduler.decodes_first:
            self._give_back(leaving, plan)
            return []
        scheduler.num_hidden = self.group.num_hidden + len(leaving)
        finished = []
        for member in leaving:
            request = member.request
            request.state = RequestState.FINISHED
            scheduler.num_hidden -= 1
            if scheduler.pool.prefix_caching:
                scheduler.pool.publish(request, request.num_computed_tokens)
            scheduler.left(request)
            finished.append(request)
        return finished

    def _give_back(self, leaving: list[Member], plan: StepPlan) -> None:
        """Let the scheduler finish these members in their place among the others of the step."""
        for member in leaving:
            member.request.num_generated_tokens -= 1
            member.request.num_in_flight_tokens += 1
            self.scheduler.running.append(member.request)
        plan.slices = self._merged([slice_of(member, member.last) for member in leaving], plan.slices)
        self.scheduler.num_hidden = self.group.num_hidden

    def _dissolve(self) -> None:
        """Show the scheduler every request, as if there had never been a group."""
        scheduler, group = self.scheduler, self.group
        number = num_committed = group.num_committed
        for step in self.under_way:
            if step.in_group:
                slices = [slice_of(member, number) for member in group.members_of(number)]
                if step.plan is None:
                    step.plan = StepPlan(step.end_s, 0)
                step.plan.slices = self._merged(slices, step.plan.slices)
                step.in_group = False
                number += 1
        members = group.dissolve()
        for member in members:
            last = min(member.last, num_committed - 1)
            if last >= member.first:
                self.tokens.came_out_in_group(member.request, member.first, last, self._group_end_s)
        scheduler.running = sorted(
            [*scheduler.running, *(member.request for member in members)],
            key=lambda request: request.admission,
        )
        scheduler.num_hidden = 0
        self._head_is_blocked = False

    def _merged(self, members: list[Slice], others: list[Slice]) -> list[Slice]:
        """Members' slices where the scheduler would have had them among the others."""
        members.sort(key=lambda part: part.request.admission)
        together = members + others
        if not self.scheduler.decodes_first:
            together.sort(key=lambda part: part.request.admission)
        return together

    def _slices_of(
        self, step: Step, number: int, others: list[Slice], gone: Sequence[Member] = ()
    ) -> tuple[Slice, ...]:
        """Every request's share of a step, in the scheduler's order.

        `number` is the group step's, `gone` are members that have left since.
        """
        if not step.in_group:
            return tuple(others)
        members = [*self.group.members_of(number), *gone]
        return tuple(self._merged([slice_of(member, number) for member in members], others))

    # Observers

    def _show(self, now: float, start_s: float, duration_s: float, state: State, facts: Facts) -> None:
        """Tell observers of the last step put under way."""
        step, audience, (num_running, num_waiting, _, _, num_used) = self.under_way[-1], self._audience, state
        if audience is None or not audience.hears_steps:
            return
        num_prefill_tokens, _, num_decodes, _, _, num_logits, _, _ = facts
        number = self.group.num_planned - 1
        step.view = StepView(
            replica=self.replica,
            number=step.number,
            scheduled_at_s=now,
            start_s=start_s,
            duration_s=duration_s,
            num_prefill_tokens=num_prefill_tokens,
            num_decodes=num_decodes,
            num_new_tokens=num_logits,
            num_running=num_running,
            num_waiting=num_waiting,
            kv_blocks_used=num_used,
            kv_blocks_total=self.scheduler.pool.num_blocks,
            preempted=() if step.plan is None else tuple(step.plan.preempted),
            make_slices=lambda: self._slices_of(step, number, [] if step.plan is None else step.plan.slices),
        )
        audience.tell("before_step", now, step.view, self.replica)

    # The record

    def finish_record(self) -> None:
        """See `Engine.finish_record`."""
        self._dissolve()
        for request in self.requests.live():
            self.slices.close(request.index)
        self.requests.close_all()
        self.recorder.longest_gaps(*self.tokens.longest_gaps(self.steps.group_end_s(self._num_ended)))

    def step_columns(self) -> Mapping[str, Column]:
        """See `Engine.step_columns`."""
        return self.steps.columns(
            self.replica,
            self._num_ended,
            self.num_in_flight,
            self.scheduler.pool.num_blocks,
            self.group.blocks_taken(),
        )

    def slice_columns(self) -> Slices:
        """See `Engine.slice_columns`; a member's decodes are those of the group's steps it took part in."""
        request, first, last = self.tokens.segments()
        group_steps = self.steps.group_steps()
        in_group = {
            "replica": np.full(len(request), self.replica),
            "request": request.astype(np.int64),
            "first_step": group_steps[first],
            "last_step": group_steps[last],
        }
        alone = self.slices.slices(self.replica)
        return Slices.joined([alone, Slices({name: c[:0] for name, c in alone.prefills.items()}, in_group)])

    def gaps(self) -> Column:
        """See `Engine.gaps`."""
        return self.tokens.gaps(self.steps.group_end_s(self._num_ended))
