"""The laws: what holds for every scheduler, in every case, whatever its policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np

from cbsim.results.run_log import EMITTED
from cbsim.testing.case import NUM_RIVALS, STARVED
from cbsim.testing.observation import Call, Commit, History, Observation, Part
from cbsim.workload.request import RequestState


class Violation(NamedTuple):
    """How a law was broken, and in which step; -1 where it can't be told by a step."""

    step: int
    detail: str


@dataclass(slots=True)
class Ledger:
    """An account of every request's tokens, kept from what the scheduler said it did."""

    num_computed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Tokens computed, steps in flight included."""
    num_generated: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_in_flight: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_lost: dict[str, int] = field(default_factory=dict)
    """Tokens that were computed when the request was preempted last."""

    def num_sampled(self, name: str) -> int:
        """Output tokens known or in flight."""
        return self.num_generated[name] + self.num_in_flight[name]

    def calls(self, history: list[Call | Commit]) -> Iterator[Call]:
        """A replica's calls, each when all before it is booked; the caller books what is in it."""
        for entry in history:
            if isinstance(entry, Call):
                yield entry
                continue
            for name in entry.emitted:
                self.num_generated[name] += 1
                # The token of a request preempted meanwhile is no longer in flight.
                self.num_in_flight[name] = max(0, self.num_in_flight[name] - 1)

    def decide(self, call: Call) -> Iterator[tuple[str, int, int]]:
        """Book a call's decisions; yields `(request, tokens cached, tokens it starts with)` of newcomers."""
        for decision, name, num_cached in call.decisions:
            if decision == "preempted":
                self.num_lost[name] = self.num_computed[name]
                self.num_computed[name] = self.num_in_flight[name] = 0
            else:
                now_computed = sum(part.num_tokens for part in call.parts if part.request_id == name)
                self.num_computed[name] = call.after[name].num_computed_tokens - now_computed
                yield name, num_cached, self.num_computed[name]

    def schedule(self, part: Part) -> None:
        """Book a share of a step."""
        self.num_computed[part.request_id] += part.num_tokens
        self.num_in_flight[part.request_id] += part.emits


def nobody_lost(seen: Observation) -> Iterator[Violation]:
    """Every request is finished with all its tokens, or rejected with a reason."""
    table = seen.log.requests
    for row in range(len(seen.case.requests)):
        if row >= len(table["state"]):
            yield Violation(-1, f"request number {row} never arrived: a client still waits for an answer")
            return
        name, state = table["request_id"][row], table["state"][row]
        num_emitted, num_due = table["num_generated_tokens"][row], table["num_output_tokens"][row]
        if state == RequestState.REJECTED:
            if not seen.log.rejections.get(row):
                yield Violation(-1, f"{name} was rejected without a reason")
        elif state != RequestState.FINISHED:
            yield Violation(-1, f"{name} never finished")
        elif num_emitted != num_due:
            yield Violation(-1, f"{name} emitted {num_emitted}/{num_due}")


def never_idle(seen: History) -> Iterator[Violation]:
    """A replica that has requests and no step under way schedules one, or says when it wants to be asked."""
    for replica in seen.replicas:
        num_under_way = 0
        for entry, following in zip_longest(replica.history, replica.history[1:]):
            num_under_way += (entry.step >= 0) if isinstance(entry, Call) else -1
            if not isinstance(entry, Call) or num_under_way or not _unfinished(entry):
                continue
            is_asked_again = isinstance(following, Call) and following.now == entry.now
            if not is_asked_again and (entry.wake_at_s is None or entry.wake_at_s <= entry.now):
                yield Violation(-1, f"at {entry.now} s nothing runs while {_unfinished(entry)} are there")


def budget_kept(seen: History) -> Iterator[Violation]:
    """No step has more tokens than `max_tokens_per_step`."""
    for replica, call in seen.calls:
        limit = replica.records.config.max_tokens_per_step
        num_tokens = sum(part.num_tokens for part in call.parts)
        if num_tokens > limit:
            yield Violation(call.step, f"{num_tokens} tokens, the budget is {limit}")


def slots_kept(seen: History) -> Iterator[Violation]:
    """No more than `max_num_seqs` requests run at once, and only running ones are scheduled."""
    for replica, call in seen.calls:
        limit = replica.records.config.max_num_seqs
        if len(call.running) > limit:
            yield Violation(call.step, f"{len(call.running)} requests run, max_num_seqs is {limit}")
        strangers = [part.request_id for part in call.parts if part.request_id not in call.running]
        if strangers:
            yield Violation(call.step, f"{strangers} are scheduled and not running")


def each_in_one_place(seen: History) -> Iterator[Violation]:
    """Every request that is there stands in exactly one of the queue and the running list."""
    for _, call in seen.calls:
        here, places = _unfinished(call), sorted([*call.running, *call.waiting])
        if places != sorted(here):
            yield Violation(call.step, f"{here} are there, queue and running list hold {places}")


def tokens_in_order(seen: History) -> Iterator[Violation]:
    """Each step goes on where a request's KV ends, computes no token that isn't known or in flight, and
    emits exactly when it computes the last of them.
    """
    for replica in seen.replicas:
        ledger = Ledger()
        for call in ledger.calls(replica.history):
            for detail in _misplaced_tokens(seen, ledger, call):
                yield Violation(call.step, detail)


def _misplaced_tokens(seen: History, ledger: Ledger, call: Call) -> Iterator[str]:
    for name, cached, restored in ledger.decide(call):
        if restored != cached and not (call.transfer_s and restored <= ledger.num_lost[name]):
            yield f"{name} returns with {restored} tokens, {cached} were cached"
    named = [part.request_id for part in call.parts]
    if len(named) != len(set(named)):
        yield f"scheduled twice in one step: {named}"
    for part in call.parts:
        name, num_tokens = part.request_id, part.num_tokens
        computed = ledger.num_computed[name]
        num_known = seen.requests[name]["num_prompt_tokens"] + ledger.num_sampled(name)
        if part.num_computed_tokens != computed:
            yield f"{name} goes on at token {part.num_computed_tokens}, not {computed}"
        if not 1 <= num_tokens <= num_known - computed:
            yield f"{name} computes {num_tokens} of {num_known - computed} tokens"
        if part.emits != (computed + num_tokens == num_known):
            yield f"{name}: emits is {part.emits} after {num_tokens} tokens"
        ledger.schedule(part)
        if ledger.num_sampled(name) > seen.requests[name]["num_output_tokens"]:
            yield f"{name} is scheduled beyond its last token"


def tokens_conserved(seen: Observation) -> Iterator[Violation]:
    """The steps compute each prompt and each answer but its last token once, less what the prefix cache
    held, plus what preemptions threw away; and so the log counts it.
    """
    num_computed = dict.fromkeys(seen.requests, 0)
    num_due = {
        name: row["num_prompt_tokens"] + row["num_output_tokens"] - 1 for name, row in seen.requests.items()
    }
    rejected = {seen.log.requests["request_id"][row] for row in seen.log.rejections}
    num_recomputed = 0
    for replica in seen.replicas:
        ledger = Ledger()
        for call in ledger.calls(replica.history):
            for name, _, num_kept in ledger.decide(call):
                num_again = ledger.num_lost.pop(name, 0) - num_kept
                num_due[name] += num_again
                num_recomputed += max(0, num_again)
            for part in call.parts:
                num_computed[part.request_id] += part.num_tokens
                ledger.schedule(part)
    for name, num_tokens in num_computed.items():
        due = 0 if name in rejected else num_due[name]
        if num_tokens != due:
            yield Violation(-1, f"{num_tokens} tokens of {name} were computed, due were {due}")
    counted = seen.log.num_tokens_recomputed
    if num_recomputed != counted:
        yield Violation(-1, f"the log counts {counted} recomputed tokens, {num_recomputed} were")


def blocks_conserved(seen: History) -> Iterator[Violation]:
    """Every KV block is free or held at every moment, and all are free in the end; who waits holds none."""
    for replica in seen.replicas:
        for entry in replica.history:
            if entry.integrity is not None:
                yield Violation(entry.step, entry.integrity)
            waiting = entry.waiting if isinstance(entry, Call) else ()
            hoarders = [name for name in waiting if entry.after[name].num_blocks]
            if hoarders:
                yield Violation(entry.step, f"{hoarders} wait and hold KV blocks")
        num_used = replica.num_blocks_used
        if replica.history and not replica.history[-1].after and num_used:
            yield Violation(-1, f"{num_used} KV blocks are still held when nobody is there")


def kv_covered(seen: History) -> Iterator[Violation]:
    """A request holds blocks for every token it computes, those of this step included."""
    for _, call in seen.calls:
        for part in call.parts:
            name, num_tokens = part.request_id, part.num_computed_tokens + part.num_tokens
            capacity = call.after[name].num_blocks * seen.case.block_size
            if num_tokens > capacity:
                yield Violation(call.step, f"{name} has KV cache for {capacity} of {num_tokens} tokens")


def effects_at_step_ends(seen: History) -> Iterator[Violation]:
    """Tokens and finishes come with a step's end, those that the step emits, and never with a plan."""
    done = RequestState.FINISHED
    for replica in seen.replicas:
        for entry in replica.history:
            before, after = entry.before, entry.after
            emitted = entry.emitted if isinstance(entry, Commit) else ()
            for name, old in before.items():
                # Who is gone had its last token.
                num_new = after[name].num_generated_tokens - old.num_generated_tokens if name in after else 1
                if num_new != (name in emitted):
                    told = f"{name} got {num_new} tokens, {name in emitted:d} were emitted"
                    yield Violation(entry.step, told)
            if isinstance(entry, Call):
                if any(new.state is done and before[name].state is not done for name, new in after.items()):
                    yield Violation(entry.step, "a request finished while a step was planned")
                continue
            due = [
                name
                for name in emitted
                if before[name].num_generated_tokens + 1 == seen.requests[name]["num_output_tokens"]
            ]
            if list(entry.finished) != due:
                told = f"{list(entry.finished)} finished, {due} got their last token"
                yield Violation(entry.step, told)


def time_goes_forward(seen: Observation) -> Iterator[Violation]:
    """Calls come in order of time, steps of a replica follow each other, tokens of a request too."""
    steps, events = seen.log.steps, seen.log.events
    for number, replica in enumerate(seen.replicas):
        if any(later.now < earlier.now for earlier, later in pairwise(replica.calls)):
            yield Violation(-1, "a call was made before an earlier one")
        of_replica = steps["replica"] == number
        start_s, duration_s = steps["start_s"][of_replica], steps["duration_s"][of_replica]
        overlapping = np.flatnonzero(start_s[1:] < (start_s + duration_s)[:-1])
        if len(overlapping):
            yield Violation(int(overlapping[0]) + 1, "the step begins before the one before it ends")
    emitted = events["event"] == EMITTED
    for row in np.unique(events["request"][emitted]):
        times = events["time_s"][emitted & (events["request"] == row)]
        if (np.diff(times) <= 0).any() or times[0] <= seen.log.requests["arrival_s"][row]:
            yield Violation(-1, f"tokens of {seen.log.requests['request_id'][row]} come at {times.tolist()}")


def nobody_starves(seen: Observation) -> Iterator[Violation]:
    """In a `starvation_case`, most rivals have not overtaken the long request when it is done."""
    requests = seen.log.requests
    arrival_s, finished_at_s = requests["arrival_s"], requests["finished_at_s"]
    row = int(np.flatnonzero(requests["request_id"] == STARVED)[0])
    is_rival = arrival_s > arrival_s[row]
    num_before = int((is_rival & (finished_at_s < finished_at_s[row])).sum())
    if num_before > NUM_RIVALS // 2:
        yield Violation(
            -1,
            f"{num_before} of {NUM_RIVALS} rivals that came later were done before {STARVED} "
            "(a policy that lets some wait by intention is checked with may_starve=True)",
        )


HISTORY_LAWS: dict[str, Callable[[History], Iterator[Violation]]] = {
    law.__name__: law
    for law in (
        *(budget_kept, slots_kept, each_in_one_place, tokens_in_order, kv_covered, blocks_conserved),
        *(effects_at_step_ends, never_idle),
    )
}
"""Those that also hold for a run that was broken off."""
LOG_LAWS: dict[str, Callable[[Observation], Iterator[Violation]]] = {
    law.__name__: law for law in (nobody_lost, tokens_conserved, time_goes_forward)
}
"""Those about a run that came to its end."""


def _unfinished(call: Call) -> list[str]:
    return [name for name, standing in call.after.items() if standing.state is not RequestState.FINISHED]
