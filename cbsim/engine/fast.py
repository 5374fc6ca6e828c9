"""The fast engine: the same steps to the last bit, without looking at every request in every one of them."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from cbsim.cost.base import CostModel, StepShape
from cbsim.engine.base import Engine
from cbsim.engine.decode_group import DecodeGroup, Member
from cbsim.engine.step_log import StepLog
from cbsim.engine.token_log import TokenLog
from cbsim.errors import PluginError
from cbsim.recorder import DECISIONS, FINISHED, Column, Recorder
from cbsim.request import Request, RequestState
from cbsim.schedulers.base import Scheduler, Slice, StepPlan


class Step:
    """A step under way."""

    __slots__ = ("end_s", "in_group", "number", "plan")

    def __init__(self, number: int, plan: StepPlan | None, in_group: bool, end_s: float) -> None:
        self.number = number
        self.plan = plan
        """What the scheduler decided beside the group; `None` if the step is the group's alone."""
        self.in_group = in_group
        self.end_s = end_s


class GroupShare(NamedTuple):
    """What the decode group does in a step."""

    num_decodes: int
    context: int
    """Tokens they attend to, the ones computed now included."""
    priced: tuple[int, int, int]
    """Decodes, context and longest context that the cost model is asked for."""


NO_SHARE = GroupShare(0, 0, (0, 0, 0))


class FastEngine(Engine):
    """Keeps decoding requests in a group, out of the scheduler's sight, while all of them get their token.

    Three speeds, by what a step needs: the scheduler decides it among all requests, as in the reference engine;
    it decides beside the group, of which it sees only the number; or nobody need decide, and steps follow each
    other in one loop (a stretch) until a request ends, arrives or lacks a block. A scheduler that does not
    declare `can_fast_forward` always gets the first.

    Lazy: `advance` runs to an instant, called by whoever submits or looks. `call` and `end_step` drive it step
    by step instead.
    """

    def __init__(
        self, replica: int, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int
    ) -> None:
        super().__init__(replica, scheduler, cost, recorder, num_in_flight)
        self.under_way: deque[Step] = deque()
        self.group = DecodeGroup(scheduler.pool, takes_blocks=not scheduler.reserves_ahead)
        self.steps = StepLog()
        self.tokens = TokenLog()
        self._num_steps = 0
        self._num_ended = 0
        self._group_end_s = 0.0
        """When the last group step ended."""
        self._asked_at_s: float | None = None
        self._called_at_s = -math.inf
        self._head_is_blocked = False
        self._live: dict[int, Request] = {}
        """Requests that have not ended, by index."""

    # Driven by the world

    def submit(self, request: Request) -> bool:
        """See `Engine.submit`."""
        accepted = super().submit(request)
        if accepted:
            self._live[request.index] = request
            self._head_is_blocked = False
            if not self.under_way:
                self._asked_at_s = request.arrival_s
        return accepted

    def advance(self, until_s: float) -> None:
        """Run everything that happens before `until_s`, seconds."""
        while True:
            if self.under_way:
                if self.under_way[0].end_s >= until_s:
                    return
                if self._may_stretch():
                    self._stretch(until_s)
                    if self.under_way[0].end_s >= until_s:
                        return
                end_s = self.under_way[0].end_s
                self.end_step()
                self.call(end_s)
            else:
                at_s = self._next_call_s()
                if at_s is None or at_s >= until_s:
                    return
                self.call(at_s)

    def call(self, now: float) -> None:
        """See `Engine.call`."""
        self._asked_at_s = None
        self._called_at_s = now
        while len(self.under_way) < self.num_in_flight and self._decide(now):
            pass

    def end_step(self) -> list[Request]:
        """See `Engine.end_step`."""
        step = self.under_way.popleft()
        plan, now = step.plan, step.end_s
        self._num_ended += 1
        leaving: list[Member] = []
        if step.in_group:
            self._group_end_s = now
            leaving = self.group.commit()
        if plan is not None:
            for part in plan.slices:
                if part.emits:
                    self.tokens.came_out(part.request, now)
        for member in leaving:
            self.tokens.came_out_in_group(member.request, member.first, member.last, now)
        finished: list[Request] = []
        if leaving:
            if plan is not None and not self.scheduler.decodes_first:
                self._give_back(leaving, plan)
            else:
                self.scheduler.num_hidden = self.group.num_hidden + len(leaving)
                finished = [self._finish_member(member) for member in leaving]
        if plan is not None:
            finished += self.scheduler.commit(plan)
        if finished:
            self._record_finished(finished, step)
        return finished

    @property
    def next_end_s(self) -> float | None:
        """See `Engine.next_end_s`."""
        return self.under_way[0].end_s if self.under_way else None

    @property
    def last_end_s(self) -> float:
        """See `Engine.last_end_s`."""
        return self.steps.end_s[self._num_ended - 1] if self._num_ended else 0.0

    # Deciding

    def _next_call_s(self) -> float | None:
        """When the idle engine is to ask its scheduler: someone has arrived, or a timer is set."""
        if self._asked_at_s is not None:
            return self._asked_at_s
        at_s = self.scheduler.wake_at_s()
        return None if at_s is None or at_s <= self._called_at_s else at_s

    def _decide(self, now: float) -> bool:
        """One call: of nobody if the group alone goes on, else of the scheduler; whether it made a step."""
        scheduler, group = self.scheduler, self.group
        if group.num_hidden:
            if self._must_show_all():
                self._dissolve()
            elif group.num_active and not scheduler.running and self._nobody_can_join():
                self._add_step(now, None, self._take_group_step())
                return True
        share = NO_SHARE
        if group.num_active and not scheduler.prefill_excludes_decodes:
            share = self._take_group_step()
        scheduler.num_hidden = group.num_hidden
        plan = scheduler.plan(now, share.num_decodes)
        if group.num_active and scheduler.prefill_excludes_decodes and not plan.slices:
            share = self._take_group_step()
        if plan.preempted and share.num_decodes:
            raise RuntimeError(f"{type(scheduler).__name__} preempts although all decodes have what they need")
        is_step = bool(plan.slices or share.num_decodes)
        for decision, request, num_cached in plan.decisions:
            code, number = DECISIONS[decision], self._num_steps if is_step else -1
            self.recorder.event(code, request, now, self.replica, number, num_cached)
        if is_step:
            self._add_step(now, plan, share)
            self._head_is_blocked = self._stays_blocked(plan)
            if scheduler.can_fast_forward and not plan.preempted:
                self._take_in(plan)
        return is_step

    def _nobody_can_join(self) -> bool:
        return (self._head_is_blocked and not self.group.num_lingering) or not len(self.scheduler.waiting)

    def _stays_blocked(self, plan: StepPlan) -> bool:
        """Whether the head of the queue waits until something ends or arrives, as free blocks only get fewer."""
        scheduler = self.scheduler
        return not (
            plan.slices
            or plan.decisions
            or scheduler.decides_by_clock
            or scheduler.decides_by_progress
            or scheduler.pool.prefix_caching
        )

    def _must_show_all(self) -> bool:
        """Whether in the next step some decode may go without its token, or others depend on all of them."""
        scheduler, group = self.scheduler, self.group
        budget, num_needed, num_free = scheduler.max_tokens_per_step, group.num_needed, scheduler.pool.num_free
        if group.num_active > budget or num_needed > num_free:
            return True
        if scheduler.decides_by_progress and len(scheduler.waiting):
            return True
        if not scheduler.running:
            return False
        num_tokens, cap = group.num_active, scheduler.chunk_cap()
        for request in scheduler.running:
            wanted = min(scheduler.num_wanted(request), cap)
            num_tokens += wanted
            if group.takes_blocks:
                num_blocks = scheduler.pool.blocks_for(request.num_computed_tokens + wanted)
                num_needed += max(0, num_blocks - request.num_blocks)
        if num_needed > num_free:
            return True
        if scheduler.decodes_first or num_tokens <= budget:
            return False
        return any(request.admission < group.max_admission for request in scheduler.running)

    def _take_in(self, plan: StepPlan) -> None:
        """Let the requests that decode from now on join the group."""
        running = self.scheduler.running
        for part in plan.slices:
            request = part.request
            if part.emits:
                num_made = request.num_generated_tokens + request.num_in_flight_tokens
                if num_made < request.num_output_tokens:
                    self.group.join(request)
                    if running[-1] is request:
                        running.pop()
                    else:
                        running.remove(request)
        self.scheduler.num_hidden = self.group.num_hidden

    def _take_group_step(self) -> GroupShare:
        """Decide a token for every active member of the group."""
        scheduler, group = self.scheduler, self.group
        num_decodes = group.num_active
        context = group.context + num_decodes
        priced = scheduler.decodes_as_priced(num_decodes, context, group.max_context)
        group.step()
        scheduler.advanced(1)
        self.num_padding_tokens += priced[0] - num_decodes
        return GroupShare(num_decodes, context, priced)

    # Running

    def _add_step(self, now: float, plan: StepPlan | None, share: GroupShare) -> None:
        """Price a step, put it under way and write it down."""
        scheduler, group, cost = self.scheduler, self.group, self.cost
        if plan is not None:
            duration_s = cost.step_s(merged_shape(plan, share)) + plan.transfer_s
            self.num_padding_tokens += plan.num_padding_tokens
        elif cost.is_deterministic:
            duration_s = cost.decode_s(*share.priced)
        else:
            duration_s = cost.step_s(StepShape((), 0, *share.priced))
        if not 0 < duration_s < math.inf:
            raise PluginError(f"{type(cost).__name__}: a step of {duration_s} s; allowed: more than 0")
        start_s = self.under_way[-1].end_s if self.under_way else now
        end_s = start_s + duration_s
        self.under_way.append(Step(self._num_steps, plan, share.num_decodes > 0, end_s))
        self._num_steps += 1
        num_kv_tokens = group.context + group.lingering_context
        for request in scheduler.running:
            num_kv_tokens += request.num_computed_tokens
        num_running = len(scheduler.running) + group.num_hidden
        self.steps.add(now, start_s, duration_s, end_s, plan, share.num_decodes, share.context)
        self.steps.add_state(num_running, len(scheduler.waiting), scheduler.pool.num_used, num_kv_tokens)

    def _may_stretch(self) -> bool:
        """Whether all steps under way and all to come, for a while, are the group's alone."""
        group = self.group
        return (
            group.num_active > 0
            and not group.num_lingering
            and not self.scheduler.running
            and len(self.under_way) == self.num_in_flight
            and self.under_way[0].plan is None
            and self.under_way[-1].plan is None
            and self.cost.is_deterministic
            and self._nobody_can_join()
        )

    def _stretch(self, until_s: float) -> None:
        """Let the running step end and decide the next one, over and over, while only the group is concerned.

        Ends before the step under way would end at `until_s`, after the step in which a member gets its last
        token was decided, or when blocks run out.
        """
        group, under_way, pool = self.group, self.under_way, self.scheduler.pool
        needs, num_phases = group.needs, len(group.needs)
        takes_blocks, has_identities = group.takes_blocks, group.has_identities
        first, last, num_committed = group.num_planned, group.next_end, group.num_committed
        num_free, num_blocks, price_s = pool.num_free, pool.num_blocks, self.cost.decode_s
        num_decodes, context = group.num_active, group.context + group.num_active
        num_priced, priced, longest = self.scheduler.decodes_as_priced(num_decodes, context, group.max_context)
        end_s, last_end_s = under_way[0].end_s, under_way[-1].end_s
        scheduled_at_s, start_s = end_s, last_end_s
        is_sync = len(under_way) == 1
        durations, ends, used = [], [], []
        step = first
        while end_s < until_s and step <= last:
            if takes_blocks:
                num_needed = needs[step % num_phases]
                if num_needed > num_free:
                    break
                num_free -= num_needed
                if has_identities:
                    group.take_blocks(step, num_committed + step - first + 1)
            duration_s = price_s(num_priced, priced, longest)
            priced += num_priced
            longest += 1
            group_end_s = end_s
            end_s = last_end_s if not is_sync else end_s + duration_s
            last_end_s = last_end_s + duration_s
            step += 1
            durations.append(duration_s)
            ends.append(last_end_s)
            used.append(num_blocks - num_free)
        num_steps = step - first
        if num_steps:
            self._group_end_s = self._called_at_s = group_end_s
            pool.num_free = num_free
            group.num_committed += num_steps
            self.steps.add_run(scheduled_at_s, start_s, durations, ends, used, num_decodes, context)
            self.steps.add_state(num_decodes, len(self.scheduler.waiting), None, context)
            group.advance(num_steps)
            self.scheduler.advanced(num_steps)
            self.num_padding_tokens += num_steps * (num_priced - num_decodes)
            self._num_steps += num_steps
            self._num_ended += num_steps
            all_ends = [way.end_s for way in under_way] + ends
            for way, way_end_s in zip(under_way, all_ends[-len(under_way) :], strict=True):
                way.number += num_steps
                way.end_s = way_end_s

    # Leaving the group

    def _dissolve(self) -> None:
        """Show the scheduler every request, as if there had never been a group."""
        scheduler, group = self.scheduler, self.group
        number = group.num_committed
        for step in self.under_way:
            if step.in_group:
                slices = [slice_of(member, number) for member in group.members_of(number)]
                if step.plan is None:
                    step.plan = StepPlan(step.end_s, 0)
                self._merge(slices, step.plan)
                step.in_group = False
                self.steps.ungroup(step.number)
                number += 1
        members = group.dissolve()
        for member in members:
            last = min(member.last, group.num_committed - 1)
            if last >= member.first:
                self.tokens.came_out_in_group(member.request, member.first, last, self._group_end_s)
        scheduler.running = sorted(
            [*scheduler.running, *(member.request for member in members)],
            key=lambda request: request.admission,
        )
        scheduler.num_hidden = 0
        self._head_is_blocked = False

    def _merge(self, slices: list[Slice], plan: StepPlan) -> None:
        """Put members' slices where the scheduler would have had them."""
        slices.sort(key=lambda part: part.request.admission)
        plan.slices[:0] = slices
        if not self.scheduler.decodes_first:
            plan.slices.sort(key=lambda part: part.request.admission)

    def _give_back(self, leaving: list[Member], plan: StepPlan) -> None:
        """Let the scheduler finish these members in their place among the others of the step."""
        for member in leaving:
            member.request.num_generated_tokens -= 1
            member.request.num_in_flight_tokens += 1
            self.scheduler.running.append(member.request)
        self._merge([slice_of(member, member.last) for member in leaving], plan)
        self.scheduler.num_hidden = self.group.num_hidden

    def _finish_member(self, member: Member) -> Request:
        request, scheduler = member.request, self.scheduler
        request.state = RequestState.FINISHED
        scheduler.num_hidden -= 1
        if scheduler.pool.prefix_caching:
            scheduler.pool.publish(request, request.num_computed_tokens)
        scheduler.left(request)
        return request

    def _record_finished(self, finished: list[Request], step: Step) -> None:
        self._head_is_blocked = False
        self.num_outstanding -= len(finished)
        self.steps.finished(step.number, len(finished))
        for request in finished:
            del self._live[request.index]
            self.recorder.event(FINISHED, request, step.end_s, self.replica, step.number, 0)
            self._close(request)

    def _close(self, request: Request) -> None:
        first_s, last_s = request.first_token_at_s, request.last_token_at_s
        if first_s is None or last_s is None:
            self.recorder.close(request, self.replica)
        else:
            self.recorder.close(request, self.replica, first_s, last_s, request.max_itl_s)

    # The record

    def finish_record(self) -> None:
        """See `Engine.finish_record`."""
        self._dissolve()
        for request in self._live.values():
            self._close(request)
        self._live.clear()
        self.recorder.longest_gaps(*self.tokens.longest_gaps(self.steps.group_end_s(self._num_ended)))

    def step_columns(self) -> dict[str, Column]:
        """See `Engine.step_columns`."""
        num_blocks = self.scheduler.pool.num_blocks
        return self.steps.to_columns(self.replica, self._num_ended, self.num_in_flight, num_blocks)

    def gaps(self) -> tuple[Column, Column]:
        """See `Engine.gaps`."""
        return self.tokens.gaps(self.steps.group_end_s(self._num_ended))


def slice_of(member: Member, number: int) -> Slice:
    """A member's share of a group step."""
    request = member.request
    computed = member.num_computed_tokens + number - member.first
    return Slice(request, 1, computed, False, True, request.num_preemptions)


def merged_shape(plan: StepPlan, share: GroupShare) -> StepShape:
    """The shape of a step that the scheduler and the decode group share."""
    shape = plan.priced_shape()
    if not share.num_decodes:
        return shape
    num_decodes, context, longest = share.priced
    return StepShape(
        shape.chunks,
        shape.num_finishing_chunks,
        shape.num_decodes + num_decodes,
        shape.decode_context + context,
        max(shape.max_decode_context, longest),
    )
