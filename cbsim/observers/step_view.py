"""StepView: what an observer is shown of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cbsim.core.replica_view import Slice
from cbsim.workload.request import Request


@dataclass(slots=True, eq=False)
class StepView:
    """A step of one replica, the same object before and after it.

    Queue lengths and blocks are as they stand right after scheduling, as in `steps.parquet`. In a live run
    `start_s` and `duration_s` are NaN before the step has run.
    """

    replica: int
    number: int
    """Place among the steps of its replica, from 0."""
    scheduled_at_s: float
    start_s: float
    """Later than `scheduled_at_s` where a step was under way then (asynchronous scheduling)."""
    duration_s: float
    num_prefill_tokens: int
    num_decodes: int
    """Requests that decode, one token each."""
    num_new_tokens: int
    """Output tokens that come out at its end: the decodes, and prompts that are complete then."""
    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    preempted: Sequence[Request]
    """Requests that were preempted as it was decided."""
    make_slices: Callable[[], Sequence[Slice]] = field(repr=False)
    finished: Sequence[Request] = ()
    """Requests that got their last token; empty before the step has ended."""
    _slices: Sequence[Slice] | None = field(default=None, repr=False)

    @property
    def end_s(self) -> float:
        """When its effects become visible."""
        return self.start_s + self.duration_s

    @property
    def slices(self) -> Sequence[Slice]:
        """Each request's share: `(request, num_tokens, num_computed_tokens before, is_prefill, emits, ...)`.

        Made when first asked for, at a cost that grows with the batch. Raises RuntimeError unless that is in
        `before_step` or `after_step`: later nobody knows any more.
        """
        if self._slices is None:
            self._slices = self.make_slices()
        return self._slices

    def shut(self) -> None:
        """From now on `slices` raises, until `make_slices` is set again."""
        self.make_slices = _not_now


def _not_now() -> Sequence[Slice]:
    raise RuntimeError("the slices of a step can be asked for in before_step and after_step, not later")
