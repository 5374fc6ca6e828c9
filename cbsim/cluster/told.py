"""ToldStepper: a replica whose decisions and results an audience is told as they happen."""

from __future__ import annotations

from functools import partial
from typing import Any

from cbsim.core.stepping import StepwiseWorld, WatchedStepper
from cbsim.observers.audience import Audience
from cbsim.observers.step_view import StepView
from cbsim.workload.request import Request


class ToldStepper(WatchedStepper):
    """Tells of arrivals, of decisions as each step is decided, and of what came out as each one ends."""

    def __init__(self, world: StepwiseWorld, number: int, audience: Audience) -> None:
        super().__init__(world, number)
        self.audience = audience
        self._views: dict[int, StepView] = {}
        """What was shown of the steps under way, by their numbers."""

    def submit(self, request: Request) -> bool:
        """See `Stepper.submit`."""
        is_accepted = super().submit(request)
        self.audience.tell("on_request_arrived", request.arrival_s, request, self.replica)
        return is_accepted

    def decided(self, step: Any) -> None:
        """See `WatchedStepper.decided`."""
        for what, request, _ in self.decisions(step):
            self.audience.tell_event(what, step.now, request, self.replica)

    def began(self, step: Any) -> None:
        """See `WatchedStepper.began`."""
        if self.audience.hears_steps:
            view = self._views[step.number] = self._view(step)
            self.audience.tell("before_step", step.now, view, self.replica)

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        step, now = self.under_way[0], self.under_way[0].end_s
        first_tokens = self._first_tokens(step) if self.audience.hears("on_first_token") else ()
        finished = super().end_step()
        for request in first_tokens:
            self.audience.tell("on_first_token", now, request, self.replica)
        for request in finished:
            self.audience.tell_event("finished", now, request, self.replica)
        view = self._views.pop(step.number, None)
        if view is not None:
            view.start_s, view.duration_s = step.start_s, step.duration_s
            view.finished = finished
            view.make_slices = partial(self.slices, step)
            self.audience.tell("after_step", now, view, self.replica)
        return finished

    def _first_tokens(self, step: Any) -> list[Request]:
        return [
            part.request
            for part in self.slices(step)
            if part.emits and part.request.num_generated_tokens == 0
        ]

    def _view(self, step: Any) -> StepView:
        return StepView(
            replica=self.replica,
            number=step.number,
            scheduled_at_s=step.now,
            start_s=step.start_s,
            duration_s=step.duration_s,
            num_prefill_tokens=step.num_prefill_tokens,
            num_decodes=step.num_decode_seqs,
            num_new_tokens=step.num_logits,
            num_running=step.num_running,
            num_waiting=step.num_waiting,
            kv_blocks_used=step.kv_blocks_used,
            kv_blocks_total=self.own.num_blocks,
            preempted=tuple(request for what, request, _ in self.decisions(step) if what == "preempted"),
            make_slices=partial(self.slices, step),
        )
