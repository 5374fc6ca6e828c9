"""Sessions: conversations of several turns, each prompt holding the earlier prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from pydantic import Field

from cbsim.config.section import Section
from cbsim.workload.length_distributions import FixedLengths, Lengths
from cbsim.workload.request import Segments
from cbsim.workload.request_batch import FloatColumn, IntColumn
from cbsim.workload.think import gamma_times


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


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns of sessions as columns of equal length. A request without sessions is a session of one turn."""

    arrival_s: FloatColumn
    session: IntColumn
    turn: IntColumn
    """Place in the session, from 0."""
    is_last: IntColumn
    """1 for the last turn of its session."""
    num_new_tokens: IntColumn
    """Prompt tokens that this turn adds."""
    num_output_tokens: IntColumn
    priority: IntColumn
    user: IntColumn
    group: IntColumn
    """Which system prompt the session begins with."""
    deadline: IntColumn
    """Place of the deadline in the list of them."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def take(self, rows: IntColumn) -> Turns:
        """The turns of some rows."""
        return Turns(*(getattr(self, field.name)[rows] for field in fields(self)))

    def followed_by(self, other: Turns) -> Turns:
        """These turns, then others."""
        return Turns(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


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
    held: Turns | None = None
    for part in parts:
        held = part if held is None else held.followed_by(part)
        held = held.take(np.lexsort((held.turn, held.session, held.arrival_s)))
        last_start_s = part.arrival_s[part.turn == 0].max()
        num_ready = int(np.searchsorted(held.arrival_s, last_start_s))
        if num_ready:
            yield held.take(np.arange(num_ready))
            held = held.take(np.arange(num_ready, len(held)))
    if held is not None and len(held):
        yield held


class Conversations:
    """The prompts of sessions under way, as segments; a session is forgotten with its last turn."""

    def __init__(self, num_prefix_tokens: int) -> None:
        self._num_prefix_tokens = num_prefix_tokens
        self._said: dict[int, Segments] = {}

    def prompts(self, turns: Turns, first_number: int) -> list[Segments | None]:
        """The prompt of each turn, in order of arrival; the requests are `r<first_number>` and on."""
        columns = (turns.session, turns.num_new_tokens, turns.num_output_tokens, turns.is_last, turns.group)
        rows = zip(*(column.tolist() for column in columns), strict=True)
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
