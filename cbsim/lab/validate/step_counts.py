"""How many steps lie between recorded instants: what a replay expects, made to agree with the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack, identity

from cbsim.lab.validate.server_log import ServerLog
from cbsim.results.run_log import Column

SAME_TIME_S = 1e-6
"""Recorded times this near to each other are one: a server takes its clock once a step."""
TAKEN_WITHIN_S = 2e-3
"""A request taken or scheduled so soon after a recorded token was so at the end of that token's step."""
TOKEN_COST = 1000.0
"""Of a step more or less than a request has tokens, against one more or less than time says."""
FIRST_TOKEN_COST = 20.0
"""Of a first token that comes a step later or sooner than from the step decided when it was scheduled."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the number of steps to a first token depends on."""

    num_in_flight: int
    max_tokens_per_step: int


class Gaps:
    """What a replay finds between one recorded instant, at which a step ended, and the next."""

    def __init__(self, log: ServerLog) -> None:
        self.instants_s = recorded_instants(log)
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

    def counts(self, log: ServerLog, engine: Engine) -> Column:
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
        return count_steps(log, self.instants_s, expected, self.num_steps == 0, engine)


def recorded_instants(log: ServerLog) -> Column:
    """Every instant at which a step ended for sure, rising.

    A request is first scheduled at the end of a step too, but for one that finds the engine idle.
    """
    every = np.concatenate([log.first_token_s, log.last_token_s, *(log.token_times_s or ())])
    tokens_s: Column = np.unique(every)
    tokens_s = tokens_s[np.append(True, np.diff(tokens_s) > SAME_TIME_S)]
    if log.scheduled_s is None:
        return tokens_s
    last_s = np.append(-math.inf, tokens_s)[np.searchsorted(tokens_s, log.scheduled_s, side="right")]
    is_apart = log.scheduled_s - last_s > TAKEN_WITHIN_S
    return np.unique(np.concatenate([tokens_s, log.scheduled_s[is_apart]]))


def waiting_since(log: ServerLog) -> Column:
    """When each request stood in the queue as the scheduler saw it.

    Only recorded instants are known to be ends of steps. A request that came after the last of them before it
    was scheduled is taken to have come just when it was scheduled: the ends between are estimates.
    """
    taken_s = log.sent_s if log.queued_s is None else log.queued_s
    if log.scheduled_s is None:
        return taken_s
    instants_s = recorded_instants(log)
    num_until = _num_until(instants_s, log.scheduled_s)
    ends_s = np.append(-math.inf, instants_s)
    is_late = (num_until > 0) & (taken_s > ends_s[np.maximum(num_until - 1, 0)])
    since_s: Column = np.where(is_late, ends_s[num_until], taken_s)
    order = np.argsort(taken_s, kind="stable")
    since_s[order] = np.maximum.accumulate(since_s[order])  # Nobody overtakes.
    return since_s


def count_steps(
    log: ServerLog, instants_s: Column, expected: Column, may_be_idle: Column, engine: Engine
) -> Column:
    """Steps from each recorded instant to the next: whole numbers, as near as can be to `expected`.

    A request that runs undisturbed gets a token in every step, so between its first and its last lie as many
    steps as it has tokens less one: one equation over consecutive instants for each request. With costs
    linear between whole numbers such a system (its rows are intervals: totally unimodular) has a whole
    optimum, which linear programming finds; equations that can't hold together, as after preemptions, are
    broken by as few steps as possible. Where `may_be_idle` a count may be 0, elsewhere it is at least 1.
    """
    num_gaps = len(instants_s) - 1
    starts, ends, num_steps, costs = _equations(log, instants_s, may_be_idle, engine)
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
    extra, more, less = np.split(found.x[: 3 * num_gaps], 3)
    counts: Column = np.round(below + extra + more - less).astype(np.int64)
    return counts


def _equations(
    log: ServerLog, instants_s: Column, may_be_idle: Column, engine: Engine
) -> tuple[Column, Column, Column, Column]:
    """Start and end by index of instant, the number of steps between, the cost of each more or less."""
    first, last = (_num_until(instants_s, at_s) - 1 for at_s in (log.first_token_s, log.last_token_s))
    parts = [(first, last, log.num_output_tokens - 1, np.full(len(log), TOKEN_COST))]
    if log.scheduled_s is not None:
        # From being scheduled to the first token: the prompt's chunks, and the steps under way before them.
        start = _num_until(instants_s, log.scheduled_s) - 1
        num_chunks = -(-log.num_prompt_tokens // engine.max_tokens_per_step)
        is_idle = (start == 0) | may_be_idle[np.maximum(start - 1, 0)]
        num_steps = num_chunks + np.where(is_idle, 0, engine.num_in_flight - 1)
        parts.append((start, first, num_steps, np.full(len(log), FIRST_TOKEN_COST)))
    starts, ends, num_steps, costs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kept = (starts >= 0) & (starts < ends)
    return starts[kept], ends[kept], num_steps[kept], costs[kept]


def _num_until(instants_s: Column, times_s: Column | float) -> Column:
    """How many recorded instants lie at or before each time."""
    num_until: Column = np.searchsorted(instants_s, np.asarray(times_s) + SAME_TIME_S, side="right")
    return num_until
