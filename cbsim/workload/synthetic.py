"""The `synthetic` workload: requests drawn from distributions, as many as wanted, never all in memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.workload.arrivals import AllAtOnceArrivals, Arrivals, ConstantArrivals
from cbsim.workload.length_distributions import FixedLengths, Lengths, Traces
from cbsim.workload.lookup import find_trace, trace_paths
from cbsim.workload.population import (
    TURN,
    Conversations,
    Deadlines,
    Priorities,
    Sessions,
    SharedPrefix,
    Turns,
    Users,
    in_order,
    turn_arrivals,
)
from cbsim.workload.request import BATCH_SIZE, FloatColumn, IntColumn, ObjectColumn, RequestBatch
from cbsim.workload.request_source import MAX_REQUESTS, Trim, Workload, WorkloadConfig
from cbsim.workload.streams import Streams

if TYPE_CHECKING:
    from cbsim.workload.trace_reader import TraceTable

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
            if self.limit is None and self._mean_requests > MAX_REQUESTS:
                raise ValueError(
                    f"synthetic workload: duration_s = {self.duration_s:g} brings {self._mean_requests:.3g} "
                    f"requests; allowed: at most {MAX_REQUESTS:,}, or a limit"
                )
            return self

        @property
        def _mean_requests(self) -> float:
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
            num_of = num_turns(len(start_s))
            session = np.repeat(np.arange(len(start_s)), num_of)
            turns = np.zeros(len(session), TURN)
            gaps_s = sessions.gaps(gaps, len(session) - len(start_s))
            turns["arrival_s"] = turn_arrivals(start_s, num_of, gaps_s)
            turns["session"] = first_session + session
            turns["turn"] = np.arange(len(session)) - (np.cumsum(num_of) - num_of)[session]
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
        return RequestBatch(
            np.arange(number, number + len(turns)),
            turns["arrival_s"],
            lengths,
            turns["num_output_tokens"],
            priority=turns["priority"] if config.priorities else None,
            session_id=_names("s", turns["session"]) if config.sessions else None,
            user=_names("u", turns["user"]) if config.users else None,
            deadline_s=turns["deadline_s"] if config.deadlines else None,
            prompt=prompt,
        )


def _names(letter: str, numbers: IntColumn) -> ObjectColumn:
    return np.array([f"{letter}{number}" for number in numbers.tolist()], dtype=np.object_)
