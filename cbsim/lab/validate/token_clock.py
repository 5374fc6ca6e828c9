"""RecordedTokens: the clock of a server whose log says when requests got tokens, and what contradicts it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cbsim.core.stepping import Slice
from cbsim.lab.validate.server_log import ServerLog
from cbsim.lab.validate.step_counts import SAME_TIME_S, Gaps
from cbsim.results.run_log import Column

MEMORY = 0.9
"""Weight of stretches before the last in what predictions are off."""
KINDS = ("prefill", "decode", "mixed")


class Contradiction(NamedTuple):
    """A step that can't have been as the scheduler decided it, if the record is right."""

    step: int
    at_s: float
    """The simulated time at which the step started, seconds."""
    reason: str


class Stretch(NamedTuple):
    """Steps between two recorded instants."""

    kind: str
    """Of all its steps, or `several`."""
    num_steps: int
    recorded_s: float
    predicted_s: float


class Due(NamedTuple):
    """The next recorded token of a request beyond the step at hand; at infinity for none."""

    at_s: float
    num_steps: int
    """How many steps later, if it gets a share of every step."""


@dataclass
class RecordedTokens:
    """Ends each step that brings recorded tokens at their recorded time.

    The steps between two recorded instants share the time between them alike; `counts` says how many they
    are, else a running request's tokens to go do, else what the time is worth at predicted times, corrected
    by what these have been off so far. A step contradicts the record if its tokens have different times, if
    time would not rise, or if a request in it would have got its next token before.
    """

    log: ServerLog
    max_tokens_per_step: int
    counts: Column | None = None
    """Steps from each of the recorded instants to the next."""
    contradictions: list[Contradiction] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    num_steps: int = 0
    num_recorded_steps: int = 0
    """Steps that bring recorded tokens."""

    def __post_init__(self) -> None:
        self.gaps = Gaps(self.log)
        self._row = {request_id: row for row, request_id in enumerate(self.log.request_id)}
        self._last_end_s = -math.inf
        self._since_s = 0.0
        self._is_whole = False
        """Whether the stretch at hand began at a recorded instant."""
        self._predicted_s = 0.0
        self._kinds: list[str] = []
        self._scale: dict[str, float] = {}
        """Of late, recorded over predicted time by kind of step."""

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        """See `StepClock.end_s`."""
        self.num_steps += 1
        if start_s > self._last_end_s:
            self._begin(start_s)  # After idling, a step starts with an arrival, whose time is recorded.
        kind = _kind(slices)
        self._predicted_s += predicted_s
        self._kinds.append(kind)
        self.gaps.note(start_s, kind, self._scale.get(kind, 1.0) * predicted_s)
        recorded = {part.request.request_id: self._token_s(part, 0) for part in slices if part.emits}
        tokens = {name: at_s for name, at_s in recorded.items() if at_s is not None}
        due = min(self._dues(slices), default=Due(math.inf, 0))
        end_s, is_recorded = self._place(number, start_s, predicted_s, tokens, due)
        if tokens:
            self.num_recorded_steps += 1
            if is_recorded and self._is_whole:
                stretch_kind = kind if set(self._kinds) == {kind} else "several"
                stretch_s = end_s - self._since_s
                self.stretches.append(Stretch(stretch_kind, len(self._kinds), stretch_s, self._predicted_s))
                ratio = stretch_s / self._predicted_s
                before = self._scale.get(stretch_kind, ratio)
                self._scale[stretch_kind] = MEMORY * before + (1.0 - MEMORY) * ratio
            self._begin(end_s)
            self._is_whole = is_recorded
        self._last_end_s = end_s
        return end_s

    def recorded_over_predicted(self) -> dict[str, tuple[int, float]]:
        """By kind of step: how many lie in stretches of that kind alone, and their recorded over predicted s.

        `several` are stretches of more than one kind, `all` everything.
        """
        ratios = {}
        for kind in (*KINDS, "several", "all"):
            chosen = [stretch for stretch in self.stretches if kind in (stretch.kind, "all")]
            if chosen:
                recorded_s = sum(stretch.recorded_s for stretch in chosen)
                predicted_s = sum(stretch.predicted_s for stretch in chosen)
                ratios[kind] = sum(stretch.num_steps for stretch in chosen), recorded_s / predicted_s
        return ratios

    def _begin(self, at_s: float) -> None:
        self._since_s = at_s
        self._is_whole = True
        self._predicted_s = 0.0
        self._kinds = []

    def _place(
        self, number: int, start_s: float, predicted_s: float, tokens: dict[str, float], due: Due
    ) -> tuple[float, bool]:
        """Where a step ends, and whether the record says so without contradiction."""
        if not tokens:
            return self._between(start_s, predicted_s, due), False
        first, last = min(tokens.values()), max(tokens.values())
        if last - first > SAME_TIME_S:
            early, late = (pick(tokens, key=tokens.__getitem__) for pick in (min, max))
            reason = f"requests {early} and {late} get tokens at {first:.6f} and {last:.6f} s"
        elif first <= start_s:
            reason = f"request {next(iter(tokens))} got its token at {first:.6f} s, before the step started"
        elif due.at_s <= last + SAME_TIME_S:
            reason = (
                f"request {next(iter(tokens))} gets its token at {last:.6f} s, and another in the step "
                f"its next one at {due.at_s:.6f} s already"
            )
        else:
            return last, True
        self.contradictions.append(Contradiction(number, start_s, reason))
        rising = [at_s for at_s in tokens.values() if at_s > start_s]
        if not rising or due.at_s <= min(rising):
            return self._between(start_s, predicted_s, due), False
        return float(np.median(rising)), False

    def _between(self, start_s: float, predicted_s: float, due: Due) -> float:
        """The step's share of the time to the next recorded instant."""
        expected_s = self._scale.get(self._kinds[-1], 1.0) * predicted_s
        gap, instants_s = self.gaps.index(start_s), self.gaps.instants_s
        if gap + 1 >= len(instants_s):
            return start_s + expected_s
        next_s = float(instants_s[gap + 1])
        left_s = next_s - start_s
        if self.counts is not None and gap >= 0:
            num_steps = max(1, int(self.counts[gap] - self.gaps.num_steps[gap]) + 1)
        elif due.num_steps and due.at_s <= start_s + left_s + SAME_TIME_S:
            num_steps = 1 + due.num_steps
        else:
            num_steps = max(1, round(left_s / expected_s))
        return next_s if num_steps == 1 else start_s + left_s / num_steps

    def _dues(self, slices: Sequence[Slice]) -> Iterator[Due]:
        for part in slices:
            request, number = part.request, _token_number(part)
            if part.emits and number < request.num_output_tokens:
                following = self._token_s(part, 1)
                if following is not None:
                    yield Due(following, 1)
                else:
                    yield Due(self._times(part)[-1], request.num_output_tokens - number)
            elif not part.emits and request.num_generated_tokens == 0:
                left = request.prefill_until - part.num_computed_tokens - part.num_tokens
                yield Due(self._times(part)[0], max(1, -(-left // self.max_tokens_per_step)))

    def _token_s(self, part: Slice, further: int) -> float | None:
        """The recorded time of the token that a slice brings, or of one further on; `None` if unrecorded."""
        number = _token_number(part) + further
        if self.log.token_times_s is not None:
            return float(self.log.token_times_s[self._row[part.request.request_id]][number - 1])
        if number == 1:
            return self._times(part)[0]
        return self._times(part)[-1] if number == part.request.num_output_tokens else None

    def _times(self, part: Slice) -> tuple[float, float]:
        row = self._row[part.request.request_id]
        return float(self.log.first_token_s[row]), float(self.log.last_token_s[row])


def _token_number(part: Slice) -> int:
    """Which of the request's tokens a slice that emits brings, from 1."""
    # Synchronous scheduling counts nothing in flight: this step is the only one.
    return part.request.num_generated_tokens + max(part.request.num_in_flight_tokens, 1)


def _kind(slices: Sequence[Slice]) -> str:
    prefills = [part.is_prefill for part in slices]
    return "prefill" if all(prefills) else "mixed" if any(prefills) else "decode"
