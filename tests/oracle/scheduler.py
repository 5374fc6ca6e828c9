"""vLLM's V1 scheduler, written from the rules in words alone: naive, slow, and nothing of cbsim.

The rules are those of `cbsim/schedulers/rules.md`; numbers in brackets are theirs.
"""

from __future__ import annotations

import math

from tests.oracle import loads
from tests.oracle.blocks import Places, Pool
from tests.oracle.request import Request
from tests.oracle.settings import Settings
from tests.oracle.step import Entry, Row, Step


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
        is_decode = before >= request.to_prefill
        entry = Entry(request, num_tokens, before, is_decode, emits, request.num_preemptions)
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
                loads.look_at(self, request)
            is_loaded = request.load == "looked at"
            hits: Places = request.blocks if is_loaded else self.pool.hits(request)
            num_hit = 0 if is_loaded else len(hits[0]) * self.pool.sizes[0]
            num_read = 0 if is_loaded else loads.num_outside(self.settings, request, num_hit)
            if num_read and self.settings.connector.kind != "tier_sync":
                if not loads.start_load(self, step, request, hits, num_read):
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
            self.let_in(step, request, start)
            step.carries_prefill |= num_wanted > 1
            left -= self.schedule(step, request, num_tokens)
            if is_padded:
                step.entries[-1].is_padded = True
                step.row["padded"].append(request.name)
            if num_read:
                loads.read(step, request, self.settings.block_size, num_hit, num_read)

    def let_in(self, step: Step, request: Request, start: int) -> None:
        """From its queue to the end of the running list (19)."""
        (self.holding if request in self.holding else self.waiting).remove(request)
        self.running.append(request)
        request.done, request.to_prefill = start, len(request.tokens)
        request.load, request.was_passed_over = "", False
        step.row["resumed" if request.num_admissions else "new"].append(request.name)
        if start:
            step.row["cached"][request.name] = start
        request.num_admissions += 1

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
        if self.settings.reserves_prompts:
            ends.append((len(request.tokens), True))
        for end, is_whole in ends:
            if request.load:
                needed = self.pool.missing(request, end)
            else:
                needed = self.pool.needed(hits, start, end, is_whole=is_whole)
            if needed + self.watermark() > len(self.pool.free):
                return False
        return True

    def ended(self, transfers: list[tuple[float, Request]], now: float) -> list[Request]:
        """The transfers that the worker finds ended (P5)."""
        found = [request for end, request in transfers if end <= now]
        transfers[:] = [transfer for transfer in transfers if transfer[0] > now]
        return sorted(found, key=lambda request: request.place)
