"""RunLog: what happened in a run, in arrays, and nothing derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

EVENTS = ("arrived", "admitted", "resumed", "preempted", "emitted", "finished", "rejected")
"""Names of the event codes 0, 1, 2, ... in `RunLog.events["event"]`."""
KINDS = ("prefill", "decode")
"""Names of the codes in `RunLog.batches["kind"]`."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The whole record of a run: tables as named columns of equal length.

    NaN stands for an instant that never came, -1 for "no step" and "no replica". Equal runs have equal logs to
    the last bit, whichever engine made them.
    """

    requests: dict[str, Column]
    """One row a request in order of arrival: `request_id` (str objects), `replica`, `arrival_s`,
    `first_scheduled_at_s`, `first_token_at_s`, `finished_at_s`, `num_prompt_tokens`, `num_output_tokens`,
    `num_generated_tokens`, `num_cached_tokens`, `num_preemptions`, `priority`, `state` (RequestState codes),
    `max_itl_s`."""
    steps: dict[str, Column]
    """One row a step in order of (start, replica): the columns of `steps.parquet`, and for MFU and MBU
    `num_attention_pairs` (sum over all slices of (query token, key) pairs, prefill and decode alike),
    `num_context_tokens` (sum over all slices of the KV entries read: context before plus tokens now),
    `num_logits` (rows of logits) and `num_kv_tokens` (KV entries that hold a computed token at the
    step's end, for the waste of reservations)."""
    events: dict[str, Column]
    """In the order they happened: `time_s`, `replica`, `step`, `request` (row in `requests`), `event`
    (codes of `EVENTS`), `num_tokens`."""
    batches: dict[str, Column] | None
    """One row a slice, only on demand: `replica`, `step`, `start_s`, `position`, `request` (row in `requests`),
    `num_tokens`, `num_computed_tokens`, `kind` (codes of `KINDS`)."""
    gap_s: Column
    """Distinct inter-token gaps (values may repeat), seconds."""
    gap_count: Column
    """How many times each gap of `gap_s` occurred."""
    rejections: dict[int, str] = field(default_factory=dict)
    """Row in `requests` -> why it was rejected."""
    num_tokens_recomputed: int = 0
    """Tokens computed again after preemptions."""
    num_prompt_tokens_queried: int = 0
    """Tokens looked up in the prefix cache at admissions; 0 when it is off."""
    num_prompt_tokens_hit: int = 0
    """Tokens found there."""
    end_s: float = 0.0
    """The instant the run ended: the last finish, or where it was stopped."""


def empty_float() -> Column:
    """An empty column of float64."""
    return np.empty(0, dtype=np.float64)
