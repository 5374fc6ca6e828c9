"""Sessions: conversations of several turns, each prompt holding the earlier prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
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
