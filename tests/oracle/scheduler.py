"""vLLM's V1 scheduler, written from the rules in words alone: naive, slow, and nothing of cbsim.

The rules are those of `cbsim/schedulers/rules.md`; numbers in brackets are theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.blocks import Block, Places, Pool
from tests.oracle.case import Request, Settings

Row = dict[str, Any]


@dataclass(eq=False)
class Entry:
    """A request's share of a step."""

    request: Request
    num_tokens: int
    before: int
    """Tokens computed or in flight before this step."""
    is_decode: bool
    emits: bool
    num_preemptions: int
    """Of the request when this was decided: if it has more by the end, the step runs with a victim (A8)."""
    num_drafts: int = 0
    """`d`: drafts that it verifies (S2)."""
    is_padded: bool = False
    num_accepted: int | None = None
    """Known at the end; `None` without drafts, and where nothing came out."""
    num_emitted: int = 0

    @property
    def is_victims(self) -> bool:
        return self.request.num_preemptions > self.num_preemptions


@dataclass(eq=False)
class Step:
    """A call, and the step that it made if it scheduled anybody."""

    scheduled_at: float
    row: Row
    entries: list[Entry] = field(default_factory=list)
    start: float | None = None
    """`None` for a call that scheduled nothing (A9)."""
    duration: float | None = None
    end: float | None = None
    """When its result is taken; of a call that scheduled nothing, when its news is."""
    bad_blocks: list[Block] = field(default_factory=list)
    """What reads within this step fail to bring (P8)."""
    carries_prefill: bool = False
    uses_drafts: bool = False
    received: list[Request] = field(default_factory=list)
    sent: list[Request] = field(default_factory=list)
    """Transfers found ended as it was launched (P5)."""

    @property
    def has_changed(self) -> bool:
        """Whether the call did or found anything."""
        told = self.row["preempted"] or self.row["load_started"]
        return bool(self.entries or told or self.received or self.sent)


class Scheduler:
    """The queues, and what is under way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests: list[Request] = []
        """All that have arrived."""
        self.running: list[Request] = []
        self.holding: list[Request] = []
        """Those with a load, until they are admitted (P4)."""
        self.waiting: list[Request] = []
        self.pool = Pool(settings, self.requests)
        self.under_way: list[Step] = []
        self.loads: list[tuple[float, Request]] = []
        self.sends: list[tuple[float, Request]] = []
        """Transfers that nobody has found ended, with their end."""
        self.kept: list[Request] = []
        """Finished ones whose blocks are being fetched (P9)."""
        self.delayed: list[tuple[Step, Request]] = []
        """Ended ones that release with the result of that step (P10)."""
        self.num_calls = 0
        self.num_steps = 0
        self.last_prefill = -math.inf
        """The last step that carried prefill (X3)."""
        self.is_backed_up = False

    @property
    def has_requests(self) -> bool:
        return bool(self.running or self.holding or self.waiting or self.kept)

    def rank(self, request: Request) -> tuple[int, int]:
        return (request.priority, request.place)

    def enqueue(self, queue: list[Request], request: Request, at: int) -> None:
        """Into the waiting or the holding queue (1, 12, P4)."""
        queue.insert(at, request)
        if self.settings.policy == "priority":
            queue.sort(key=self.rank)

    def arrive(self, request: Request) -> None:
        self.requests.append(request)
        self.enqueue(self.waiting, request, len(self.waiting))

    def entries_under_way(self, request: Request) -> list[Entry]:
        """In steps under way, since its last preemption."""
        entries = [entry for step in self.under_way for entry in step.entries]
        return [entry for entry in entries if entry.request is request and not entry.is_victims]

    def tokens_under_way(self, request: Request) -> int:
        return sum(entry.num_tokens for entry in self.entries_under_way(request))

    def call(self, now: float) -> Step:
        """One pass over the running list, and one over those who wait (4, 5)."""
        told: Row = {key: [] for key in ("new", "resumed", "preempted", "padded", "load_started")}
        step = Step(now, {**told, "cached": {}, "read_sync": {}})
        self.num_calls += 1
        cap = self.cap()
        holds = self.holds_prefill()
        left = self.serve_running(step, self.settings.max_num_batched_tokens, cap, holds)
        if not step.row["preempted"]:
            self.admit(step, left, cap, holds)
            if not holds:
                self.is_backed_up = any(not request.was_passed_over for request in self.waiting)
        if step.entries:
            self.num_steps += 1
            if step.carries_prefill:
                self.last_prefill = self.num_steps
        step.received = self.ended(self.loads, now)
        step.sent = self.ended(self.sends, now)
        self.tell(step)
        return step

    def tell(self, step: Step) -> None:
        """The row of a call, as it is right after it."""
        queue = [*self.holding, *self.waiting]
        delayed = [request for _, request in self.delayed]
        holders = [r for r in self.requests if r not in delayed and any(any(p) for p in r.blocks)]
        counts = {r.name: [sum(b is not None for b in places) for places in r.blocks] for r in holders}
        loading = [r for r in self.requests if r.load in ("under way", "ended")]
        step.row |= {
            "sched": [[e.request.name, e.num_tokens, e.before] for e in step.entries],
            "drafts": {e.request.name: e.num_drafts for e in step.entries if e.num_drafts},
            "skip_drafts": bool(self.settings.num_lookahead and step.entries) and not step.uses_drafts,
            "loading": [request.name for request in loading],
            "running": len(self.running),
            "waiting": len(queue),
            "used": self.pool.num_used(),
            "running_q": [request.name for request in self.running],
            "waiting_q": [request.name for request in queue],
            "blocks": {name: n[0] if len(n) == 1 else n for name, n in counts.items()},
        }

    def cap(self) -> float:
        """Most tokens of one request (6, X2)."""
        cap = self.settings.long_prefill_token_threshold
        num_requests = len(self.running) + len(self.holding) + len(self.waiting)
        if cap == 0 or (num_requests <= 1 and self.settings.version == "0.33"):
            return math.inf
        if self.settings.long_prefill_token_threshold_adaptive:
            cap = max(cap, self.settings.max_num_batched_tokens // max(1, num_requests))
        return cap

    def holds_prefill(self) -> bool:
        """X3."""
        is_early = self.num_steps + 1 - self.last_prefill < self.settings.prefill_schedule_interval
        return is_early and not all(r.is_prefilling for r in self.running) and not self.is_backed_up

    def serve_running(self, step: Step, left: int, cap: float, holds: bool) -> int:
        """Whoever runs, in order of admission; the budget that is left."""
        goes_on = self.settings.policy == "priority" and self.settings.version == "0.33"
        for request in list(self.running):
            if left <= self.settings.num_extra:
                break
            if request not in self.running or request.wanted <= 0 or self.num_calls < request.waits_for_call:
                continue
            if holds and request.is_prefilling:
                continue
            num_tokens = int(min(request.wanted, cap, left - self.settings.num_extra))
            while not self.fits(request, num_tokens):
                by_priority = self.settings.policy == "priority"
                victim = max(self.running, key=self.rank) if by_priority else self.running[-1]  # 11
                if self.settings.fetches and self.entries_under_way(victim):
                    return left  # P10
                left += self.preempt(victim, step)
                if victim is request:
                    break
            if request in self.running:
                step.carries_prefill |= request.is_prefilling
                left -= self.schedule(step, request, num_tokens)
            elif not goes_on:  # 14
                break
        return left

    def fits(self, request: Request, num_tokens: int) -> bool:
        """Whether a running request's blocks are there (9, S4, H2)."""
        self.pool.release_passed(request, request.done - self.tokens_under_way(request))
        end = request.done + num_tokens + self.settings.num_lookahead
        return self.pool.missing(request, end) <= len(self.pool.free)

    def preempt(self, victim: Request, step: Step) -> int:
        """Take all its blocks and progress (12); what goes back to the budget (13)."""
        returned = 0
        for entry in [entry for entry in step.entries if entry.request is victim]:
            step.entries.remove(entry)
            returned += entry.num_tokens + self.settings.num_extra
            # Its blocks of this step will not be computed: unlike vLLM (25), nobody may hit them.
            for size, places in zip(self.pool.sizes, victim.blocks, strict=True):
                for block in places[entry.before // size :]:
                    self.pool.forget(block)
        self.running.remove(victim)
        self.pool.release(victim)
        victim.done = victim.in_flight = victim.drafts = 0
        victim.num_preemptions += 1
        self.enqueue(self.waiting, victim, 0)
        step.row["preempted"].append(victim.name)
        return returned

    def schedule(self, step: Step, request: Request, num_tokens: int) -> int:
        """Give it so many tokens; what they cost of the budget."""
        before, known, ahead = request.done, len(request.tokens), request.in_flight
        end = before + num_tokens
        self.pool.take(request, end + self.settings.num_lookahead)
        self.pool.make_known(request, end)
        emits = end >= known + ahead
        entry = Entry(
            request, num_tokens, before, before >= request.to_prefill, emits, request.num_preemptions
        )
        entry.num_drafts = max(0, end - known - ahead)
        step.entries.append(entry)
        is_last = request.generated + 1 + (ahead > 0) >= request.num_output
        step.uses_drafts |= end >= len(request.prompt) and not is_last  # S10
        request.done = end
        request.drafts = 0
        request.is_prefilling = not emits
        if emits and self.settings.async_scheduling:
            request.in_flight += 1 + entry.num_drafts  # A6, S11
            request.drafts = self.settings.num_drafts
            request.waits_for_call = self.num_calls + self.settings.pipeline_parallel_size  # Q4
        return num_tokens + self.settings.num_extra

    def admit(self, step: Step, left: int, cap: float, holds: bool) -> None:
        """From the head of the holding queue, then from that of the waiting queue (17, P4)."""
        most = self.settings.max_num_active_seqs or self.settings.max_num_seqs
        extra = self.settings.num_extra
        may_pad = not step.carries_prefill
        num_ran = len(step.entries)
        for request in [*self.holding, *self.waiting]:
            if left <= extra or len(self.running) >= most:
                break
            if request.load == "under way" or self.is_in_flight(request):
                request.was_passed_over = True
                continue
            if request.load == "ended":
                self.look_at(request)
            is_loaded = request.load == "looked at"
            hits: Places = request.blocks if is_loaded else self.pool.hits(request)
            num_hit = 0 if is_loaded else len(hits[0]) * self.pool.sizes[0]
            num_read = 0 if is_loaded else self.num_outside(request, num_hit)
            if num_read and not self.reads_within_steps:
                if not self.start_load(step, request, hits, num_hit, num_read):
                    break
                continue
            start = request.done if is_loaded else num_hit + num_read
            num_wanted = len(request.tokens) - start
            if holds and num_wanted > 1:  # X3
                break
            num_tokens = int(min(num_wanted, cap))
            is_padded = self.settings.num_drafts > 0 and num_wanted == 1 and may_pad and (num_ran or start)
            if is_padded:  # S9
                num_tokens = 1 + self.settings.num_drafts
            if num_tokens > left - extra and (is_padded or not self.settings.enable_chunked_prefill):  # 7
                break
            num_tokens = min(num_tokens, left - extra)
            if not self.is_room(request, hits, start, num_tokens):  # 18
                break
            if not is_loaded:
                self.pool.hold_hits(request, hits, start)
            (self.holding if request in self.holding else self.waiting).remove(request)
            self.running.append(request)
            request.done, request.to_prefill = start, len(request.tokens)
            request.load, request.was_passed_over = "", False
            step.row["resumed" if request.num_admissions else "new"].append(request.name)
            if start:
                step.row["cached"][request.name] = start
            request.num_admissions += 1
            step.carries_prefill |= num_wanted > 1
            left -= self.schedule(step, request, num_tokens)
            if is_padded:
                step.entries[-1].is_padded = True
                step.row["padded"].append(request.name)
            if num_read:
                self.read(step, request, num_hit, num_read)

    def is_in_flight(self, request: Request) -> bool:
        """Whether steps under way still owe a victim their results (Q5)."""
        if self.settings.drops_victims:
            return False
        return any(entry.request is request for step in self.under_way for entry in step.entries)

    def watermark(self) -> int:
        if self.running and self.settings.version == "0.33":
            return int(self.settings.watermark * self.settings.num_gpu_blocks)
        return 0

    def is_room(self, request: Request, hits: Places, start: int, num_tokens: int) -> bool:
        """The tests of 18 and S4, or of P6 if it holds blocks already."""
        ends = [(start + num_tokens + self.settings.num_lookahead, False)]
        if self.settings.reserve_full_isl and self.settings.version != "0.15":
            ends.append((len(request.tokens), True))
        for end, is_whole in ends:
            if request.load:
                needed = self.pool.missing(request, end)
            else:
                needed = self.pool.needed(hits, start, end, is_whole=is_whole)
            if needed + self.watermark() > len(self.pool.free):
                return False
        return True

    # Connectors.

    @property
    def reads_within_steps(self) -> bool:
        return self.settings.connector is not None and self.settings.connector.kind == "tier_sync"

    def num_outside(self, request: Request, num_hit: int) -> int:
        """Tokens that the connector can bring behind a local hit (P1)."""
        if self.settings.connector is None:
            return 0
        if self.settings.connector.kind == "pd":
            is_elsewhere = request.remote_prefill and not request.was_loaded
            return max(0, len(request.prompt) - num_hit) if is_elsewhere else 0
        size = self.settings.block_size
        return max(0, min(request.tier_tokens, len(request.tokens) - 1) // size * size - num_hit)

    def read(self, step: Step, request: Request, num_hit: int, num_read: int) -> None:
        """Tokens of a tier within the step (P2, P8)."""
        step.row["read_sync"][request.name] = num_read
        size = self.settings.block_size
        end = (num_hit + num_read) // size
        bad = request.bad_block(num_hit // size, end)
        if bad is not None:
            step.bad_blocks += [block for block in request.blocks[0][bad:end] if block]

    def start_load(self, step: Step, request: Request, hits: Places, num_hit: int, num_read: int) -> bool:
        """Unless one of the tests fails (P3)."""
        end = num_hit + num_read
        watermark, num_free = self.watermark(), len(self.pool.free)
        if self.settings.reserve_full_isl and self.settings.version != "0.15":
            needed = self.pool.needed(hits, end, len(request.tokens), is_whole=True)
            if needed + watermark > num_free:
                return False
        if self.pool.needed(hits, end, end) + watermark > num_free - self.reserved():
            return False
        self.pool.hold_hits(request, hits, end)
        self.pool.take(request, end)
        if request in self.waiting:
            self.waiting.remove(request)
            self.enqueue(self.holding, request, len(self.holding))
        size = self.settings.block_size
        request.first_bad = request.bad_block(num_hit // size, math.ceil(end / size))
        request.done, request.load, request.was_passed_over, request.was_loaded = end, "under way", True, True
        self.loads.append((step.scheduled_at + request.load_s, request))
        step.row["load_started"].append([request.name, num_read])
        return True

    def reserved(self) -> int:
        """`r`: what prompts under way still lack, and what the first verification needs (P3)."""
        ahead = 1 + self.settings.num_drafts + self.settings.num_lookahead if self.settings.speculative else 0
        prefills = [r for r in self.running if r.done < len(r.prompt)] + self.holding
        size = self.settings.block_size
        lacking = (math.ceil((len(r.tokens) + ahead) / size) - sum(map(len, r.blocks)) for r in prefills)
        return sum(max(0, lack) for lack in lacking) + math.ceil(ahead / size)

    def look_at(self, request: Request) -> None:
        """One whose load has ended, slot and budget being free (P6, P7)."""
        request.load = "looked at"
        if request.done == 0:
            request.load = ""
            self.pool.release(request)
            return
        self.pool.make_known(request, request.done)
        request.done = min(request.done, len(request.tokens) - 1)

    def ended(self, transfers: list[tuple[float, Request]], now: float) -> list[Request]:
        """The transfers that the worker finds ended (P5)."""
        found = [request for end, request in transfers if end <= now]
        transfers[:] = [transfer for transfer in transfers if transfer[0] > now]
        return sorted(found, key=lambda request: request.place)

    # Results.

    def take_results(self, step: Step, now: float) -> None:
        """Tokens, ends and news (20, A10, A12, S5, P5 to P10); `step` is no longer under way."""
        told: Row = {key: [] for key in ("emitted", "finished", "failed")}
        step.row |= {**told, "tokens": {}, "accepted": {}}
        for _, request in [late for late in self.delayed if late[0] is step]:
            self.pool.release(request)
        self.delayed = [late for late in self.delayed if late[0] is not step]
        failed = self.mark_bad_blocks(step)
        for entry in step.entries:
            if entry.emits and not entry.request.has_ended:
                self.take_tokens(step, entry, entry.request in failed, now)
        may_recompute = self.settings.connector and self.settings.connector.load_failure_policy == "recompute"
        for request in failed:
            if not may_recompute:
                self.end(step, request, now, "failed")
        for request in step.received:
            request.load = "ended"
            if request.first_bad is not None and may_recompute:
                request.done = request.first_bad * self.settings.block_size
            elif request.first_bad is not None:
                self.end(step, request, now, "failed")
            request.first_bad = None
        for request in step.sent:
            self.kept.remove(request)
            self.pool.release(request)
        step.row |= {"received": [r.name for r in step.received], "sent": [r.name for r in step.sent]}
        step.row["used_end"] = self.pool.num_used()
        step.row["cached_free_end"] = sum(block.content is not None for block in self.pool.free)

    def take_tokens(self, step: Step, entry: Entry, is_dropped: bool, now: float) -> None:
        """Those that a step gives one request."""
        request = entry.request
        num_accepted = 0
        if entry.num_drafts and not entry.is_padded:
            num_accepted = request.accepts(entry.num_drafts)
        if entry.is_victims and self.settings.drops_victims:  # P11
            return
        if not is_dropped:  # P8
            entry.num_accepted = num_accepted if entry.num_drafts else None
            entry.num_emitted = min(num_accepted + 1, request.num_output - request.generated)
            for _ in range(entry.num_emitted):
                request.tokens.append((f"o:{request.name}", request.generated))
            request.first_token = now if request.first_token is None else request.first_token
            self.tell_tokens(step, entry)
            if not entry.is_victims:
                self.settle(entry)
        if request.generated == request.num_output:
            self.end(step, request, now, "finished")
        elif not self.settings.async_scheduling and not entry.is_victims:
            request.drafts = request.proposes(self.settings.num_drafts)  # S1

    def settle(self, entry: Entry) -> None:
        """What has become of the drafts (S5, S11), and what is computed for certain (A12, S6)."""
        request = entry.request
        if self.settings.async_scheduling:
            request.in_flight -= 1 + entry.num_drafts
        if request.done > 0:
            request.done -= entry.num_drafts - (entry.num_accepted or 0)
        self.pool.make_known(request, request.done - self.tokens_under_way(request))

    def tell_tokens(self, step: Step, entry: Entry) -> None:
        name = entry.request.name
        step.row["emitted"].append(name)
        if entry.num_emitted > 1:
            step.row["tokens"][name] = entry.num_emitted
        if entry.num_accepted is not None:
            step.row["accepted"][name] = entry.num_accepted

    def mark_bad_blocks(self, step: Step) -> list[Request]:
        """Running requests with blocks that a read did not bring (P8)."""
        size = self.settings.block_size
        affected, claimed = [], []
        for request in self.running if step.bad_blocks else []:
            sure = request.done - sum(e.num_tokens for e in step.entries if e.request is request)
            blocks = request.blocks[0]
            bad = [n for n, block in enumerate(blocks[: math.ceil(sure / size)]) if block in step.bad_blocks]
            own = [place for place in bad if blocks[place] not in claimed]
            claimed += [blocks[place] for place in own]
            if bad:
                affected.append(request)
                request.done = own[0] * size if own else sure
            if own and self.settings.connector and self.settings.connector.load_failure_policy == "fail":
                for block in blocks[own[0] :]:
                    self.pool.forget(block)
        return affected

    def end(self, step: Step, request: Request, now: float, how: str) -> None:
        """It leaves, and releases its blocks, unless these are still needed (P9, P10)."""
        step.row[how].append(request.name)
        setattr(request, how, now)
        request.load = ""
        for queue in (self.running, self.holding, self.waiting):
            if request in queue:
                queue.remove(request)
        if how == "finished" and request.remote_decode and self.settings.connector:
            self.kept.append(request)
            self.sends.append((now + request.send_s, request))
        elif self.settings.fetches and self.entries_under_way(request):
            newest = [behind for behind in self.under_way if behind.entries][-1]
            self.delayed.append((newest, request))
        else:
            self.pool.release(request)
