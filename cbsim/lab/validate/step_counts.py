"""How many steps lie between recorded instants: the counts that agree with every request's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, hstack, identity

from cbsim.lab.validate.server_log import ServerLog
from cbsim.results.run_log import Column

SAME_TIME_S = 1e-6
"""Recorded times this near to each other are one: a server takes its clock once a step."""
TOKEN_COST = 1000.0
"""Of a step more or less than a request has tokens, against one more or less than time says."""
FIRST_TOKEN_COST = 20.0
"""Of a first token that comes a step later or sooner than from the step decided when it was scheduled."""


class Equation(NamedTuple):
    """So many steps lie between two recorded instants, given by index."""

    start: int
    end: int
    num_steps: int
    cost: float
    """Of each step more or less."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the number of steps to a first token depends on."""

    num_in_flight: int
    max_tokens_per_step: int


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
    equations = [
        *_between_tokens(log, instants_s),
        *_to_first_token(log, instants_s, may_be_idle, engine),
    ]
    sums = _sums(equations, num_gaps)
    lowest = np.where(may_be_idle, 0.0, 1.0)
    below = np.maximum(np.floor(expected), lowest)
    # count = below + extra (0 to 1) + more - less; a surplus or a lack of steps breaks an equation.
    slope = 1.0 - 2.0 * np.clip(expected - below, 0.0, 1.0)
    weight = 1.0 / (1.0 + 0.1 * expected)
    costs = [equation.cost for equation in equations]
    unbounded = np.full(num_gaps, np.inf)
    upper = np.concatenate([np.ones(num_gaps), unbounded, below - lowest, np.full(2 * len(costs), np.inf)])
    breaks = identity(len(equations), format="csr")
    found = linprog(
        np.concatenate([weight * slope, weight, weight, costs, costs]),
        A_eq=hstack([sums, sums, -sums, breaks, -breaks], format="csr"),
        b_eq=np.array([equation.num_steps for equation in equations]) - sums @ below,
        bounds=np.column_stack([np.zeros(len(upper)), upper]),
        method="highs",
    )
    extra, more, less = np.split(found.x[: 3 * num_gaps], 3)
    counts: Column = np.round(below + extra + more - less).astype(np.int64)
    return counts


def _sums(equations: Sequence[Equation], num_gaps: int) -> csr_matrix:
    """The left sides: each the sum of the gaps from its start to its end."""
    lengths = [equation.end - equation.start for equation in equations]
    columns = [np.arange(equation.start, equation.end) for equation in equations]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *columns])
    rows = np.repeat(np.arange(len(equations)), lengths)
    return csr_matrix((np.ones(len(flat)), (rows, flat)), shape=(len(equations), num_gaps))


def _between_tokens(log: ServerLog, instants_s: Column) -> Iterator[Equation]:
    """From a request's first token to its last: its tokens less one."""
    starts, ends = (_place(instants_s, times_s) for times_s in (log.first_token_s, log.last_token_s))
    for start, end, num_tokens in zip(starts, ends, log.num_output_tokens.tolist(), strict=True):
        if start < end:
            yield Equation(start, end, num_tokens - 1, TOKEN_COST)


def _to_first_token(
    log: ServerLog, instants_s: Column, may_be_idle: Column, engine: Engine
) -> Iterator[Equation]:
    """From being scheduled to the first token: the prompt's chunks, and the steps under way before them."""
    if log.scheduled_s is None:
        return
    starts, ends = (_place(instants_s, times_s) for times_s in (log.scheduled_s, log.first_token_s))
    num_chunks = -(-log.num_prompt_tokens // engine.max_tokens_per_step)
    for start, end, chunks in zip(starts, ends, num_chunks.tolist(), strict=True):
        if 0 <= start < end:
            is_idle = start == 0 or bool(may_be_idle[start - 1])
            num_steps = chunks + (0 if is_idle else engine.num_in_flight - 1)
            yield Equation(start, end, num_steps, FIRST_TOKEN_COST)


def _place(instants_s: Column, times_s: Column) -> list[int]:
    """The last recorded instant at or before each time, by index."""
    places: list[int] = (np.searchsorted(instants_s, times_s + SAME_TIME_S, side="right") - 1).tolist()
    return places
