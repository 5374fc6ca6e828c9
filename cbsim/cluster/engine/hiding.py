"""When a scheduler may decide a step without seeing the decode group."""

from __future__ import annotations

from cbsim.cluster.engine.decode_group import DecodeGroup
from cbsim.schedulers.base import Scheduler


def must_show_all(scheduler: Scheduler, group: DecodeGroup) -> bool:
    """Whether in the next step some decode may go without its token, or what others get depends on them.

    Errs on the safe side: a step decided among all requests is always right, only slower.
    """
    budget, num_needed, num_free = scheduler.max_tokens_per_step, group.num_needed, scheduler.pool.num_free
    if group.num_active > budget or num_needed > num_free:
        return True
    if not scheduler.running:
        return False
    num_tokens, cap = group.num_active, scheduler.chunk_cap()
    for request in scheduler.running:
        wanted = min(scheduler.num_wanted(request), cap)
        if wanted and scheduler.prefill_excludes_decodes and not request.is_prefilling:
            return True
        num_tokens += wanted
        if group.takes_blocks:
            num_blocks = scheduler.pool.blocks_for(request.num_computed_tokens + wanted)
            num_needed += max(0, num_blocks - request.num_blocks)
    if num_needed > num_free:
        return True
    if scheduler.decodes_first or num_tokens <= budget:
        return False
    return any(request.admission < group.max_admission for request in scheduler.running)
