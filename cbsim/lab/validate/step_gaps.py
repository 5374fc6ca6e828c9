"""Gaps: the times between recorded instants, at each of which a step ended, and the steps that fill them."""

from __future__ import annotations

import math

import numpy as np

from cbsim.lab.validate.server_log import ServerLog
from cbsim.lab.validate.step_counts import SAME_TIME_S, Engine, count_steps
from cbsim.results.run_log import Column

TAKEN_WITHIN_S = 2e-3
"""A request taken or scheduled so soon after a recorded token was so at the end of that token's step."""


class Gaps:
    """What a replay finds between one recorded instant and the next."""

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
        return int(np.searchsorted(self.instants_s, at_s + SAME_TIME_S, side="right")) - 1

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
        expected = (
            np.where(fits, self._num_others, 0) + np.where(fits, gaps_s - self._others_s, 0.0) / decode_s
        )
        return count_steps(log, self.instants_s, expected, self.num_steps == 0, engine)


def recorded_instants(log: ServerLog) -> Column:
    """Every instant at which a step ended for sure, rising.

    A request is first scheduled at the end of a step too, but for one that finds the engine idle.
    """
    every = np.concatenate([log.first_token_s, log.last_token_s, *(log.token_times_s or ())])
    tokens_s: Column = np.unique(every)
    apart = np.append(True, np.diff(tokens_s) > SAME_TIME_S)
    tokens_s = tokens_s[apart]
    if log.scheduled_s is None:
        return tokens_s
    is_apart = log.scheduled_s - _last_before(tokens_s, log.scheduled_s) > TAKEN_WITHIN_S
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
    at = np.searchsorted(instants_s, log.scheduled_s + SAME_TIME_S, side="right") - 1
    before_s = np.where(at > 0, instants_s[np.maximum(at - 1, 0)], -math.inf)
    since_s: Column = np.where((at >= 0) & (taken_s > before_s), instants_s[np.maximum(at, 0)], taken_s)
    order = np.argsort(taken_s, kind="stable")
    since_s[order] = np.maximum.accumulate(since_s[order])  # Nobody overtakes.
    return since_s


def _last_before(rising_s: Column, times_s: Column) -> Column:
    """The last of some instants at or before each time; minus infinity where there is none."""
    place = np.searchsorted(rising_s, times_s, side="right") - 1
    last_s: Column = np.where(place >= 0, rising_s[np.maximum(place, 0)], -math.inf)
    return last_s
