"""RunLog: the whole record of a run in arrays, nothing derived, and what its codes mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

EVENTS = (
    *("arrived", "admitted", "resumed", "preempted", "emitted", "finished", "rejected"),
    *("load_started", "loaded", "read", "sent", "failed", "handed_over"),
)
"""Names of the event codes 0, 1, 2, ... of the core (`core.layout`) in `RunLog.events["event"]`."""
ARRIVED, ADMITTED, RESUMED, PREEMPTED, EMITTED, FINISHED, REJECTED = range(7)
LOADED, SENT, FAILED, HANDED_OVER = map(EVENTS.index, ("loaded", "sent", "failed", "handed_over"))
CHANGES = ("started", "ready", "draining", "stopped", "failed", "repaired", "slowed", "restored")
"""Names of the codes in `RunLog.changes["change"]`."""
KINDS = ("prefill", "decode")
"""Names of the codes in `RunLog.batches["kind"]`."""


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of the steps that have ended, of one replica or of all.

    Two engines may cut `decodes` differently; what these say is the same.
    """

    prefills: Mapping[str, Column]
    """One row a prompt slice, or a decode with drafts, by replica and in the order of its steps: `replica`,
    `step`, `request` (row in `RunLog.requests`), `num_tokens`, `num_computed_tokens` (before the step),
    `emits` (1 if a token came out) and `is_prefill`."""
    decodes: Mapping[str, Column]
    """Runs of decodes: `replica`, `request`, `first_step`, `last_step`. In each step of the run that decodes
    anything at all, the request decodes one token. No run reaches over a preemption of its request."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The whole record of a run: tables as named columns of equal length.

    NaN stands for an instant that never came, -1 for "no step" and "no replica". Equal runs have equal logs
    to the last bit, whichever engine made them.
    """

    requests: Mapping[str, Column]
    """One row a request in order of arrival: `request_id` (str objects), `replica`, `arrival_s`,
    `first_scheduled_at_s`, `first_token_at_s`, `finished_at_s`, `num_prompt_tokens`, `num_output_tokens`,
    `num_generated_tokens`, `num_cached_tokens`, `num_preemptions`, `priority`, `state` (RequestState codes),
    `max_itl_s`."""
    steps: Mapping[str, Column]
    """One row a step in order of (start, replica): the columns of `steps.parquet`, and for MFU and MBU
    `num_attention_pairs` (sum over all slices of (query token, key) pairs, prefill and decode alike),
    `num_context_tokens` (sum over all slices of the KV entries read: context before plus tokens now),
    `num_logits` (rows of logits) and `num_kv_tokens` (KV entries of running requests computed by the
    step's end, for the waste of reservations). With speculative decoding `num_drafts` were verified and
    `num_accepted` of them right; `skips_drafts` is 1 if the drafter did not run, as nobody could use
    drafts. Where some layers have a window, `num_window_pairs` and `num_window_keys` are their
    `num_attention_pairs` and `num_context_tokens`. Where there are `slices`, also `transfer_s` (seconds of
    the step spent moving KV blocks to and from host memory), `waiting_for` (codes of `core.layout`: what the
    head of the queue lacked), `max_decode_context` (0 in steps without chunks) and `num_shared_tokens` (of
    the decodes' contexts, in KV blocks that others hold too)."""
    events: Mapping[str, Column]
    """In the order they happened: `time_s`, `replica`, `step`, `request` (row in `requests`), `event`
    (codes of `EVENTS`), `num_tokens`."""
    batches: dict[str, Column] | None
    """One row a slice, only on demand: `replica`, `step`, `start_s`, `position`, `request` (row in
    `requests`), `num_tokens`, `num_computed_tokens`, `kind` (codes of `KINDS`), `num_drafts`,
    `num_accepted`, `is_padded`."""
    gaps: Iterable[tuple[Column, Column]]
    """The gaps between tokens in pieces `(seconds, how often each occurred)`, in any order."""
    rejections: dict[int, str] = field(default_factory=dict)
    """Row in `requests` -> why it was rejected."""
    num_tokens_recomputed: int | None = 0
    """Tokens computed again after preemptions; `None` where they are not known of these requests alone."""
    num_prompt_tokens_queried: int = 0
    """Tokens looked up in the prefix cache at first admissions; 0 when it is off."""
    num_prompt_tokens_hit: int = 0
    """Tokens found there."""
    num_padding_tokens: int = 0
    """Tokens computed only to fill padded batches."""
    end_s: float = 0.0
    """The instant the run ended: the last finish, or where it was stopped."""
    front_end_s: float = 0.0
    """What clients wait for besides the engine; no instant of this record has it in it."""
    slices: Slices | None = None
    """Who was in which step; `None` where the engine does not tell."""
    has_drafts: bool = False
    """Whether drafts were verified (speculative decoding)."""
    parts: Mapping[str, Column] | None = None
    """Where each request's time went (`results.latency`), made when asked for; `None` without `slices`."""
    visits: Mapping[str, Column] | None = None
    """One row a request and replica that it came to, in that order: `request` (row in `requests`), `replica`,
    `arrived_at_s`, `admitted_at_s`, `left_at_s`, `num_prefill_tokens`,
    `num_output_tokens` and `state` (RequestState codes). `None` where each came to one alone."""
    changes: Mapping[str, Column] | None = None
    """One row a change of a replica, in the order they happened: `time_s`, `replica`, `change` (codes of
    `CHANGES`). `None` where none can change."""
    num_tokens_from_tiers: Mapping[str, int] = field(default_factory=dict)
    """Tokens that tiers of KV below the GPU brought, by their names."""
    losses: Mapping[str, int] = field(default_factory=dict)
    """How many visits ended before their time, by why, and how many followed on such ones."""
    pools: tuple[tuple[str, str], ...] = (("default", "both"),)
    """Name and role of each pool of equal replicas."""
    pool_of: Column | None = None
    """Place in `pools` of each replica; `None` where there is one pool."""

    def paid_s(self, from_s: float) -> Column:
        """Seconds from an instant to the end in which each replica was there, or was on its way."""
        assert self.changes is not None
        assert self.pool_of is not None
        paid_s, since_s = np.zeros(len(self.pool_of)), np.full(len(self.pool_of), np.nan)
        stopped = CHANGES.index("stopped")
        for time_s, replica, change in zip(
            *(self.changes[name].tolist() for name in ("time_s", "replica", "change")), strict=True
        ):
            if change == stopped:
                paid_s[replica] += max(0.0, time_s - since_s[replica])
                since_s[replica] = np.nan
            elif np.isnan(since_s[replica]):
                since_s[replica] = max(from_s, time_s)
        still_s: Column = np.nan_to_num(np.maximum(self.end_s - since_s, 0.0))
        return paid_s + still_s

    def pools_of(self, replica: Column) -> Column:
        """The place in `pools` of each of some replicas; -1 for none."""
        if self.pool_of is None:
            return np.zeros(len(replica), dtype=np.int8)
        return np.where(replica >= 0, self.pool_of[replica], -1)


def distinct_gaps(gaps: Iterable[tuple[Column, Column]]) -> tuple[Column, Column]:
    """The distinct gaps of all pieces, rising, and how often each occurred."""
    several = [(np.empty(0), np.empty(0, dtype=np.int64)), *gaps]
    gap_s, count = (np.concatenate(columns) for columns in zip(*several, strict=True))
    distinct_s, place = np.unique(gap_s, return_inverse=True)
    total = np.zeros(len(distinct_s), dtype=np.int64)
    np.add.at(total, place, count)
    return distinct_s, total


WINDOW_STEP_COLUMNS = ("num_window_pairs", "num_window_keys")
"""Columns of `RunLog.steps` that are there where some layers have a window."""


def event_columns(
    requests: Mapping[str, Column],
    recorded: dict[str, Column],
    rejections: Iterable[int],
    *,
    answers_first: bool = False,
) -> dict[str, Column]:
    """The table `RunLog.events`, in the order of time; empties `recorded`, so that nothing is held twice.

    At one instant: arrivals in their order, then results, then decisions, each by replica; with
    `answers_first`, as for clients that send when they are answered, results come before arrivals.
    """
    arrived, rejected = (
        np.arange(len(requests["arrival_s"]), dtype=np.int32),
        np.array(sorted(rejections), np.int32),
    )
    request, num_outside = np.concatenate([arrived, rejected]), len(arrived) + len(rejected)
    outside = {
        "time_s": requests["arrival_s"][request],
        "replica": requests["replica"][request],
        "step": np.full(num_outside, -1, np.int32),
        "request": request,
        "event": np.repeat(np.array([ARRIVED, REJECTED], np.int32), [len(arrived), len(rejected)]),
        "num_tokens": np.zeros(num_outside, np.int32),
    }
    columns = {name: np.concatenate([column, recorded.pop(name)]) for name, column in outside.items()}
    is_result = np.isin(columns["event"], (EMITTED, FINISHED, LOADED, SENT, FAILED, HANDED_OVER))
    phase = np.where(is_result, 1, 3).astype(np.int8)
    phase[:num_outside] = 2 if answers_first else 0
    place, by_replica = columns["request"].copy(), columns["replica"].copy()
    place[num_outside:] = 0
    by_replica[:num_outside] = 0
    order = np.lexsort((place, by_replica, phase, columns["time_s"]))
    for name in columns:
        columns[name] = columns[name][order]
    return columns


class Deferred(Mapping[str, Column]):
    """Columns that are made when the first of them is asked for, and others that are known before."""

    def __init__(
        self, make: Callable[[], dict[str, Column]], known: Mapping[str, Column] | None = None
    ) -> None:
        self._make = make
        self._known = known or {}

    @cached_property
    def _columns(self) -> dict[str, Column]:
        return {**self._known, **self._make()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, name: str) -> Column:
        return self._known[name] if name in self._known else self._columns[name]
