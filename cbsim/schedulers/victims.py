"""Whom to preempt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cbsim.workload.request import Request

VictimRule = Callable[[Sequence[Request]], Request]
"""Chooses one of the requests offered, which are in order of admission."""


def last_admitted(candidates: Sequence[Request]) -> Request:
    """The newest: the least is lost, and who came first goes on."""
    return candidates[-1]


def lowest_priority(candidates: Sequence[Request]) -> Request:
    """The largest priority number; of equals, the last to arrive."""
    return max(candidates, key=lambda request: (request.priority, request.index))


def most_blocks(candidates: Sequence[Request]) -> Request:
    """Who holds the most KV blocks; of equals, the last to arrive.

    The one admitted first is spared while there are others: the largest is often the next to finish, and
    without anyone who is safe, requests could preempt each other for ever.
    """
    return max(candidates[1:] or candidates, key=lambda request: (request.num_blocks, request.index))


def least_progress(candidates: Sequence[Request]) -> Request:
    """Who has the fewest tokens computed, and so the least to lose; of equals, the last to arrive."""
    return min(candidates, key=lambda request: (request.num_computed_tokens, -request.index))


VICTIM_RULES: dict[str, VictimRule] = {
    "last_admitted": last_admitted,
    "lowest_priority": lowest_priority,
    "most_blocks": most_blocks,
    "least_progress": least_progress,
}
