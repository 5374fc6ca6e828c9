"""Where the time went, told slice by slice and step by step from recorded batches, in plain floats."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.results.latency import PARTS
from cbsim.results.run_log import EVENTS, RunLog
from cbsim.workload.request import RequestState


@dataclass
class Step:
    """One step, with the slices in it: request -> (tokens, computed before, whether it is a prompt's)."""

    start_s: float
    end_s: float
    scheduled_at_s: float
    transfer_s: float
    waiting_for: int
    num_shared_tokens: int
    slices: dict[int, tuple[int, int, bool]] = field(default_factory=dict)
    emitting: set[int] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    @property
    def has_chunks(self) -> bool:
        return any(is_prefill for _, _, is_prefill in self.slices.values())

    def shape(self, chunks_of: set[int]) -> StepShape:
        """With all its decodes, and the chunks of some requests only."""
        chunks = {r: s for r, s in self.slices.items() if s[2] and r in chunks_of}
        contexts = [before + tokens for tokens, before, is_prefill in self.slices.values() if not is_prefill]
        return StepShape(
            tuple((tokens, before) for tokens, before, _ in chunks.values()),
            len(chunks.keys() & self.emitting),
            len(contexts),
            sum(contexts),
            max(contexts, default=0),
            num_shared_tokens=self.num_shared_tokens,
        )


def steps_of(log: RunLog, replica: int) -> list[Step]:
    """The steps of one replica, which must have been recorded with batches."""
    assert log.batches is not None
    columns = {name: log.steps[name].tolist() for name in log.steps}
    steps = {}
    for row in range(len(columns["step"])):
        if columns["replica"][row] == replica:
            start_s = columns["start_s"][row]
            steps[columns["step"][row]] = Step(
                start_s,
                start_s + columns["duration_s"][row],
                columns["scheduled_at_s"][row],
                columns["transfer_s"][row],
                columns["waiting_for"][row],
                columns["num_shared_tokens"][row],
            )
    names = ("replica", "step", "request", "num_tokens", "num_computed_tokens", "kind")
    for of, step, request, tokens, before, kind in zip(
        *(log.batches[name].tolist() for name in names), strict=True
    ):
        if of == replica and step in steps:
            steps[step].slices[request] = (tokens, before, kind == 0)
    for event in happened(log, "emitted"):
        if event["replica"] == replica:
            steps[event["step"]].emitting.add(event["request"])
    return [steps[number] for number in range(len(steps))]


def happened(log: RunLog, name: str, replica: int | None = None) -> list[dict[str, Any]]:
    is_one = log.events["event"] == EVENTS.index(name)
    rows = np.flatnonzero(is_one & ((log.events["replica"] == replica) | (replica is None))).tolist()
    return [{key: log.events[key][row].item() for key in log.events} for row in rows]


def naive_parts(log: RunLog, cost: CostModel) -> dict[int, tuple[dict[str, float], dict[str, float] | None]]:
    """Request -> the parts of its TTFT, and of its E2E if it finished."""
    found: dict[int, tuple[dict[str, float], dict[str, float] | None]] = {}
    over, begun, loaded = (
        {event["request"]: event["time_s"] for event in happened(log, name)}
        for name in ("handed_over", "load_started", "loaded")
    )
    num_replicas = int(log.requests["replica"].max()) + 1
    for replica in range(num_replicas):
        steps = steps_of(log, replica)
        pauses: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for event in happened(log, "preempted", replica):
            pauses[event["request"]].append((event["time_s"], len(steps)))
        num_resumed: dict[int, int] = defaultdict(int)
        for event in happened(log, "resumed", replica):
            mine, place = pauses[event["request"]], num_resumed[event["request"]]
            num_resumed[event["request"]] += 1
            mine[place] = (mine[place][0], resuming_step(event, steps))
        for request in sorted({request for step in steps for request in step.slices}):
            is_finished = log.requests["state"][request] == RequestState.FINISHED
            if request in over and log.requests["replica"][request] == replica:
                num_prompt = int(log.requests["num_prompt_tokens"][request])
                tell = Teller(request, loaded[request], steps, pauses[request], cost, num_prompt)
                if is_finished:
                    add_decoding(found[request][1], tell)
                    found[request][1]["handed_over"] = begun[request] - over[request]
                    found[request][1]["kv_transfer"] = loaded[request] - begun[request]
                continue
            first_tokens = [number for number, step in enumerate(steps) if request in step.emitting]
            if not first_tokens:
                continue
            arrival_s = float(log.requests["arrival_s"][request])
            own = [number for number, step in enumerate(steps) if request in step.slices]
            tell = Teller(request, arrival_s, steps, pauses[request], cost)
            found[request] = (tell.until(first_tokens[0]), tell.until(own[-1]) if is_finished else None)
    return found


def add_decoding(parts: dict[str, float] | None, tell: Teller) -> None:
    """What a request does where it was taken over, once its KV cache is there."""
    assert parts is not None
    for name, seconds in tell.until(
        max(n for n, step in enumerate(tell.steps) if tell.request in step.slices)
    ).items():
        if name in ("queue", "no_slot", "no_kv"):
            name = "decode_queue"
        parts[name] = parts.get(name, 0.0) + seconds


def resuming_step(event: dict[str, Any], steps: list[Step]) -> int:
    """The first step with a part of a request that was resumed; their number if there is none."""
    number = 0
    while number < len(steps):
        was_resumed = number >= event["step"] >= 0 or (
            event["step"] < 0 and steps[number].scheduled_at_s >= event["time_s"]
        )
        if was_resumed and event["request"] in steps[number].slices:
            break
        number += 1
    return number


class Teller:
    """Follows one request from step to step."""

    def __init__(
        self,
        request: int,
        arrival_s: float,
        steps: list[Step],
        pauses: list[tuple[float, int]],
        cost: CostModel,
        num_computed: int = 0,
    ) -> None:
        """`num_computed` of its tokens were computed elsewhere."""
        self.request, self.arrival_s, self.steps, self.cost = request, arrival_s, steps, cost
        self.pauses, self.num_computed = pauses, num_computed

    def until(self, last: int) -> dict[str, float]:
        parts = dict.fromkeys(PARTS, 0.0)
        first = next(number for number, step in enumerate(self.steps) if self.request in step.slices)
        parts["queue"] = self.steps[first].start_s - self.arrival_s
        for step in self.steps[:first]:
            name = {2: "no_slot", 3: "no_kv"}.get(step.waiting_for)
            if step.scheduled_at_s >= self.arrival_s and name is not None:
                parts[name] += step.seconds
                parts["queue"] -= step.seconds
        most_computed = self.num_computed
        for number in range(first, last + 1):
            step = self.steps[number]
            if number > first:
                idle_s = step.start_s - self.steps[number - 1].end_s
                resumes = any(resumed == number for _, resumed in self.pauses)
                parts["preempted" if resumes or self.is_paused(number) else "skipped"] += idle_s
            if self.request in step.slices:
                self.add_own(step, parts, most_computed)
                tokens, before, _ = step.slices[self.request]
                most_computed = max(most_computed, before + tokens)
            elif self.is_paused(number):
                parts["preempted"] += step.seconds
            else:
                parts["others_prefill" if step.has_chunks else "skipped"] += step.seconds
        return parts

    def is_paused(self, number: int) -> bool:
        """Whether it is preempted during a step that it has no part in."""
        for at_s, resumed in self.pauses:
            later = any(self.request in step.slices for step in self.steps[number:resumed])
            if self.steps[number].end_s > at_s and number < resumed and not later:
                return True
        return False

    def add_own(self, step: Step, parts: dict[str, float], most_computed: int) -> None:
        everybody = set(step.slices)
        _, before, is_prefill = step.slices[self.request]
        host_s = min(float(self.cost.host_s(step.seconds, len(step.slices), None)), step.seconds)
        swap_s = min(step.transfer_s, step.seconds - host_s)
        kept = {self.request} if is_prefill else set()
        others_s = 0.0
        if any(step.slices[other][2] for other in everybody - {self.request}):
            shape = step.shape(kept)
            without_s = self.cost.step_s(shape) if shape.num_requests else 0.0
            if shape.num_requests:
                without_s -= float(self.cost.host_s(without_s, shape.num_requests, None))
            others_s = (step.seconds - step.transfer_s - host_s) - without_s
            others_s = min(max(others_s, 0.0), step.seconds - host_s - swap_s)
        name = ("recompute" if before < most_computed else "prefill") if is_prefill else "decode"
        parts["host"] += host_s
        parts["swap"] += swap_s
        parts["others_prefill"] += others_s
        parts[name] += step.seconds - host_s - swap_s - others_s
