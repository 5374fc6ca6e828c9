"""vLLM's V1 scheduler and a clock, written from the rules in words alone: naive, slow, and nothing of cbsim.

The rules are those of `cbsim/schedulers/rules.md`; numbers in brackets are theirs. What the requests tell, as
which blocks are held and by how many, is worked out anew each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Token = tuple[str, int]
"""A segment's name and a place in it: equal tokens have both equal."""


class NeverEndsError(Exception):
    """Requests wait, nothing runs, and no step can be made."""


@dataclass(frozen=True)
class Settings:
    """The keys of a recorded case's `config`, and the release."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_gpu_blocks: int
    """One of them, the null block, is never used."""
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    enable_prefix_caching: bool = False
    reserve_full_isl: bool = True
    watermark: float = 0.0
    async_scheduling: bool = False
    version: str = "0.33"
    steps_under_way: int = 0
    """Most steps running or launched; 0 for two if asynchronous, else one (A1)."""


@dataclass(eq=False)
class Block:
    """`block_size` slots, and the token sequence that ends in it, once that is known (21)."""

    content: tuple[Token, ...] | None = None


@dataclass(eq=False)
class Request:
    name: str
    arrival: float
    place: int  # in the order of arrival
    prompt: list[Token]
    num_output: int
    priority: int
    tokens: list[Token] = field(default_factory=list)
    """Prompt and generated tokens whose result has been taken; there are `L`."""
    done: int = 0
    """Tokens scheduled so far, those in flight too."""
    to_prefill: int = 0
    """`L` when it was last admitted; a token behind these is computed by a decode."""
    in_flight: int = 0
    """`f`: output tokens sampled by steps whose result has not been taken."""
    blocks: list[Block] = field(default_factory=list)
    num_admissions: int = 0
    num_preemptions: int = 0
    first_token: float | None = None
    finished: float | None = None

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def wanted(self) -> int:
        """Tokens it could compute (3, A6); none while its last one is in flight (A7)."""
        is_last_under_way = self.in_flight > 0 and self.generated + self.in_flight == self.num_output
        return 0 if is_last_under_way else len(self.tokens) + self.in_flight - self.done


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


@dataclass(eq=False)
class Step:
    scheduled_at: float
    row: Row
    entries: list[Entry] = field(default_factory=list)
    start: float | None = None
    """`None` for a call that preempted and scheduled nothing (A9)."""
    duration: float | None = None
    end: float | None = None


class Scheduler:
    """Two queues and a pool of blocks."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.blocks = [Block() for _ in range(settings.num_gpu_blocks - 1)]
        self.free = list(self.blocks)
        """Front first: the order in which they will be taken."""
        self.copies: dict[tuple[Token, ...], list[Block]] = {}
        """Blocks of equal content, in the order in which they became known."""
        self.under_way: list[Step] = []

    def holders(self, block: Block) -> int:
        return sum(block in request.blocks for request in self.running)

    def num_used(self) -> int:
        held = {id(block) for request in self.running for block in request.blocks}
        assert len(self.free) == len({id(b) for b in self.free}) == len(self.blocks) - len(held)
        assert not held & {id(block) for block in self.free}
        return len(held)

    def blocks_for(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.settings.block_size)

    def take_blocks(self, request: Request, num_tokens: int) -> None:
        """New blocks from the front of the free queue, which forget what they held (8, 24)."""
        while len(request.blocks) < self.blocks_for(num_tokens):
            block = self.free.pop(0)
            self.forget(block)
            request.blocks.append(block)

    def forget(self, block: Block) -> None:
        if block.content is not None:
            self.copies[block.content].remove(block)
            block.content = None

    def release_blocks(self, request: Request) -> None:
        """Of one that has just left the running list (24)."""
        for block in reversed(request.blocks):
            if self.holders(block) == 0:
                if block.content is None and self.settings.version == "0.33":
                    self.free.insert(0, block)
                else:
                    self.free.append(block)
        request.blocks = []

    def make_known(self, request: Request, num_tokens: int) -> None:
        """The full blocks of the first so many tokens can be hit from now on (22)."""
        if self.settings.enable_prefix_caching:
            size = self.settings.block_size
            for block, end in zip(request.blocks, range(size, num_tokens + 1, size), strict=False):
                if block.content is None:
                    block.content = tuple(request.tokens[:end])
                    self.copies.setdefault(block.content, []).append(block)

    def hits(self, request: Request) -> list[Block]:
        """The longest run of known blocks from the first, one token at least left to compute (21)."""
        found: list[Block] = []
        size = self.settings.block_size
        for end in range(size, len(request.tokens), size):
            copies = self.copies.get(tuple(request.tokens[:end]))
            if not copies:
                break
            found.append(copies[0])
        return found

    def rank(self, request: Request) -> tuple[int, int]:
        return (request.priority, request.place)

    def enqueue(self, request: Request, at: int) -> None:
        """Into the waiting queue (1, 12)."""
        self.waiting.insert(at, request)
        if self.settings.policy == "priority":
            self.waiting.sort(key=self.rank)

    def preempt(self, victim: Request, step: Step) -> int:
        """Take all its blocks and progress (12); the tokens that go back to the budget (13)."""
        returned = 0
        for entry in [entry for entry in step.entries if entry.request is victim]:
            step.entries.remove(entry)
            returned += entry.num_tokens
            # Its blocks of this step will not be computed: unlike vLLM (25), nobody may hit them.
            for block in victim.blocks[entry.before // self.settings.block_size :]:
                self.forget(block)
        self.running.remove(victim)
        self.release_blocks(victim)
        victim.done = victim.in_flight = 0
        victim.num_preemptions += 1
        self.enqueue(victim, 0)
        step.row["preempted"].append(victim.name)
        return returned

    def cap(self) -> float:
        """Most tokens of one request (6)."""
        cap = self.settings.long_prefill_token_threshold
        is_exempt = len(self.running) + len(self.waiting) <= 1 and self.settings.version == "0.33"
        return math.inf if cap == 0 or is_exempt else cap

    def schedule(self, step: Step, request: Request, num_tokens: int) -> None:
        before = request.done
        self.take_blocks(request, before + num_tokens)
        self.make_known(request, min(before + num_tokens, len(request.tokens)))
        emits = before + num_tokens == len(request.tokens) + request.in_flight
        request.done += num_tokens
        request.in_flight += emits
        is_decode = before >= request.to_prefill
        step.entries.append(Entry(request, num_tokens, before, is_decode, emits, request.num_preemptions))

    def call(self, now: float) -> Step:
        """One pass over the running list, and one over the waiting queue (4, 5)."""
        step = Step(now, {"new": [], "resumed": [], "preempted": [], "cached": {}})
        cap = self.cap()
        budget = self.serve_running(step, self.settings.max_num_batched_tokens, cap)
        if not step.row["preempted"]:
            self.admit(step, budget, cap)
        step.row |= {
            "sched": [[e.request.name, e.num_tokens, e.before] for e in step.entries],
            "running": len(self.running),
            "waiting": len(self.waiting),
            "used": self.num_used(),
            "running_q": [request.name for request in self.running],
            "waiting_q": [request.name for request in self.waiting],
            "blocks": {request.name: len(request.blocks) for request in self.running},
        }
        return step

    def serve_running(self, step: Step, budget: int, cap: float) -> int:
        """Whoever runs, in order of admission; the budget that is left."""
        goes_on = self.settings.policy == "priority" and self.settings.version == "0.33"
        for request in list(self.running):
            if budget == 0:
                break
            if request not in self.running or request.wanted == 0:
                continue
            num_tokens = int(min(request.wanted, cap, budget))
            while self.blocks_for(request.done + num_tokens) - len(request.blocks) > len(self.free):
                by_priority = self.settings.policy == "priority"
                victim = max(self.running, key=self.rank) if by_priority else self.running[-1]  # 11
                budget += self.preempt(victim, step)
                if victim is request:
                    break
            if request in self.running:
                self.schedule(step, request, num_tokens)
                budget -= num_tokens
            elif not goes_on:  # 14
                break
        return budget

    def admit(self, step: Step, budget: int, cap: float) -> None:
        """From the head of the waiting queue (17)."""
        has_watermark = self.settings.version == "0.33"
        reserves = self.settings.reserve_full_isl and self.settings.version != "0.15"
        for request in list(self.waiting):
            if budget == 0 or len(self.running) >= self.settings.max_num_seqs:
                break
            if any(e.request is request and e.emits for past in self.under_way for e in past.entries):
                continue  # A8: only with more than two steps under way
            found = self.hits(request)
            num_cached = len(found) * self.settings.block_size
            num_tokens = int(min(len(request.tokens) - num_cached, cap))
            if num_tokens > budget and not self.settings.enable_chunked_prefill:  # 7
                break
            num_tokens = min(num_tokens, budget)
            needed = self.blocks_for(len(request.tokens) if reserves else num_cached + num_tokens)
            needed += sum(self.holders(block) == 0 for block in found) - len(found)
            if self.running and has_watermark:
                needed += int(self.settings.watermark * self.settings.num_gpu_blocks)
            if needed > len(self.free):  # 18
                break
            self.free = [block for block in self.free if block not in found]
            self.waiting.remove(request)
            self.running.append(request)
            request.blocks, request.done, request.to_prefill = found, num_cached, len(request.tokens)
            step.row["resumed" if request.num_admissions else "new"].append(request.name)
            if num_cached:
                step.row["cached"][request.name] = num_cached
            request.num_admissions += 1
            self.schedule(step, request, num_tokens)
            budget -= num_tokens

    def take_results(self, step: Step) -> None:
        """Emission, finish and release (20, A10, A12); `step` is no longer under way."""
        emitted, finished = [], []
        for entry in (entry for entry in step.entries if entry.emits):
            request = entry.request
            is_victim = request.num_preemptions > entry.num_preemptions
            request.tokens.append((f"o:{request.name}", request.generated))
            request.first_token = step.end if request.first_token is None else request.first_token
            emitted.append(request.name)
            if not is_victim:
                request.in_flight -= 1
                behind = [e.num_tokens for s in self.under_way for e in s.entries if e.request is request]
                self.make_known(request, request.done - sum(behind))
            if request.generated == request.num_output:
                request.finished = step.end
                finished.append(request.name)
                (self.waiting if request in self.waiting else self.running).remove(request)
                self.release_blocks(request)
        step.row |= {"emitted": emitted, "finished": finished, "used_end": self.num_used()}
        step.row["cached_free_end"] = sum(block.content is not None for block in self.free)


def replay(
    settings: Settings, rows: Sequence[Mapping[str, Any]], duration: Callable[[Step], float]
) -> tuple[list[Step], list[Request]]:
    """Every call that scheduled or preempted, in order, and the requests as they ended up.

    `duration` says how many seconds a step takes.
    """
    scheduler = Scheduler(settings)
    under_way = scheduler.under_way
    depth = settings.steps_under_way or (2 if settings.async_scheduling else 1)
    requests = make_requests(rows)
    most = max(len(request.prompt) + request.num_output - 1 for request in requests)
    if scheduler.blocks_for(most) > len(scheduler.blocks):
        raise NeverEndsError("a request outgrows all blocks")
    arrivals, steps, now = list(requests), [], 0.0
    while arrivals or scheduler.waiting or scheduler.running:
        if under_way:  # A2 (a): nothing but the end of a step wakes the engine
            ended = under_way.pop(0)
            assert ended.end is not None
            now = ended.end
            scheduler.take_results(ended)
        elif not scheduler.waiting and not scheduler.running:  # A2 (b)
            now = max(now, arrivals[0].arrival)
        else:
            raise NeverEndsError(f"nothing can be scheduled at {now}")
        while arrivals and arrivals[0].arrival <= now:
            scheduler.enqueue(arrivals.pop(0), len(scheduler.waiting))
        while (scheduler.waiting or scheduler.running) and len(under_way) < depth:
            step = scheduler.call(now)
            if step.entries or step.row["preempted"]:
                steps.append(step)
            if not step.entries:
                if under_way or not step.row["preempted"]:
                    break
                continue  # nothing runs, so it is called again; only before 0.33 (14)
            step.start = max([now, *(before.end for before in under_way if before.end is not None)])
            step.duration = duration(step)
            step.end = step.start + step.duration
            under_way.append(step)
    return steps, requests


def make_requests(rows: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Requests of a case in the order in which they reach the scheduler."""
    made = []
    for row in rows:
        segments = row.get("prompt") or [[f"p:{row['id']}", row["prompt_tokens"]]]
        prompt = [(name, place) for name, length in segments for place in range(length)]
        arrival = float(row["arrival_s"] if "arrival_s" in row else row["arrival_step"])
        made.append(Request(row["id"], arrival, 0, prompt, row["output_tokens"], row.get("priority", 0)))
    made.sort(key=lambda request: request.arrival)
    for place, request in enumerate(made):
        request.place, request.tokens = place, list(request.prompt)
    return made


def replay_case(case: Mapping[str, Any]) -> list[Row]:
    """The rows of a recorded case, with the recording's keys and in its words."""
    settings = Settings(**case["config"])
    steps, _ = replay(settings, case["requests"], lambda _: 1.0)
    if settings.async_scheduling:
        rows = [{"scheduled_at": s.scheduled_at, "start": s.start, "end": s.end} | s.row for s in steps]
    else:
        rows = with_idle_seconds(steps)
    return [recorded({"step": n} | row, settings, case["detail"]) for n, row in enumerate(rows)]


def with_idle_seconds(steps: list[Step]) -> list[Row]:
    """The rows of steps of a second each, and between them a row for each second without one."""
    rows: list[Row] = []
    idle: Row = {"sched": [], "running": 0, "waiting": 0, "used": 0, "used_end": 0, "cached_free_end": 0}
    for step in steps:
        while len(rows) != step.start:
            rows.append(idle | {"running_q": [], "waiting_q": [], "blocks": {}})
        rows.append(step.row)
        idle["cached_free_end"] = step.row["cached_free_end"]
    return rows


def recorded(row: Row, settings: Settings, has_detail: bool) -> Row:
    """A row without the keys that a recording leaves out."""
    kept = {"step", "scheduled_at", "start", "end", "sched", "running", "waiting", "used", "used_end"}
    kept |= {key for key in ("new", "resumed", "preempted", "cached", "emitted", "finished") if row.get(key)}
    if has_detail:
        kept |= {"running_q", "waiting_q", "blocks"}
    if has_detail and settings.enable_prefix_caching:
        kept.add("cached_free_end")
    return {key: value for key, value in row.items() if key in kept}
