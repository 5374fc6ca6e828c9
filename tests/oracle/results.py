"""What happens at a step's end (20, A10, A12, S5, P5 to P11)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tests.oracle.request import Request
from tests.oracle.step import Entry, Row, Step

if TYPE_CHECKING:
    from tests.oracle.scheduler import Scheduler


def take_results(scheduler: Scheduler, step: Step, now: float) -> None:
    """Tokens, ends and news (20, A10, A12, S5, P5 to P10); `step` is no longer under way."""
    told: Row = {key: [] for key in ("emitted", "finished", "failed")}
    step.row |= {**told, "tokens": {}, "accepted": {}}
    for _, request in [late for late in scheduler.delayed if late[0] is step]:
        scheduler.pool.release(request)
    scheduler.delayed = [late for late in scheduler.delayed if late[0] is not step]
    failed = mark_bad_blocks(scheduler, step)
    for entry in step.entries:
        if entry.emits and not entry.request.has_ended:
            take_tokens(scheduler, step, entry, entry.request in failed, now)
    may_recompute = scheduler.settings.may_recompute
    for request in [] if may_recompute else failed:
        end(scheduler, step, request, now, "failed")
    for request in step.received:
        request.load = "ended"
        if request.first_bad is not None and may_recompute:
            request.done = request.first_bad * scheduler.settings.block_size
        elif request.first_bad is not None:
            end(scheduler, step, request, now, "failed")
        request.first_bad = None
    for request in step.sent:
        scheduler.kept.remove(request)
        scheduler.pool.release(request)
    step.row |= {"received": [r.name for r in step.received], "sent": [r.name for r in step.sent]}
    step.row["used_end"] = scheduler.pool.num_used()
    step.row["cached_free_end"] = sum(block.content is not None for block in scheduler.pool.free)


def take_tokens(scheduler: Scheduler, step: Step, entry: Entry, is_dropped: bool, now: float) -> None:
    """Those that a step gives one request."""
    request = entry.request
    num_accepted = 0
    if entry.num_drafts and not entry.is_padded:
        num_accepted = request.accepts(entry.num_drafts)
    if entry.is_victims and scheduler.settings.drops_victims:  # P11
        return
    if not is_dropped:  # P8
        entry.num_accepted = num_accepted if entry.num_drafts else None
        entry.num_emitted = min(num_accepted + 1, request.num_output - request.generated)
        for _ in range(entry.num_emitted):
            request.tokens.append((f"o:{request.name}", request.generated))
        request.first_token = now if request.first_token is None else request.first_token
        step.row["emitted"].append(request.name)
        if entry.num_emitted > 1:
            step.row["tokens"][request.name] = entry.num_emitted
        if entry.num_drafts:
            step.row["accepted"][request.name] = num_accepted
        if not entry.is_victims:
            settle(scheduler, entry)
    if request.generated == request.num_output:
        end(scheduler, step, request, now, "finished")
    elif not scheduler.settings.async_scheduling and not entry.is_victims:
        request.drafts = request.proposes(scheduler.settings.num_drafts)  # S1


def settle(scheduler: Scheduler, entry: Entry) -> None:
    """What has become of the drafts (S5, S11), and what is computed for certain (A12, S6)."""
    request = entry.request
    if scheduler.settings.async_scheduling:
        request.in_flight -= 1 + entry.num_drafts
    if request.done > 0:
        request.done -= entry.num_drafts - (entry.num_accepted or 0)
    scheduler.pool.make_known(request, request.done - scheduler.tokens_under_way(request))


def mark_bad_blocks(scheduler: Scheduler, step: Step) -> list[Request]:
    """Running requests with blocks that a read did not bring (P8)."""
    size = scheduler.settings.block_size
    affected, claimed = [], []
    for request in scheduler.running if step.bad_blocks else []:
        sure = request.done - sum(e.num_tokens for e in step.entries if e.request is request)
        blocks = request.blocks[0]
        num_sure = min(len(blocks), math.ceil(sure / size))
        bad = [place for place in range(num_sure) if blocks[place] in step.bad_blocks]
        own = [place for place in bad if blocks[place] not in claimed]
        claimed += [blocks[place] for place in own]
        if bad:
            affected.append(request)
            request.done = own[0] * size if own else sure
        for block in [] if scheduler.settings.may_recompute or not own else blocks[own[0] :]:
            scheduler.pool.forget(block)
    return affected


def end(scheduler: Scheduler, step: Step, request: Request, now: float, how: str) -> None:
    """It leaves, and releases its blocks, unless these are still needed (P9, P10)."""
    step.row[how].append(request.name)
    setattr(request, how, now)
    request.load = ""
    for queue in (scheduler.running, scheduler.holding, scheduler.waiting):
        if request in queue:
            queue.remove(request)
    if how == "finished" and request.remote_decode and scheduler.settings.connector.kind:
        scheduler.kept.append(request)
        scheduler.sends.append((now + request.send_s, request))
    elif scheduler.settings.fetches and scheduler.entries_under_way(request):
        newest = [behind for behind in scheduler.under_way if behind.entries][-1]
        scheduler.delayed.append((newest, request))
    else:
        scheduler.pool.release(request)
