"""A step that the scheduler's slices and the decode group share."""

from __future__ import annotations

from typing import NamedTuple

from cbsim.cost.base import StepShape
from cbsim.engine.decode_group import Member
from cbsim.engine.step_log import StepFacts
from cbsim.schedulers.base import Slice, StepPlan


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


def slice_of(member: Member, number: int) -> Slice:
    """A member's share of a group step."""
    request = member.request
    computed = member.num_computed_tokens + number - member.first
    return Slice(request, 1, computed, False, True, request.num_preemptions)


def is_quiet(plan: StepPlan) -> bool:
    """Whether the end of a step brings tokens only, no request's last one and none to a preempted request."""
    return all(
        request.num_preemptions == num_preemptions
        and request.num_generated_tokens + 1 < request.num_output_tokens
        for request, _, _, _, emits, num_preemptions in plan.slices
        if emits
    )


def look_at(plan: StepPlan, share: GroupShare) -> tuple[StepFacts, StepShape]:
    """What the scheduler's slices and the decode group compute in a step, and the shape to be priced."""
    chunks: list[tuple[int, int]] = []
    num_finishing = num_prefill_tokens = num_decodes = context = longest = num_logits = num_pairs = 0
    for _, tokens, before, is_prefill, emits, _ in plan.slices:
        num_logits += emits
        if is_prefill:
            chunks.append((tokens, before))
            num_finishing += emits
            num_prefill_tokens += tokens
            num_pairs += tokens * before + tokens * (tokens + 1) // 2
        else:
            num_decodes += 1
            context += before + tokens
            longest = max(longest, before + tokens)
    facts = StepFacts(
        num_prefill_tokens,
        len(chunks),
        num_decodes + share.num_decodes,
        len(plan.preempted),
        num_prefill_tokens + sum(before for _, before in chunks) + context + share.context,
        num_logits + share.num_decodes,
        int(share.num_decodes > 0),
        num_pairs + context + share.context,
    )
    if plan.shape is not None:
        return facts, plan.shape
    group_decodes, group_context, group_longest = share.priced
    shape = StepShape(
        tuple(chunks),
        num_finishing,
        num_decodes + group_decodes,
        context + group_context,
        max(longest, group_longest),
    )
    return facts, shape
