"""RecordedTokens: the clock of a server whose log says when requests got tokens, and what contradicts it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack, identity

from cbsim.base.errors import WorkloadError
from cbsim.core.stepping import Slice
from cbsim.lab.validate.server_log import ServerLog
from cbsim.results.run_log import Column

FEW_DECODES, FEW_TOKENS = 16, 128
"""Steps of no more decodes, or tokens, all cost about the same: reading the weights."""
MEMORY = 0.9
"""Weight of stretches before the last in what predictions are off."""
KINDS = ("prefill", "decode", "mixed")


class Contradiction(NamedTuple):
    """A step that can't have been as the scheduler decided it, if the record is right."""

    step: int
    at_s: float
    """The simulated time at which the step started, seconds."""
    reason: str


class Cell(NamedTuple):
    """Steps alike: of one kind and, within a factor of two, one size."""

    kind: str
    least: int
    """Least size: decodes of a step of decodes alone, tokens of another."""
    most: int

    @classmethod
    def of(cls, kind: str, slices: Sequence[Slice]) -> Cell:
        """The cell of a step; steps of few decodes or tokens are all alike."""
        size = len(slices) if kind == "decode" else sum(part.num_tokens for part in slices)
        floor = FEW_DECODES if kind == "decode" else FEW_TOKENS
        most = max(floor, 1 << (size - 1).bit_length())
        return cls(kind, 1 if most == floor else most // 2 + 1, most)


class Stretch(NamedTuple):
    """Steps between two recorded instants."""

    kind: str
    """Of all its steps, or `several`."""
    num_steps: int
    recorded_s: float
    predicted_s: float
    cells: Mapping[Cell, tuple[int, float]]
    """By cell: how many of its steps, and their predicted seconds."""


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
    engine: Engine
    counts: Column | None = None
    """Steps from each of the recorded instants to the next."""
    contradictions: list[Contradiction] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    num_steps: int = 0
    num_recorded_steps: int = 0
    """Steps that bring recorded tokens."""

    def __post_init__(self) -> None:
        self.gaps = Gaps(self.log, self.engine)
        self.seen: Column = np.full((len(self.log), 3), -1)
        """By request: the steps of its first share, its first and its last token; -1 for none."""
        self._row = {request_id: row for row, request_id in enumerate(self.log.request_id)}
        self._last_end_s = -math.inf
        self._since_s = 0.0
        self._is_whole = False
        """Whether the stretch at hand began at a recorded instant."""
        self._predicted_s = 0.0
        self._kinds: list[str] = []
        self._cells: dict[Cell, tuple[int, float]] = {}
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
        cell = Cell.of(kind, slices)
        num_before, before_s = self._cells.get(cell, (0, 0.0))
        self._cells[cell] = num_before + 1, before_s + predicted_s
        self.gaps.note(start_s, kind, self._scale.get(kind, 1.0) * predicted_s)
        for part in slices:
            self._note(self.seen[self._row[part.request.request_id]], number, emits=part.emits)
        recorded = {part.request.request_id: self._token_s(part, 0) for part in slices if part.emits}
        tokens = {name: at_s for name, at_s in recorded.items() if at_s is not None}
        due = min(self._dues(slices), default=Due(math.inf, 0))
        end_s, is_recorded = self._place(number, start_s, predicted_s, tokens, due)
        if tokens:
            self.num_recorded_steps += 1
            if is_recorded and self._is_whole:
                stretch_kind = kind if set(self._kinds) == {kind} else "several"
                stretch_s = end_s - self._since_s
                self.stretches.append(
                    Stretch(stretch_kind, len(self._kinds), stretch_s, self._predicted_s, self._cells)
                )
                ratio = stretch_s / self._predicted_s
                before = self._scale.get(stretch_kind, ratio)
                self._scale[stretch_kind] = MEMORY * before + (1.0 - MEMORY) * ratio
            self._begin(end_s)
            self._is_whole = is_recorded
        self._last_end_s = end_s
        return end_s

    @staticmethod
    def _note(seen: Column, number: int, *, emits: bool) -> None:
        if seen[0] < 0:
            seen[0] = number
        if emits:
            seen[1] = number if seen[1] < 0 else seen[1]
            seen[2] = number

    def next_counts(self, *, as_decided: bool) -> Column:
        """Steps by gap for another pass: as near as can be to the expected times, or, `as_decided`, with as
        many between recorded tokens as this pass had.
        """
        counts = self.gaps.counts(self.log, self.engine, self.seen)
        return counts_as_decided(self.log, self.gaps.instants_s, counts, self.seen) if as_decided else counts

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
        self._cells = {}

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
                yield Due(self._times(part)[0], max(1, -(-left // self.engine.max_tokens_per_step)))

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


SAME_TIME_S = 1e-6
"""Recorded times this near to each other are one: a server takes its clock once a step."""
TAKEN_WITHIN_S = 2e-3
"""A request taken or scheduled so soon after a recorded token was so at the end of that token's step."""
TOKEN_COST = 1000.0
"""Of a step more or less than a request has tokens, against one more or less than time says."""
DISTURBED_COST = 3.0
"""What stands for `TOKEN_COST` of a preempted request, whose steps include those that it sat out in the pass
before."""
FIRST_TOKEN_COST = 20.0
"""Of a first token that comes a step later or sooner than from the step decided when it was scheduled."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What decides when a step is decided, and how many a prompt takes."""

    num_in_flight: int
    max_tokens_per_step: int


class Gaps:
    """What a replay finds between one recorded instant, at which a step ended, and the next."""

    def __init__(self, log: ServerLog, engine: Engine) -> None:
        self.instants_s = recorded_instants(log, engine)
        num_gaps = max(len(self.instants_s) - 1, 0)
        self.num_steps = np.zeros(num_gaps, dtype=np.int64)
        """Steps that started in each gap."""
        self._num_others = np.zeros(num_gaps, dtype=np.int64)
        """Those of them that aren't decodes alone,"""
        self._others_s = np.zeros(num_gaps)
        """and the seconds expected of these."""
        self._decode_s = np.zeros(num_gaps)
        """Seconds expected of the last step of decodes alone."""

    def index(self, at_s: float) -> int:
        """The gap that an instant lies in, or begins; -1 before the first recorded instant."""
        return int(_num_until(self.instants_s, at_s)) - 1

    def note(self, at_s: float, kind: str, expected_s: float) -> None:
        """A step of a kind starts."""
        gap = self.index(at_s)
        if not 0 <= gap < len(self.num_steps):
            return
        self.num_steps[gap] += 1
        if kind == "decode":
            self._decode_s[gap] = expected_s
        else:
            self._num_others[gap] += 1
            self._others_s[gap] += expected_s

    def counts(self, log: ServerLog, engine: Engine, seen: Column) -> Column:
        """Steps by gap that agree with every request's tokens, as near as can be to the expected times."""
        known = self._decode_s > 0
        if not known.any():
            return self.num_steps
        gaps_s = np.diff(self.instants_s)
        places = np.arange(len(gaps_s))
        decode_s = np.interp(places, places[known], self._decode_s[known])
        fits = self._others_s <= gaps_s
        num_decodes = np.where(fits, gaps_s - self._others_s, 0.0) / decode_s
        expected = np.where(fits, self._num_others, 0) + num_decodes
        return count_steps(log, self.instants_s, expected, self.num_steps == 0, engine, seen)


def first_of_second_steps(log: ServerLog, engine: Engine) -> Column:
    """By request: the one beside whose second chunk it began, in the second step of an engine that was idle;
    -1 for all others.

    An engine that works ahead decides its second step when it has launched the first, which a server that
    has just started may take long for. Who came meanwhile gets its first token with a request that began the
    first step and whose prompt takes two.
    """
    beside: Column = np.full(len(log), -1)
    if log.scheduled_s is None or engine.num_in_flight < 2:
        return beside
    order = np.argsort(log.scheduled_s, kind="stable")
    busy_s = np.append(-math.inf, np.maximum.accumulate(log.last_token_s[order])[:-1])
    num_chunks = -(-log.num_prompt_tokens // engine.max_tokens_per_step)
    for row in order[(log.scheduled_s[order] > busy_s) & (num_chunks[order] == 2)].tolist():
        is_late = log.scheduled_s > log.scheduled_s[row] + TAKEN_WITHIN_S
        is_with = np.abs(log.first_token_s - log.first_token_s[row]) <= SAME_TIME_S
        beside[is_late & is_with] = row
    return beside


def recorded_instants(log: ServerLog, engine: Engine) -> Column:
    """Every instant at which a step ended for sure, rising.

    A request is first scheduled at the end of a step too, but for one that finds the engine idle, or
    launching its first step.
    """
    every = np.concatenate([log.first_token_s, log.last_token_s, *(log.token_times_s or ())])
    tokens_s: Column = np.unique(every)
    tokens_s = tokens_s[np.append(True, np.diff(tokens_s) > SAME_TIME_S)]
    if log.scheduled_s is None:
        return tokens_s
    last_s = np.append(-math.inf, tokens_s)[np.searchsorted(tokens_s, log.scheduled_s, side="right")]
    is_apart = (log.scheduled_s - last_s > TAKEN_WITHIN_S) & (first_of_second_steps(log, engine) < 0)
    return np.unique(np.concatenate([tokens_s, log.scheduled_s[is_apart]]))


def waiting_since(log: ServerLog, engine: Engine) -> Column:
    """When each request stood in the queue as the scheduler saw it.

    Only recorded instants are known to be ends of steps. A request that came after the last of them before it
    was scheduled is taken to have come just when it was scheduled: the ends between are estimates.
    """
    taken_s = log.sent_s if log.queued_s is None else log.queued_s
    if log.scheduled_s is None:
        return taken_s
    instants_s = recorded_instants(log, engine)
    num_until = _num_until(instants_s, log.scheduled_s)
    ends_s = np.append(-math.inf, instants_s)
    is_late = (num_until > 0) & (taken_s > ends_s[np.maximum(num_until - 1, 0)])
    since_s: Column = np.where(is_late, ends_s[num_until], taken_s)
    beside = first_of_second_steps(log, engine)
    since_s[beside >= 0] = since_s[beside[beside >= 0]]
    order = np.argsort(taken_s, kind="stable")
    since_s[order] = np.maximum.accumulate(since_s[order])  # Nobody overtakes.
    return since_s


def count_steps(
    log: ServerLog, instants_s: Column, expected: Column, may_be_idle: Column, engine: Engine, seen: Column
) -> Column:
    """Steps from each recorded instant to the next: whole numbers, as near as can be to `expected`.

    A request that runs undisturbed gets a token in every step, so between its first and its last lie as many
    steps as it has tokens less one: one equation over consecutive instants for each request. One that was
    preempted in the pass that `seen` is of has so many more as it sat out there. With costs
    linear between whole numbers such a system (its rows are intervals: totally unimodular) has a whole
    optimum, which linear programming finds; equations that can't hold together, as after preemptions, are
    broken by as few steps as possible. Where `may_be_idle` a count may be 0, elsewhere it is at least 1.

    Raises `WorkloadError` where instants are so far apart that the program finds no end.
    """
    num_gaps = len(instants_s) - 1
    starts, ends, num_steps, costs = _equations(log, instants_s, may_be_idle, engine, seen)
    gaps = [np.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    each_from = np.append(0, np.cumsum(ends - starts))
    flat = np.concatenate([np.empty(0, dtype=np.int64), *gaps])
    sums = csr_matrix((np.ones(len(flat)), flat, each_from), shape=(len(costs), num_gaps))
    lowest = np.where(may_be_idle, 0.0, 1.0)
    below = np.maximum(np.floor(expected), lowest)
    # count = below + extra (0 to 1) + more - less; a surplus or a lack of steps breaks an equation.
    slope = 1.0 - 2.0 * np.clip(expected - below, 0.0, 1.0)
    weight = 1.0 / (1.0 + 0.1 * expected)
    unbounded = np.full(num_gaps, np.inf)
    upper = np.concatenate([np.ones(num_gaps), unbounded, below - lowest, np.full(2 * len(costs), np.inf)])
    breaks = identity(len(costs), format="csr")
    found = linprog(
        np.concatenate([weight * slope, weight, weight, costs, costs]),
        A_eq=hstack([sums, sums, -sums, breaks, -breaks], format="csr"),
        b_eq=num_steps - sums @ below,
        bounds=np.column_stack([np.zeros(len(upper)), upper]),
        method="highs",
    )
    if found.x is None:
        longest_s = np.diff(instants_s).max(initial=0.0)
        raise WorkloadError(
            f"{log.path}: a replay can't count the steps between tokens that come {longest_s:.3g} s apart; "
            "allowed: times of one run of a server"
        )
    extra, more, less = np.split(found.x[: 3 * num_gaps], 3)
    counts: Column = np.round(below + extra + more - less).astype(np.int64)
    return counts


def _equations(
    log: ServerLog, instants_s: Column, may_be_idle: Column, engine: Engine, seen: Column
) -> tuple[Column, Column, Column, Column]:
    """Start and end by index of instant, the number of steps between, the cost of each more or less."""
    first, last = (_num_until(instants_s, at_s) - 1 for at_s in (log.first_token_s, log.last_token_s))
    num_missed = np.maximum(seen[:, 2] - seen[:, 1] - (log.num_output_tokens - 1), 0)
    costs = np.where(num_missed > 0, DISTURBED_COST, TOKEN_COST)
    parts = [(first, last, log.num_output_tokens - 1 + num_missed, costs)]
    if log.scheduled_s is not None:
        # From being scheduled to the first token: as many as in the pass, and those under way before them.
        start = _num_until(instants_s, log.scheduled_s) - 1
        is_idle = (start == 0) | may_be_idle[np.maximum(start - 1, 0)]
        num_steps = seen[:, 1] - seen[:, 0] + np.where(is_idle, 1, engine.num_in_flight)
        start = np.where(first_of_second_steps(log, engine) < 0, start, -1)
        parts.append((start, first, num_steps, np.full(len(log), FIRST_TOKEN_COST)))
    starts, ends, num_steps, costs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kept = (starts >= 0) & (starts < ends)
    return starts[kept], ends[kept], num_steps[kept], costs[kept]


def counts_as_decided(log: ServerLog, instants_s: Column, counts: Column, seen: Column) -> Column:
    """Steps by gap with as many between instants of recorded tokens as lay there in the pass of `seen`.

    Who was preempted when hardly depends on the counts, so that these then hold all of its decisions.
    """
    tokens_s = np.concatenate([log.first_token_s, log.last_token_s])
    instant, number = _num_until(instants_s, tokens_s) - 1, np.concatenate([seen[:, 1], seen[:, 2]])
    known = np.unique(instant[(instant >= 0) & (number >= 0)])
    steps = [round(float(np.median(number[(instant == place) & (number >= 0)]))) for place in known]
    decided = counts.copy()
    for (low, high), between in zip(pairwise(known), np.diff(np.maximum.accumulate(steps)), strict=True):
        decided[high - 1] = max(decided[high - 1] + between - decided[low:high].sum(), 0)
    return decided


def _num_until(instants_s: Column, times_s: Column | float) -> Column:
    """How many recorded instants lie at or before each time."""
    num_until: Column = np.searchsorted(instants_s, np.asarray(times_s) + SAME_TIME_S, side="right")
    return num_until
