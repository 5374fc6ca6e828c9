"""The `synthetic` workload: requests drawn from distributions, as many as wanted, never all in memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbsim.base.errors import WorkloadError
from cbsim.config.bounds import MAX_TOKENS
from cbsim.config.section import Section
from cbsim.workload.arrivals import AllAtOnceArrivals, Arrivals, ConstantArrivals
from cbsim.workload.length_distributions import (
    FixedLengths,
    Lengths,
    Sampler,
    Traces,
    check_weights,
    largest,
    picker,
)
from cbsim.workload.request import BATCH_SIZE, FloatColumn, IntColumn, ObjectColumn, RequestBatch, Segments
from cbsim.workload.request_source import MAX_REQUESTS, Trim, Workload, WorkloadConfig
from cbsim.workload.streams import Streams, gamma_times
from cbsim.workload.trace import find_trace, trace_paths

if TYPE_CHECKING:
    from cbsim.workload.trace_reader import TraceTable


MAX_TURNS = 1000
"""Of a session: each prompt holds all turns before it."""


class SharedPrefix(Section):
    """System prompts that many requests begin with; they come on top of `prompt_tokens`."""

    num_tokens: int = Field(ge=1, le=MAX_TOKENS)
    """Tokens of each system prompt."""
    num_groups: int = Field(default=1, ge=1)
    """How many different system prompts there are, all equally often used."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws which system prompt a request (or session) has."""
        return picker(streams, np.arange(self.num_groups))


class Users(Section):
    """Users `u0`, `u1`, ..., as the `fair` queue order tells them apart."""

    num_users: int = Field(ge=1)
    """How many there are."""
    skew: float = Field(default=0.0, ge=0)
    """Zipf exponent: user k sends requests in proportion to 1 / (k + 1)^skew; 0 is equally many."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws a user's number."""
        weights = 1 / np.arange(1, self.num_users + 1) ** self.skew
        return picker(streams, np.arange(self.num_users), weights)


class _Mix(Section):
    """A setting of the values that occur, then one of their weights."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        values, weights = dict(self).values()
        if weights is not None:
            check_weights(weights, len(values))
        return self

    def sampler(self, streams: Streams) -> Sampler:
        """Draws from the values."""
        values, weights = dict(self).values()
        return picker(streams, values, weights)


class Priorities(_Mix):
    """A mix of priorities; a smaller one is more urgent."""

    values: list[int] = Field(min_length=1)
    """The priorities that occur."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """How often each occurs, relative to the others; null for equally often."""


class Deadlines(_Mix):
    """A mix of deadlines, each counted from the request's arrival."""

    values_s: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Seconds from arrival to deadline that occur."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """How often each occurs, relative to the others; null for equally often."""


class Sessions(Section):
    """Arrivals start sessions; the later turns follow by themselves.

    `prompt_tokens` is then what a user adds in a turn: the whole prompt is the turn before, its answer, and
    that.
    """

    num_turns: Lengths = Field(default_factory=lambda: FixedLengths(type="fixed", value=4))
    """Requests in a session, at most 1,000: larger numbers that chance draws become that."""
    think_time_s: float = Field(default=30.0, gt=0)
    """Mean seconds from a turn's arrival to the next one's, the time to answer and to read included; with
    `wait_for_answers` from the end of its answer."""
    think_time_cv: float = Field(default=1.0, ge=0)
    """Coefficient of variation of that time, gamma-distributed: 1 is exponential, 0 always the same."""

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        if (most := largest(self.num_turns) or 0) > MAX_TURNS:
            raise ValueError(f"num_turns: got up to {most:,}; allowed: {MAX_TURNS:,}")
        return self

    def gaps(self, random: np.random.Generator, size: int) -> FloatColumn:
        """The next times between turns, seconds."""
        return gamma_times(random, self.think_time_s, self.think_time_cv, size)


TURN = np.dtype(
    [
        ("arrival_s", "f8"),
        ("session", "i8"),
        ("turn", "i8"),  # place in the session, from 0
        ("is_last", "?"),
        ("num_new_tokens", "i8"),  # prompt tokens that this turn adds
        ("num_output_tokens", "i8"),
        ("priority", "i8"),
        ("user", "i8"),
        ("group", "i8"),  # which system prompt the session begins with
        ("deadline_s", "f8"),  # seconds from the arrival
        ("delay_s", "f8"),  # seconds from the end of the turn before, where turns wait for answers
    ]
)
"""A turn of a session. A request without sessions is a session of one turn."""

Turns = NDArray[np.void]
"""Rows of `TURN`."""


def turn_arrivals(start_s: FloatColumn, num_turns: IntColumn, gaps_s: FloatColumn) -> FloatColumn:
    """Arrivals of all turns, session by session; `gaps_s` holds one gap for each turn after a first one.

    Summed turn by turn, so that a session's instants don't depend on which sessions stand beside it.
    """
    first = np.cumsum(num_turns) - num_turns
    arrivals = np.empty(int(num_turns.sum()))
    arrivals[first] = start_s
    first_gap = first - np.arange(len(first))
    for turn in range(1, int(num_turns.max(initial=0))):
        has_turn = num_turns > turn
        rows = first[has_turn] + turn
        arrivals[rows] = arrivals[rows - 1] + gaps_s[first_gap[has_turn] + turn - 1]
    return arrivals


def in_order(parts: Iterator[Turns]) -> Iterator[Turns]:
    """Turns in order of arrival (then session, then turn), from parts whose sessions start in order.

    A turn is held back until no later session can start before it.
    """
    held: Turns = np.empty(0, TURN)
    for part in parts:
        held = np.concatenate([held, part])
        held = held[np.lexsort((held["turn"], held["session"], held["arrival_s"]))]
        last_start_s = part["arrival_s"][part["turn"] == 0].max()
        num_ready = int(np.searchsorted(held["arrival_s"], last_start_s))
        if num_ready:
            yield held[:num_ready]
            held = held[num_ready:]
    if len(held):
        yield held


class Conversations:
    """The prompts of sessions under way, as segments; a session is forgotten with its last turn."""

    def __init__(self, num_prefix_tokens: int) -> None:
        self._num_prefix_tokens = num_prefix_tokens
        self._said: dict[int, Segments] = {}

    def prompts(self, turns: Turns, first_number: int) -> list[Segments | None]:
        """The prompt of each turn, in order of arrival; the requests are `r<first_number>` and on."""
        rows = turns[["session", "num_new_tokens", "num_output_tokens", "is_last", "group"]].tolist()
        prompts: list[Segments | None] = []
        for number, (session, num_new, num_output, is_last, group) in enumerate(rows, first_number):
            said = self._said.pop(session, None)
            if said is None:
                said = ((f"g:{group}", self._num_prefix_tokens),) if self._num_prefix_tokens else ()
            prompt = (*said, (f"p:r{number}", num_new))
            prompts.append(prompt)
            if not is_last:
                self._said[session] = (*prompt, (f"o:r{number}", num_output))
        return prompts


_ONE_TURN = Sessions(num_turns=FixedLengths(type="fixed", value=1))


class SyntheticWorkload(Workload):
    """Draws arrivals, lengths and the rest from streams of their own: changing one changes no other."""

    class Config(WorkloadConfig):
        """Settings of generated requests."""

        type: str = "synthetic"
        num_requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS)
        """How many requests; or give `duration_s`."""
        duration_s: float | None = Field(default=None, gt=0)
        """All requests that arrive before this instant; or give `num_requests`."""
        arrivals: Arrivals
        """When requests (with `sessions`: sessions) arrive."""
        prompt_tokens: Lengths
        """Prompt tokens of a request; without those of `shared_prefix` and of a session's earlier turns."""
        output_tokens: Lengths
        """Answer tokens of a request."""
        sessions: Sessions | None = None
        """Conversations of several turns; null for requests that know nothing of each other."""
        shared_prefix: SharedPrefix | None = None
        """System prompts that requests have in common; null for none."""
        users: Users | None = None
        """Who sends the requests; null for nobody in particular. A session has one user."""
        priorities: Priorities | None = None
        """How urgent requests are; null for priority 0. A session has one priority."""
        deadlines: Deadlines | None = None
        """When answers are due; null for never."""

        @model_validator(mode="after")
        def _check_size(self) -> Self:
            if (self.num_requests is None) == (self.duration_s is None):
                raise ValueError("synthetic workload: give one of num_requests and duration_s")
            if self.num_requests is None and isinstance(self.arrivals, AllAtOnceArrivals):
                raise ValueError("synthetic workload: all_at_once arrivals need num_requests")
            if self.wait_for_answers and self.sessions is None:
                raise ValueError("wait_for_answers: got true without sessions; allowed: with sessions")
            if self.limit is None and self.mean_requests > MAX_REQUESTS:
                raise ValueError(
                    f"synthetic workload: duration_s = {self.duration_s:g} brings {self.mean_requests:.3g} "
                    f"requests; allowed: at most {MAX_REQUESTS:,}, or a limit"
                )
            return self

        @property
        def mean_requests(self) -> float:
            """Arrivals to be expected before `end_s`; a session's later turns are not counted."""
            last_s = min(self.duration_s or 0.0, self.end_s or math.inf)
            return last_s * getattr(self.arrivals, "rate_per_s", 0.0)

    config: Config
    batch_size = BATCH_SIZE
    """Arrivals drawn at a time; doesn't change the requests."""
    _trim: Trim | None = None

    def batches(self) -> Iterator[RequestBatch]:
        """Drawn as they are asked for; raises `WorkloadError` if a trace to draw lengths from is wrong."""
        self._trim = Trim(self.config)
        return self._trim.apply(self._batches())

    @property
    def uses_seed(self) -> bool:
        """Not with lengths and arrivals that are fixed, and nothing else to draw."""
        config = self.config
        others = (config.sessions, config.shared_prefix, config.users, config.priorities, config.deadlines)
        drawn = (config.arrivals, config.prompt_tokens, config.output_tokens)
        fixed = (ConstantArrivals, AllAtOnceArrivals, FixedLengths)
        return any(others) or not all(isinstance(part, fixed) for part in drawn)

    def num_requests(self) -> int | None:
        """Exact with `num_requests`; `None` where chance decides, with a duration or a window."""
        config = self.config
        if config.num_requests is None or config.start_s > 0 or config.end_s is not None:
            return None
        return min(config.limit or config.num_requests, config.num_requests)

    def inputs(self) -> list[Path]:
        """The traces that lengths are drawn from."""
        found = (find_trace(path, self.folder) for _, path in trace_paths(self.config.model_dump()))
        return list(dict.fromkeys(found))

    def notes(self) -> list[str]:
        """What the caps cut in the last iteration."""
        return self._trim.notes() if self._trim else []

    @cached_property
    def _traces(self) -> Traces:
        @cache
        def read(path: str) -> TraceTable:
            from cbsim.workload.trace_reader import read_trace

            return read_trace(find_trace(path, self.folder))

        return read

    def _batches(self) -> Iterator[RequestBatch]:
        config = self.config
        parts = self._turns()
        prefix_tokens = config.shared_prefix.num_tokens if config.shared_prefix else 0
        conversations = Conversations(prefix_tokens) if config.sessions or config.shared_prefix else None
        number = 0
        for turns in in_order(parts) if config.sessions else parts:
            num_kept = int(np.searchsorted(turns["arrival_s"], config.duration_s or math.inf))
            num_kept = min(num_kept, (config.num_requests or sys.maxsize) - number)
            if num_kept == 0:
                return
            yield self._batch(turns[:num_kept], number, conversations)
            number += num_kept

    def _turns(self) -> Iterator[Turns]:
        """The turns of session after session; without `sessions`, each of one turn."""
        config = self.config
        streams = Streams(self.seed, "workload")
        prompt = config.prompt_tokens.sampler(streams.child("prompt_tokens"), self._traces, "prompt")
        output = config.output_tokens.sampler(streams.child("output_tokens"), self._traces, "output")
        gaps = streams.child("gaps").generator()
        sessions = config.sessions or _ONE_TURN
        num_turns = sessions.num_turns.sampler(streams.child("num_turns"), self._traces, "prompt")
        population = {
            name: part.sampler(streams.child(name))
            for name, part in (
                ("priority", config.priorities),
                ("user", config.users),
                ("group", config.shared_prefix),
            )
            if part
        }
        deadline = config.deadlines and config.deadlines.sampler(streams.child("deadline"))
        first_session = 0
        for start_s in self._starts(streams):
            num_of = np.minimum(num_turns(len(start_s)), MAX_TURNS)
            session = np.repeat(np.arange(len(start_s)), num_of)
            turns = np.zeros(len(session), TURN)
            gaps_s = sessions.gaps(gaps, len(session) - len(start_s))
            turns["session"] = first_session + session
            turns["turn"] = np.arange(len(session)) - (np.cumsum(num_of) - num_of)[session]
            if config.wait_for_answers:
                turns["arrival_s"] = start_s[session]
                turns["delay_s"][turns["turn"] > 0] = gaps_s
            else:
                turns["arrival_s"] = turn_arrivals(start_s, num_of, gaps_s)
            turns["is_last"] = turns["turn"] == num_of[session] - 1
            turns["num_new_tokens"] = prompt(len(session))
            turns["num_output_tokens"] = output(len(session))
            for name, draw in population.items():
                turns[name] = draw(len(start_s))[session]
            if deadline:
                turns["deadline_s"] = deadline(len(session))
            yield turns
            first_session += len(start_s)

    def _starts(self, streams: Streams) -> Iterator[FloatColumn]:
        """Arrivals, as many as can be needed: no request is without one."""
        left = self.config.num_requests or sys.maxsize
        end_s = self.config.duration_s or math.inf
        for times in self.config.arrivals.times(streams.child("arrivals"), self.batch_size):
            kept = times[: min(left, int(np.searchsorted(times, end_s)))]
            if len(kept):
                yield kept
            left -= len(kept)
            if len(kept) < len(times) or left == 0:
                return

    def _batch(self, turns: Turns, number: int, conversations: Conversations | None) -> RequestBatch:
        config = self.config
        prompt = None if conversations is None else conversations.prompts(turns, number)
        lengths = turns["num_new_tokens"]
        if prompt is not None:
            lengths = np.array([sum(n for _, n in each or ()) for each in prompt], dtype=np.int64)
            if (longest := int(lengths.max(initial=0))) > MAX_TOKENS:
                of = "sessions" if config.sessions else "shared_prefix"
                raise WorkloadError(
                    f"workload.{of}: makes a prompt of {longest:,} tokens; allowed: at most {MAX_TOKENS:,}"
                )
        numbers = np.arange(number, number + len(turns))
        waits = bool(config.sessions and config.wait_for_answers)
        return RequestBatch(
            numbers,
            turns["arrival_s"],
            lengths,
            turns["num_output_tokens"],
            priority=turns["priority"] if config.priorities else None,
            session_id=_names("s", turns["session"]) if config.sessions else None,
            user=_names("u", turns["user"]) if config.users else None,
            deadline_s=turns["deadline_s"] if config.deadlines else None,
            prompt=prompt,
            # The turns of a session stand one behind the other where nobody knows yet when they arrive.
            follows=np.where(turns["turn"] > 0, numbers - 1, -1) if waits else None,
            delay_s=turns["delay_s"] if waits else None,
        )


def _names(letter: str, numbers: IntColumn) -> ObjectColumn:
    return np.array([f"{letter}{number}" for number in numbers.tolist()], dtype=np.object_)
