"""The step loop of a replica: arrivals join the queue, steps end and take effect, the next one is decided.

At one instant they come in that order. Effects become visible at a step's end, never before. Up to
`num_in_flight` steps are under way: a step starts at the call that decided it or at the end of the one
before, whichever is later. Idle time has no steps.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import (
    AT_ONCE,
    BAD_DURATION,
    EMITTED,
    ENTRY,
    FINISHED_NOW,
    FITS,
    KV_BLOCKS,
    NO_CONNECTOR,
    NO_FAULT,
    NOBODY,
    NOBODY_WAITS,
    REJECTED,
    SLOT,
    TURN,
)
from cbsim.core.pool import num_shared_of
from cbsim.core.transfers import (
    look_for_ends,
    next_transfer_s,
    release_deferred,
    remove_failed,
    take_failed_reads,
    take_news,
)
from cbsim.core.verbs import finish, take_result
from cbsim.core.waiting_queue import push
from cbsim.cost.step_columns import window_pairs

# What a scheduler gives, by these names


def decide(self: Any, step: Any) -> None:
    """The policy: admit from the queue, schedule, preempt. Leave the step empty to wait."""


def rejects(self: Any, request: Any) -> int:
    """Why this request could never be served; `FITS` if it can."""
    return FITS


def step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Seconds of a step: stands for the cost model's own."""
    return 1.0


def wake_at_s(self: Any) -> float:
    """When an idle replica is to be asked again although nothing arrived, infinite for never."""
    return inf


def pad(self: Any, step: Any) -> None:
    """Let a step cost more than its slices: change `Replica.shape` and `Replica.chunks`, which price it."""


# From outside


def submit(self: Any, request: Any, now: float) -> bool:
    """A request comes, at its `arrival_s` or later; False if it can never be served."""
    own = self.own
    request.replica = own.replica
    request.waiting_since_s = request.arrival_s
    request.rejection = rejects(self, request)
    if request.rejection != FITS:
        request.state = REJECTED
        return False
    own.num_outstanding += 1
    if request.stage == ENTRY:
        own.num_owed_tokens += request.num_prompt_tokens
    push(self, request)
    if own.num_under_way == 0:
        ask_at(self, now)
    return True


def ask_at(self: Any, at_s: float) -> None:
    """Have the scheduler asked at the instant `at_s`, seconds, as the next thing that happens here."""
    self.own.is_asked = 1
    self.own.next_s = at_s


def ask_at_once(self: Any, now: float) -> None:
    """Have the scheduler asked again at this instant, before anything else happens anywhere."""
    ask_at(self, now)
    self.own.is_asked = AT_ONCE


def call(self: Any, cost: Any, now: float, one_by_one: bool = False) -> bool:
    """Let the scheduler decide steps until enough are under way or it has nothing to do.

    vLLM's engine loop: calls stand in a queue, those that scheduled nothing too, and the scheduler is called
    again at the same instant until the queue is full. Then the result of the oldest call is awaited. With
    `one_by_one` it decides once, and is asked again at once if another decision may follow. False if there
    was nobody to decide about.
    """
    own = self.own
    own.is_asked = 0
    own.next_s = inf
    has_decided = False
    while True:
        has_moved = False
        if has_requests(self):
            place = place_of(self, own.num_under_way)
            step = self.under_way[place]
            plan(self, step, place, now)
            has_decided = True
            if own.fault != NO_FAULT:
                return True
            own.num_under_way += 1
            if step.num_slices:
                begin(self, cost, step)
            if own.num_transfers:
                look_for_ends(self, step, now)
            has_moved = bool(step.num_slices or step.num_preempted or step.num_started or step.num_found)
            if own.num_under_way < own.num_in_flight and (step.num_slices or has_requests(self)):
                if one_by_one:
                    ask_at_once(self, now)
                    return True
                continue
        if own.num_under_way == 0:
            break
        oldest = self.under_way[own.first_under_way]
        if oldest.num_slices or not (own.num_begun or own.num_news or has_moved):
            break
        if own.num_news:
            release_deferred(self, oldest.call)
            take_news(self, oldest, now)
        next_under_way(self)
        if one_by_one:
            ask_at_once(self, now)
            return has_decided
    if own.num_begun:
        own.next_s = self.under_way[own.first_under_way].end_s
        return has_decided
    own.num_under_way = 0
    at_s = min(wake_at_s(self), next_transfer_s(self))
    if now < at_s < inf:
        ask_at(self, at_s)
    return has_decided


def has_requests(self: Any) -> bool:
    """Whether the scheduler has anybody to decide about."""
    own = self.own
    return own.num_running > 0 or own.num_waiting > 0 or own.num_holding > 0 or own.num_sending > 0


def next_under_way(self: Any) -> None:
    """The result of the oldest call has been taken."""
    self.own.num_under_way -= 1
    self.own.first_under_way = place_of(self, 1)


def place_of(self: Any, number: int) -> int:
    """Place in the ring `Replica.under_way` of the step that is `number` steps after the first under way."""
    place, size = self.own.first_under_way + number, len(self.under_way)
    return place - size if place >= size else place


def plan(self: Any, step: Any, place: int, now: float) -> None:
    """Decide the next step at the instant `now`."""
    own, config = self.own, self.config
    own.num_calls += 1
    step.place = place
    step.now = now
    step.budget = config.max_tokens_per_step
    step.call = own.num_calls
    step.first_decision = self.log.lengths.events
    step.num_slices = step.num_decisions = step.num_preempted = step.num_padding_tokens = 0
    step.num_found = step.num_started = step.num_served = step.visits_prefill = 0
    step.skips_drafts = 1 if config.num_lookahead_tokens else 0
    step.waiting_for = NOBODY_WAITS
    step.transfer_s = 0.0
    decide(self, step)
    step.num_running = own.num_running
    step.num_waiting = own.num_waiting + own.num_holding
    if step.num_waiting:
        if own.num_running >= config.max_num_seqs:
            step.waiting_for = SLOT
        elif step.waiting_for != KV_BLOCKS:
            step.waiting_for = TURN
    step.kv_blocks_used = own.num_blocks - own.num_free


def begin(self: Any, cost: Any, step: Any) -> None:
    """Price a step and put it under way."""
    own, lengths = self.own, self.log.lengths
    count_slices(self, step)
    step.number = own.num_steps
    own.num_steps += 1
    if step.num_decisions:
        for place in range(lengths.events - step.num_decisions, lengths.events):
            self.log.events[place].step = step.number
    step.transfer_s = own.unspent_transfer_s
    own.unspent_transfer_s = 0.0
    pad(self, step)
    own.num_padding_tokens += step.num_padding_tokens
    own.num_begun += 1
    own.newest_step_call = step.call
    if self.config.num_ranks > 1:
        step.start_s = step.end_s = inf
    else:
        price(self, cost, step)
        put_in_line(self, step)


def price(self: Any, cost: Any, step: Any) -> None:
    """Find out how long a step takes of which `Replica.shape` tells what it computes."""
    duration_s = step_s(cost, self.shape, self.chunks) + step.transfer_s + drafting_s(self, step)
    step.duration_s = duration_s = duration_s * self.own.slowdown
    if not 0.0 < duration_s < inf:
        self.own.fault, self.own.fault_request = BAD_DURATION, NOBODY


def launch(replicas: Any, first: int, num_ranks: int, cost: Any, now: float) -> None:
    """Ranks that work in step begin what they have decided.

    Their experts see the tokens of all of them, and every rank's step lasts as long as the longest. A rank
    without requests takes part without a step of its own.
    """
    num_tokens, last, longest_s = 0, first + num_ranks, 0.0
    for number in range(first, last):
        if is_held(replicas[number]):
            num_tokens += num_tokens_of(replicas[number].shape)
    for number in range(first, last):
        self = replicas[number]
        if is_held(self):
            step = self.under_way[self.own.first_under_way]
            self.shape.num_other_tokens = num_tokens - num_tokens_of(self.shape)
            price(self, cost, step)
            longest_s = max(longest_s, step.duration_s)
    for number in range(first, last):
        self = replicas[number]
        if is_held(self):
            step = self.under_way[self.own.first_under_way]
            step.start_s = now
            step.duration_s = longest_s
            step.end_s = self.own.next_s = now + longest_s


def is_held(self: Any) -> bool:
    """Whether a rank has decided a step that waits for other ranks."""
    return bool(self.own.num_begun and self.under_way[self.own.first_under_way].end_s == inf)


def num_tokens_of(shape: Any) -> int:
    """Tokens that a step sends through the layers."""
    return int(shape.num_prefill_tokens + shape.num_decodes)


def wait_for_ranks(replicas: Any, first: int, num_ranks: int, number: int) -> None:
    """A rank that would be asked while others have a step under way is asked when that ends."""
    own = replicas[number].own
    if own.num_under_way:
        return
    for other in range(first, first + num_ranks):
        rank = replicas[other]
        if rank.own.num_begun and not is_held(rank):
            own.next_s = max(own.next_s, rank.under_way[rank.own.first_under_way].end_s)


def put_in_line(self: Any, step: Any) -> None:
    """Set when a step starts and ends: behind the step before it, if that is under way.

    A pipeline takes a step when its first stage is free, and at each stage it comes after the one before.
    """
    own, start_s = self.own, step.now
    stage_s = step.duration_s / self.config.num_stages
    if start_s < own.first_stage_until_s:
        start_s = own.first_stage_until_s
    end_s = start_s + step.duration_s
    if end_s < own.busy_until_s + stage_s:
        end_s = own.busy_until_s + stage_s
        step.duration_s = end_s - start_s
    step.start_s, step.end_s = start_s, end_s
    own.first_stage_until_s, own.busy_until_s = start_s + stage_s, end_s


def drafting_s(self: Any, step: Any) -> float:
    """Seconds that the drafter takes after a step: `draft_s` for each draft, all requests together."""
    config = self.config
    if config.num_speculative_tokens == 0 or step.skips_drafts or step.num_logits == 0:
        return 0.0
    return float(config.num_speculative_tokens * config.draft_s)


def count_slices(self: Any, step: Any) -> None:
    """Sum up a step's slices: into its record, and into `Replica.shape`, by which it is priced."""
    shape, slices = self.shape, self.slices[step.place]
    num_chunk_tokens = num_chunks = num_finishing = decode_context = longest = 0
    pairs = chunk_context = num_prefills = num_prefill_tokens = num_drafts = 0
    for part in slices[: step.num_slices]:
        tokens, before = part.num_tokens, part.num_computed_tokens
        if part.is_prefill or tokens > 1:
            # Drafts attend to one context together, as the tokens of a chunk do; each gives its own logits.
            chunk = self.chunks[num_chunks]
            chunk.num_tokens = tokens
            chunk.num_computed_tokens = before
            num_chunks += 1
            num_chunk_tokens += tokens
            num_finishing += part.emits + part.num_drafts
            num_drafts += part.num_drafts
            chunk_context += before + tokens
            pairs += tokens * before + tokens * (tokens + 1) // 2
            if part.is_prefill:
                num_prefills += 1
                num_prefill_tokens += tokens
        else:
            decode_context += before
            if before > longest:
                longest = before
    num_decodes = step.num_slices - num_chunks
    if num_decodes:
        # Each attends to itself, too.
        decode_context += num_decodes
        longest += 1
    shape.num_chunks = num_chunks
    shape.num_prefill_tokens = num_chunk_tokens
    shape.num_finishing_chunks = num_finishing
    shape.num_decodes = num_decodes
    shape.decode_context = decode_context
    shape.max_decode_context = longest
    shape.num_shared_tokens = num_shared_of(self, decode_context)
    step.num_prefill_seqs, step.num_prefill_tokens = num_prefills, num_prefill_tokens
    step.num_decode_seqs = step.num_slices - num_prefills
    step.num_drafts = num_drafts
    step.num_attention_pairs = pairs + decode_context
    step.num_context_tokens = chunk_context + decode_context
    if self.config.window:
        count_windows(self, step)
    step.num_logits = num_finishing + num_decodes
    step.max_decode_context = longest if num_chunks else 0
    step.num_shared_tokens = shape.num_shared_tokens
    self.own.num_kv_tokens += num_chunk_tokens + num_decodes
    step.num_kv_tokens = self.own.num_kv_tokens


@apart
def count_windows(self: Any, step: Any) -> None:
    """What `count_slices` sums up, of layers that attend to a window."""
    window = self.config.window
    step.num_window_pairs = step.num_window_keys = self.shape.windowed_context = 0
    for part in self.slices[step.place][: step.num_slices]:
        tokens, before = part.num_tokens, part.num_computed_tokens
        step.num_window_pairs += window_pairs(1, tokens, before, window)
        step.num_window_keys += min(before, window - 1) + tokens
        if not part.is_prefill and tokens == 1:
            self.shape.windowed_context += min(before + 1, window)


def end_step(self: Any) -> int:
    """The running step ends: its tokens come out. Returns how many requests got their last one.

    Those stand in `Replica.candidates`, in the order of their slices.
    """
    own, config, requests = self.own, self.config, self.requests
    step = self.under_way[own.first_under_way]
    slices, now, last_end_s = self.slices[step.place], step.end_s, own.last_end_s
    num_finished = num_usual_gaps = num_joint_tokens = num_accepted = 0
    last_number = step.number - 1 if step.number else NOBODY - 1
    if own.num_news:
        release_deferred(self, step.call)
    if config.reads_in_step:
        take_failed_reads(self, step)
    for part in slices[: step.num_slices]:
        request = requests[part.request]
        part.num_emitted = num_emitted = take_result(self, step, request, part)
        if num_emitted:
            if request.last_token_at_s == last_end_s:
                num_usual_gaps += 1
                gap_s = now - last_end_s
            else:
                gap_s = odd_gap_s(self, request, now)
            if not request.max_itl_s >= gap_s:
                request.max_itl_s = gap_s
            if num_emitted > 1:
                num_joint_tokens += num_emitted - 1
                if not request.max_itl_s >= 0.0:
                    request.max_itl_s = 0.0
            request.last_token_at_s = now
            if request.num_generated_tokens >= request.num_output_tokens:
                self.candidates[num_finished] = part.request
                num_finished += 1
        if part.is_prefill or part.num_tokens > 1:
            record_prefill(self, step, part)
            num_accepted += part.num_accepted
        else:
            if request.last_decode != last_number:
                close_decodes(self, request)
                request.first_decode = step.number
            request.last_decode = step.number
    if config.with_batches:
        for place in range(step.num_slices):
            record_slice(self, step, place, slices[place])
    for place in range(num_finished):
        request = requests[self.candidates[place]]
        finish(self, step, request)
        record_event(self, step, FINISHED_NOW, request.index, 0)
        close_decodes(self, request)
    record_step(self, step, num_finished, num_usual_gaps, num_joint_tokens, num_accepted)
    own.last_end_s = now
    own.num_outstanding -= num_finished
    own.num_begun -= 1
    own.last_call = step.call
    if config.connector != NO_CONNECTOR:
        remove_failed(self, step, now)
        take_news(self, step, now)
    next_under_way(self)
    return num_finished


# The record


def odd_gap_s(self: Any, request: Any, now: float) -> float:
    """Take down a token whose request got none at the end of the step before; the gap between, seconds.

    There is none before its first token: then what was its longest so far.
    """
    last_s = request.last_token_at_s
    if last_s != last_s:
        request.first_token_at_s = now
        return float(request.max_itl_s)
    self.log.gaps[self.log.lengths.gaps] = now - last_s
    self.log.lengths.gaps += 1
    return float(now - last_s)


def record_step(
    self: Any, step: Any, num_finished: int, num_usual_gaps: int, num_joint_tokens: int, num_accepted: int
) -> None:
    """A row for a step that has ended."""
    row = self.log.steps[self.log.lengths.steps]
    row.scheduled_at_s = step.now
    row.start_s = step.start_s
    row.duration_s = step.duration_s
    row.transfer_s = step.transfer_s
    row.gap_s = step.end_s - self.own.last_end_s
    row.num_attention_pairs = step.num_attention_pairs
    row.num_context_tokens = step.num_context_tokens
    row.num_kv_tokens = step.num_kv_tokens
    row.num_window_pairs = step.num_window_pairs
    row.num_window_keys = step.num_window_keys
    row.replica = self.own.replica
    row.step = step.number
    row.num_prefill_tokens = step.num_prefill_tokens
    row.num_decode_tokens = step.num_decode_seqs + step.num_drafts
    row.num_prefill_seqs = step.num_prefill_seqs
    row.num_decode_seqs = step.num_decode_seqs
    row.num_running = step.num_running
    row.num_waiting = step.num_waiting
    row.num_preempted = step.num_preempted
    row.num_finished = num_finished
    row.kv_blocks_used = step.kv_blocks_used
    row.num_logits = step.num_logits
    row.waiting_for = step.waiting_for
    row.max_decode_context = step.max_decode_context
    row.num_shared_tokens = step.num_shared_tokens
    row.num_usual_gaps = num_usual_gaps
    row.num_joint_tokens = num_joint_tokens
    row.num_drafts = step.num_drafts
    row.num_accepted = num_accepted
    row.skips_drafts = step.skips_drafts
    self.log.lengths.steps += 1


def record_event(self: Any, step: Any, event: int, request: int, num_tokens: int) -> None:
    """Add a row to the events: what a step brought at its end."""
    row = self.log.events[self.log.lengths.events]
    row.time_s = step.end_s
    row.replica = self.own.replica
    row.step = step.number
    row.request = request
    row.event = event
    row.num_tokens = num_tokens
    self.log.lengths.events += 1


def record_prefill(self: Any, step: Any, part: Any) -> None:
    """A request computed prompt tokens, or one known token and drafts, in a step."""
    row = self.log.prefills[self.log.lengths.prefills]
    row.replica = self.own.replica
    row.step = step.number
    row.request = part.request
    row.num_tokens = part.num_tokens
    row.num_computed_tokens = part.num_computed_tokens
    row.emits = part.emits
    row.is_prefill = part.is_prefill
    self.log.lengths.prefills += 1


def close_decodes(self: Any, request: Any) -> None:
    """Write down a request's latest unbroken run of decodes, if it has one, as a row of `Log.decodes`."""
    if request.last_decode == NOBODY:
        return
    row = self.log.decodes[self.log.lengths.decodes]
    row.replica = self.own.replica
    row.request = request.index
    row.first_step = request.first_decode
    row.last_step = request.last_decode
    self.log.lengths.decodes += 1
    request.last_decode = NOBODY


def record_slice(self: Any, step: Any, position: int, part: Any) -> None:
    """A request's share of a step, and what came of it, where `output.batches` asks for them."""
    if part.num_emitted:
        record_event(self, step, EMITTED, part.request, part.num_emitted)
    row = self.log.batches[self.log.lengths.batches]
    row.start_s = step.start_s
    row.replica = self.own.replica
    row.step = step.number
    row.position = position
    row.request = part.request
    row.num_tokens = part.num_tokens
    row.num_computed_tokens = part.num_computed_tokens
    row.kind = 0 if part.is_prefill else 1
    row.num_drafts = part.num_drafts
    row.num_accepted = part.num_accepted
    row.is_padded = part.is_padded
    self.log.lengths.batches += 1
