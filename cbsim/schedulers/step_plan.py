"""StepPlan: what one call of a scheduler decided."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from cbsim.cost.cost_model import StepShape
from cbsim.workload.request import Request


class WaitingFor(IntEnum):
    """What the head of the waiting queue lacks, and with it all behind it: nobody overtakes the head."""

    NOBODY_WAITS = 0
    TURN = 1
    """Budget in this step, a batch that starts, a step that does not preempt: what policy may ask for."""
    SLOT = 2
    """Fewer requests running."""
    KV_BLOCKS = 3


class Slice(NamedTuple):
    """One request's share of a step."""

    request: Request
    num_tokens: int
    num_computed_tokens: int
    """Before the step."""
    is_prefill: bool
    emits: bool
    """Whether a token comes out: all known tokens are computed after this slice."""
    num_preemptions: int
    """The request's, when planned: a preemption while the step is in flight shows by a higher count."""


class StepPlan:
    """What one call of the scheduler decided. Without slices it makes no step."""

    __slots__ = (
        "budget",
        "decisions",
        "now",
        "num_blocks_used",
        "num_kv_tokens",
        "num_padding_tokens",
        "num_running",
        "num_waiting",
        "preempted",
        "shape",
        "slices",
        "transfer_s",
        "waiting_for",
    )

    def __init__(self, now: float, budget: int) -> None:
        self.now = now
        self.budget = budget
        """Tokens that may still be scheduled."""
        self.slices: list[Slice] = []
        self.decisions: list[tuple[str, Request, int]] = []
        """`(admitted | resumed | preempted, request, prefix-cache tokens)` in the order decided."""
        self.preempted: list[Request] = []
        self.transfer_s = 0.0
        """Seconds the step spends moving KV blocks to and from host memory."""
        self.num_padding_tokens = 0
        """Tokens computed only to fill a padded batch."""
        self.num_running = 0
        self.num_waiting = 0
        self.num_blocks_used = 0
        """This and the queue lengths: right after scheduling."""
        self.num_kv_tokens = 0
        """KV entries of the running requests that are computed once the step has run."""
        self.waiting_for = WaitingFor.NOBODY_WAITS
        """Why nobody more was admitted."""
        self.shape: StepShape | None = None
        """What the step costs; `None` lets it follow from the slices."""

    @property
    def admitted(self) -> list[tuple[Request, int]]:
        """Requests taken from the waiting queue for the first time, with their prefix-cache tokens."""
        return [(request, num_cached) for what, request, num_cached in self.decisions if what == "admitted"]

    @property
    def resumed(self) -> list[tuple[Request, int]]:
        """The same after a preemption."""
        return [(request, num_cached) for what, request, num_cached in self.decisions if what == "resumed"]

    def priced_shape(self) -> StepShape:
        """The shape that the cost model turns into seconds, padding included."""
        return self.shape if self.shape is not None else shape_of(self.slices)


def shape_of(slices: Iterable[Slice]) -> StepShape:
    """The shape of a step without padding."""
    chunks = []
    num_finishing = num_decodes = decode_context = max_decode_context = 0
    for part in slices:
        if part.is_prefill:
            chunks.append((part.num_tokens, part.num_computed_tokens))
            num_finishing += part.emits
        else:
            context = part.num_computed_tokens + part.num_tokens
            num_decodes += 1
            decode_context += context
            max_decode_context = max(max_decode_context, context)
    return StepShape(tuple(chunks), num_finishing, num_decodes, decode_context, max_decode_context)
