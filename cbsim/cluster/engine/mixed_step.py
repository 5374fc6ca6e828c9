"""A step that the scheduler's slices and the decode group share."""

from __future__ import annotations

from typing import NamedTuple

from cbsim.cluster.engine.decode_group import Member
from cbsim.cluster.engine.step_log import Facts
from cbsim.cost.cost_model import StepShape
from cbsim.observers.step_view import StepView
from cbsim.schedulers.base import Slice, StepPlan


class Step:
    """A step under way."""

    __slots__ = ("end_s", "in_group", "number", "plan", "view")

    def __init__(self, number: int, plan: StepPlan | None, in_group: bool, end_s: float) -> None:
        self.number = number
        self.plan = plan
        """What the scheduler decided beside the group; `None` if the step is the group's alone."""
        self.in_group = in_group
        self.end_s = end_s
        self.view: StepView | None = None
        """What observers are shown of it, where there are some."""


class GroupShare(NamedTuple):
    """What the decode group does in a step."""

    num_decodes: int
    context: int
    """Tokens they attend to, the ones computed now included."""
    priced: tuple[int, int, int]
    """Decodes, context and longest context that the cost model is asked for."""


NO_SHARE = GroupShare(0, 0, (0, 0, 0))


def slice_of(member: Member, number: int) -> Slice:
    """A member's share of a group step."""
    request = member.request
    computed = member.num_computed_tokens + number - member.first
    return Slice(request, 1, computed, False, True, request.num_preemptions)


def is_quiet(plan: StepPlan) -> bool:
    """Whether the end of a step brings tokens only, no request's last one and none to a preempted request."""
    for request, _, _, _, emits, num_preemptions in plan.slices:
        if emits and (
            request.num_preemptions != num_preemptions
            or request.num_generated_tokens + 1 >= request.num_output_tokens
        ):
            return False
    return True


def look_at(plan: StepPlan, share: GroupShare) -> tuple[StepShape, int, Facts]:
    """The shape of a step of the scheduler's slices and the decode group, and what it computes.

    The latter as the (query, key) pairs of its attention, and the columns of `step_log.FACTS`.
    """
    chunks: list[tuple[int, int]] = []
    num_finishing = num_prefill_tokens = num_pairs = prefill_context = num_logits = 0
    num_decodes, context, (priced_decodes, priced_context, longest) = share
    for _, tokens, before, is_prefill, emits, _ in plan.slices:
        num_logits += emits
        if is_prefill:
            chunks.append((tokens, before))
            num_finishing += emits
            num_prefill_tokens += tokens
            prefill_context += tokens + before
            num_pairs += tokens * before + tokens * (tokens + 1) // 2
        else:
            reach = before + tokens
            num_decodes += 1
            context += reach
            priced_decodes += 1
            priced_context += reach
            if reach > longest:
                longest = reach
    shape = plan.shape
    if shape is None:
        shape = StepShape(tuple(chunks), num_finishing, priced_decodes, priced_context, longest)
    facts = (
        num_prefill_tokens,
        len(chunks),
        num_decodes,
        len(plan.preempted),
        prefill_context + context,
        num_logits + share.num_decodes,
        longest if chunks else 0,
        share.num_decodes > 0,
    )
    return shape, num_pairs + context, facts
