"""What a connector brings: reads within a step, and loads before one (P1 to P3, P6)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tests.oracle.blocks import Places
from tests.oracle.request import Request
from tests.oracle.settings import Settings
from tests.oracle.step import Step

if TYPE_CHECKING:
    from tests.oracle.scheduler import Scheduler


def num_outside(settings: Settings, request: Request, num_hit: int) -> int:
    """Tokens that the connector can bring behind a local hit (P1)."""
    if settings.connector.kind in ("", "pd"):
        is_elsewhere = settings.connector.kind and request.remote_prefill and not request.was_loaded
        return max(0, len(request.prompt) - num_hit) if is_elsewhere else 0
    size = settings.block_size
    return max(0, min(request.tier_tokens, len(request.tokens) - 1) // size * size - num_hit)


def read(step: Step, request: Request, size: int, num_hit: int, num_read: int) -> None:
    """Tokens of a tier within the step (P2, P8)."""
    step.row["read_sync"][request.name] = num_read
    end = (num_hit + num_read) // size
    bad = request.bad_block(num_hit // size, end)
    if bad is not None:
        step.bad_blocks += [block for block in request.blocks[0][bad:end] if block]


def start_load(scheduler: Scheduler, step: Step, request: Request, hits: Places, num_read: int) -> bool:
    """Unless one of the tests fails (P3)."""
    pool, size = scheduler.pool, scheduler.settings.block_size
    num_hit = len(hits[0])
    end = num_hit * size + num_read
    num_free = len(pool.free) - scheduler.watermark()
    is_whole = scheduler.settings.reserves_prompts
    if is_whole and pool.needed(hits, end, len(request.tokens), is_whole=True) > num_free:
        return False
    if pool.needed(hits, end, end) > num_free - reserved(scheduler):
        return False
    pool.hold_hits(request, hits, end)
    pool.take(request, end)
    if request in scheduler.waiting:
        scheduler.waiting.remove(request)
        scheduler.enqueue(scheduler.holding, request, len(scheduler.holding))
    request.first_bad = request.bad_block(num_hit, math.ceil(end / size))
    request.done, request.load, request.was_passed_over, request.was_loaded = end, "under way", True, True
    scheduler.loads.append((step.scheduled_at + request.load_s, request))
    step.row["load_started"].append([request.name, num_read])
    return True


def reserved(scheduler: Scheduler) -> int:
    """`r`: what prompts under way still lack, and what the first verification needs (P3)."""
    settings = scheduler.settings
    ahead = 1 + settings.num_drafts + settings.num_lookahead if settings.num_drafts else 0
    prefills = [r for r in scheduler.running if r.done < len(r.prompt)] + scheduler.holding
    ends = [math.ceil((len(r.tokens) + ahead) / settings.block_size) for r in prefills]
    lacking = [end - sum(map(len, r.blocks)) for end, r in zip(ends, prefills, strict=True)]
    return sum(max(0, lack) for lack in lacking) + math.ceil(ahead / settings.block_size)


def look_at(scheduler: Scheduler, request: Request) -> None:
    """One whose load has ended, slot and budget being free (P6, P7)."""
    request.load = "looked at"
    if request.done == 0:
        request.load = ""
        scheduler.pool.release(request)
        return
    scheduler.pool.make_known(request, request.done)
    request.done = min(request.done, len(request.tokens) - 1)
