"""Population: who sends the requests: users, priorities, deadlines, shared prompts, and conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.workload.length_distributions import FixedLengths, Lengths, Sampler, check_weights, picker
from cbsim.workload.request import FloatColumn, IntColumn, Segments
from cbsim.workload.streams import Streams, gamma_times


class SharedPrefix(Section):
    """System prompts that many requests begin with; they come on top of `prompt_tokens`."""

    num_tokens: int = Field(ge=1)
    """Tokens of each system prompt."""
    num_groups: int = Field(default=1, ge=1)
    """How many different system prompts there are, all equally often used."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws which system prompt a request (or session) has."""
        return picker(streams, range(self.num_groups))


class Users(Section):
    """Users `u0`, `u1`, ..., as the `fair` queue order tells them apart."""

    num_users: int = Field(ge=1)
    """How many there are."""
    skew: float = Field(default=0.0, ge=0)
    """Zipf exponent: user k sends requests in proportion to 1 / (k + 1)^skew; 0 is equally many."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws a user's number."""
        weights = 1 / np.arange(1, self.num_users + 1) ** self.skew
        return picker(streams, range(self.num_users), weights)


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
    """Requests in a session."""
    think_time_s: float = Field(default=30.0, gt=0)
    """Mean seconds from a turn's arrival to the next one's, the time to answer and to read included."""
    think_time_cv: float = Field(default=1.0, ge=0)
    """Coefficient of variation of that time, gamma-distributed: 1 is exponential, 0 always the same."""

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
