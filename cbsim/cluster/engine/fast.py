"""The fast engine: the same steps to the last bit, without looking at every request in every one of them."""

from __future__ import annotations

import math

from cbsim.cluster.engine.engine_interface import checked_s
from cbsim.cluster.engine.grouped import GroupedEngine
from cbsim.cluster.engine.hiding import must_show_all
from cbsim.cluster.engine.mixed_step import NO_SHARE, GroupShare, Step, is_quiet, look_at
from cbsim.cluster.engine.recorder import DECISIONS, Recorder
from cbsim.cluster.engine.stretch import Stretch, group_steps_s
from cbsim.cost.cost_model import CostModel
from cbsim.schedulers.base import Scheduler, StepPlan
from cbsim.workload.request import Request


class FastEngine(GroupedEngine):
    """Keeps decoding requests in a group, out of the scheduler's sight, while all of them get their token.

    Three speeds, by what a step needs: the scheduler decides it among all requests, as in the reference
    engine; it decides beside the group, of which it sees only the number; or nobody need decide, and a
    whole stretch of steps is decided at once, up to where a request ends, arrives or lacks a block. A
    scheduler that does not declare `can_fast_forward` always gets the first.

    Lazy: `advance` runs to an instant, called by whoever submits or looks. `call` and `end_step` drive it
    step by step instead.
    """

    def __init__(
        self, replica: int, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int
    ) -> None:
        super().__init__(replica, scheduler, cost, recorder, num_in_flight)
        self._num_others = num_in_flight - 1
        """Steps under way beside the one to be decided, while the engine is busy."""
        self._excludes = scheduler.prefill_excludes_decodes
        self._takes_in = scheduler.can_fast_forward
        self._can_stay_blocked = not (
            scheduler.decides_by_clock or scheduler.decides_by_progress or scheduler.pool.prefix_caching
        )
        self._num_steps = 0
        self._asked_at_s: float | None = None
        self._called_at_s = -math.inf
        self._duration_s = math.inf
        """Of the last step of the group alone."""
        self._waiting_for = 0
        """Why, by the last step that the scheduler decided, those who wait do so."""
        self._ahead: Stretch | None = None
        """Steps decided and not yet written down: where they are cut is still open."""
        self._advanced_to_s = 0.0
        self.quiet_until_s = -math.inf
        """Before this instant `advance` changes nothing that others see but blocks; set by `advance`."""

    # Driven by the world

    def finish_record(self) -> None:
        """See `Engine.finish_record`."""
        self._settle()
        super().finish_record()

    def submit(self, request: Request) -> bool:
        """See `Engine.submit`."""
        self._settle()
        self.quiet_until_s = -math.inf
        accepted = super().submit(request)
        if accepted:
            self.requests.arrived(request)
            self._head_is_blocked = False
            if not self.under_way:
                self._asked_at_s = request.arrival_s
        return accepted

    def advance(self, until_s: float, horizon_s: float | None = None) -> None:
        """Run everything that happens before `until_s`, seconds.

        With a later `horizon_s` stretches are decided up to there, and taken back where a request arrives
        before: for replicas that are looked at more often than they are given requests.
        """
        self._advanced_to_s = until_s
        horizon_s = until_s if horizon_s is None else horizon_s
        while (at_s := self._next_at_s()) < until_s:
            if self._ahead is not None:
                self._settle()
                continue
            if self.under_way:
                self.end_step()
            self._call(at_s, horizon_s)
        self.quiet_until_s = at_s

    def call(self, now: float) -> None:
        """See `Engine.call`."""
        self._advanced_to_s = now
        self._call(now, now)

    def _call(self, now: float, horizon_s: float) -> None:
        """See `call`; as long as nobody need decide, goes on up to `horizon_s`."""
        self._asked_at_s = None
        self._called_at_s = now
        while len(self.under_way) < self.num_in_flight and self._decide(now, horizon_s):
            if self._ahead is not None:
                if horizon_s > self._advanced_to_s:
                    return
                self._settle()

    @property
    def next_end_s(self) -> float | None:
        """See `Engine.next_end_s`."""
        self._settle()
        return self.under_way[0].end_s if self.under_way else None

    @property
    def num_blocks_used(self) -> int:
        """See `Engine.num_blocks_used`."""
        self._settle()
        return super().num_blocks_used

    @property
    def last_end_s(self) -> float:
        """See `Engine.last_end_s`."""
        self._settle()
        return self._last_end_s

    # Deciding

    def _next_at_s(self) -> float:
        """When something happens next that may change what others see; infinity if nothing will."""
        if self._ahead is not None:
            return self._ahead.last_decided_at_s
        if self.under_way:
            return self.under_way[0].end_s
        if self._asked_at_s is not None:
            return self._asked_at_s
        at_s = self.scheduler.wake_at_s()
        return math.inf if at_s is None or at_s <= self._called_at_s else at_s

    def _decide(self, now: float, horizon_s: float) -> bool:
        """One call: of nobody if the group alone goes on, else of the scheduler; whether another may follow.

        It may after a step, and after a call that only preempted while nothing runs: nobody else would ask.
        """
        scheduler, group = self.scheduler, self.group
        share = NO_SHARE
        if group.num_hidden:
            if must_show_all(scheduler, group):
                self._dissolve()
            elif not group.num_active:
                pass
            elif not scheduler.running and self._nobody_can_join():
                self._ahead = self._stretch(now, horizon_s)
                return True
            elif not self._excludes:
                share = self._take_group_step()
        scheduler.num_hidden = group.num_hidden
        plan = scheduler.plan(now, share.num_decodes)
        if self._excludes and group.num_active and not plan.slices:
            share = self._take_group_step()
        if plan.preempted and share.num_decodes:
            raise RuntimeError(
                f"{type(scheduler).__name__} preempts although all decodes have what they need"
            )
        is_step = bool(plan.slices or share.num_decodes)
        for decision, request, num_cached in plan.decisions:
            code, number = DECISIONS[decision], self._num_steps if is_step else -1
            self.recorder.event(code, request, now, self.replica, number, num_cached)
        if is_step:
            self._add_step(now, plan, share)
            # Free blocks only get fewer until something ends, so whoever lacked them keeps waiting.
            self._head_is_blocked = self._can_stay_blocked and not (plan.slices or plan.decisions)
            self._waiting_for = plan.waiting_for
            if self._takes_in and not plan.preempted:
                self._take_in(plan)
        return is_step or bool(plan.preempted and not self.under_way)

    def _nobody_can_join(self) -> bool:
        return (self._head_is_blocked and not self.group.num_lingering) or not len(self.scheduler.waiting)

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

    def _add_step(self, now: float, plan: StepPlan, share: GroupShare) -> None:
        """Price a step, put it under way and write it down."""
        scheduler, group, cost, under_way = self.scheduler, self.group, self.cost, self.under_way
        shape, num_pairs, facts = look_at(plan, share)
        transfer_s = plan.transfer_s
        duration_s = checked_s(cost.step_s(shape) + transfer_s, cost)
        self.num_padding_tokens += plan.num_padding_tokens
        start_s = under_way[-1].end_s if under_way else now
        end_s = start_s + duration_s
        under_way.append(Step(self._num_steps, plan, share.num_decodes > 0, end_s))
        self._num_steps += 1
        state = (
            plan.num_running,
            plan.num_waiting,
            plan.waiting_for,
            plan.num_kv_tokens + group.context + group.lingering_context,
            scheduler.pool.num_used,
        )
        self.steps.add(now, start_s, duration_s, end_s, transfer_s, num_pairs, state, facts)
        if self._audience is not None:
            self._show(now, start_s, duration_s, state, facts)

    def _stretch(self, now: float, horizon_s: float) -> Stretch:
        """Decide a step of the group alone, then, whenever the running one ends before `horizon_s`, the next.

        Goes on while blocks suffice, no member has got its last token, and what ends changes no decision.
        """
        group, under_way = self.group, self.under_way
        num_decodes = group.num_active
        context = group.context + num_decodes
        num_steps = 1
        if now < horizon_s and self._goes_on_alone(horizon_s):
            num_steps = group.next_end - group.num_planned + 1
            if horizon_s < math.inf:
                # Two more than seem to fit: how many do is seen from their exact ends.
                num_steps = min(num_steps, int((horizon_s - now) / self._duration_s) + 2)
            num_steps = group.num_affordable(num_steps)
        priced = self.scheduler.decodes_as_priced(num_decodes, context, group.max_context)
        before = [now]
        for step in under_way:
            before.append(step.end_s)
        durations, ends = group_steps_s(self.cost, priced, num_steps, before[-1])
        return Stretch(before, durations, ends, priced[0])

    def _goes_on_alone(self, horizon_s: float) -> bool:
        """Whether the steps under way, but for the one to be decided now, change no decision as they end."""
        if not self.cost.is_deterministic or len(self.under_way) != self._num_others:
            return False
        # Who ends makes room, and others see it: as good as nothing while nobody waits or looks.
        if self.group.num_lingering and (len(self.scheduler.waiting) or horizon_s > self._advanced_to_s):
            return False
        for step in self.under_way:
            plan = step.plan
            # Blocks by number become known as tokens come out, so there the order counts.
            if plan is not None and (self.group.has_identities or not is_quiet(plan)):
                return False
        return True

    def _settle(self) -> None:
        """Put the stretch decided ahead under way, up to the instant that the engine was advanced to."""
        stretch, self._ahead = self._ahead, None
        if stretch is None:
            return
        stretch.cut(self._advanced_to_s)
        ends, durations, num_priced = stretch.ends, stretch.durations, stretch.num_priced
        while self.group.num_lingering and len(durations) > 1:
            # Those whose last token is in flight are gone when the second step is decided.
            self._run(ends, durations[:1], num_priced)
            self._called_at_s = ends[1]
            self.end_step()
            ends, durations = ends[1:], durations[1:]
        self._run(ends, durations, num_priced)

    def _run(self, ends: list[float], durations: list[float], num_priced: int) -> None:
        """Put steps of the group under way; `ends` starts with the instant at which the first was decided."""
        group, under_way, scheduler = self.group, self.under_way, self.scheduler
        num_decodes, num_others, num_steps = group.num_active, len(under_way), len(durations)
        context, pool, num_waiting = group.context + num_decodes, scheduler.pool, len(scheduler.waiting)
        state = (
            group.num_hidden,
            num_waiting,
            self._waiting_for if num_waiting else 0,
            context + group.lingering_context,
            pool.num_blocks - pool.num_free + group.num_needed,
        )
        last_end_s = ends[num_steps + num_others]
        facts = (0, 0, num_decodes, 0, context, num_decodes, 0, True)
        self.steps.add_run(ends[0], ends[num_others], durations, last_end_s, state, facts)
        group.take_blocks(num_steps)
        first = self._num_steps
        self._num_steps = first + num_steps
        self._duration_s = durations[-1]
        first_left = 0
        if num_steps > 1:
            now = self._called_at_s = ends[num_steps - 1]
            num_ended = num_steps - 1
            first_left = max(0, num_ended - num_others)
            for _ in range(num_ended - first_left):
                if under_way[0].plan is None:
                    under_way.popleft()
                else:
                    self.end_step()
                    num_ended -= 1
            if num_ended:
                self._num_ended += num_ended
                group.num_committed += num_ended
                self._last_end_s = self._group_end_s = now
        for place in range(first_left, num_steps):
            under_way.append(Step(first + place, None, True, ends[1 + num_others + place]))
        group.advance(num_steps)
        scheduler.advanced(num_steps)
        if self._audience is not None:
            self._show(ends[0], ends[num_others], durations[0], state, facts)
        self.num_padding_tokens += num_steps * (num_priced - num_decodes)
