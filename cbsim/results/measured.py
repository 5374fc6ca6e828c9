"""Measured: which requests a run's figures are about, and the record of these alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.results.run_log import Column, RunLog, Slices

_KEPT = (
    *("replica", "arrival_s", "first_scheduled_at_s", "first_token_at_s", "finished_at_s"),
    *("num_prompt_tokens", "num_output_tokens", "num_generated_tokens", "num_cached_tokens"),
    *("num_preemptions", "priority", "state", "max_itl_s"),
)
"""The columns of requests that figures are made from."""


class MeasureConfig(Section):
    """Which requests the figures are about, by their arrivals. The others are simulated all the same, and
    stand in the tables of the run folder.
    """

    warmup_requests: int = Field(default=0, ge=0)
    """The first so many requests are left out."""
    warmup_s: float = Field(default=0.0, ge=0)
    """Requests that arrive in the first so many seconds after the first one are left out."""
    from_s: float | None = Field(default=None, ge=0)
    """Requests that arrive before this instant are left out, seconds of simulated time."""
    to_s: float | None = Field(default=None, gt=0)
    """Requests that arrive at this instant or later are left out, and time is measured up to here."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.to_s is not None and self.from_s is not None and self.to_s <= self.from_s:
            raise ValueError(f"to_s: got {self.to_s:g}; allowed: more than from_s, {self.from_s:g}")
        return self

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return self != MeasureConfig()

    def rows(self, arrival_s: Column) -> slice:
        """The requests measured, of all in order of arrival."""
        if not len(arrival_s):
            return slice(0, 0)
        from_s = max(float(arrival_s[0]) + self.warmup_s, self.from_s or 0.0)
        first = max(self.warmup_requests, int(np.searchsorted(arrival_s, from_s)))
        last = len(arrival_s) if self.to_s is None else int(np.searchsorted(arrival_s, self.to_s))
        return slice(min(first, last), last)

    def faster(self, factor: float) -> MeasureConfig:
        """The same for arrivals that come `factor` times as fast."""
        given = {name: getattr(self, name) for name in ("warmup_s", "from_s", "to_s")}
        scaled = {name: None if time_s is None else time_s / factor for name, time_s in given.items()}
        return self.model_copy(update=scaled)

    def notes(self, arrival_s: Column) -> list[str]:
        """What is left out; nothing where nothing is."""
        if not self:
            return []
        rows = self.rows(arrival_s)
        num_all, num_measured = len(arrival_s), rows.stop - rows.start
        if not num_measured:
            return [f"measure leaves out all of {num_all:,} requests: there are no figures"]
        first_s, last_s = arrival_s[rows.start], arrival_s[rows.stop - 1]
        return [
            f"figures are about {num_measured:,} of {num_all:,} requests, which arrive from {first_s:.6g} to "
            f"{last_s:.6g} s; the others are simulated too (measure)"
        ]


def measured_log(log: RunLog, measure: MeasureConfig) -> RunLog:
    """The record of the requests measured alone, for figures; `log` itself where nothing is left out.

    Steps are those that begin from the first arrival measured on, up to `to_s` or the end of the run. Tokens
    recomputed are known of all requests together only, and so of none here; gaps between tokens are told
    where each step gives a request one token at most.
    """
    if not measure:
        return log
    rows = measure.rows(log.requests["arrival_s"])
    requests = {name: log.requests[name][rows] for name in _KEPT}
    arrival_s = requests["arrival_s"]
    begin_s = float(arrival_s[0]) if len(arrival_s) else np.inf
    end_s = log.end_s if measure.to_s is None else min(log.end_s, measure.to_s)
    start_s = log.steps["start_s"]
    chosen = np.flatnonzero((start_s >= begin_s) & (start_s < end_s))
    is_admitted = ~np.isnan(requests["first_scheduled_at_s"])
    num_queried = (
        int(requests["num_prompt_tokens"][is_admitted].sum()) if log.num_prompt_tokens_queried else 0
    )
    parts, of = log.parts, log.events["request"]
    return replace(
        log,
        requests=requests,
        steps=Rows(log.steps, chosen),
        events=Rows(log.events, np.flatnonzero((of >= rows.start) & (of < rows.stop))),
        gaps=[] if parts is None or log.slices is None else list(gaps_of(log.steps, log.slices, rows)),
        rejections={
            row - rows.start: why for row, why in log.rejections.items() if rows.start <= row < rows.stop
        },
        num_tokens_recomputed=None,
        num_prompt_tokens_queried=num_queried,
        num_prompt_tokens_hit=int(requests["num_cached_tokens"].sum()) if num_queried else 0,
        end_s=max(float(end_s), begin_s) if len(arrival_s) else float(end_s),
        parts=None if parts is None else Rows(parts, rows),
        visits=None if log.visits is None else _visits(log.visits, rows),
    )


def _visits(visits: Mapping[str, Column], rows: slice) -> Rows:
    """Those of the requests measured."""
    return Rows(visits, np.flatnonzero((visits["request"] >= rows.start) & (visits["request"] < rows.stop)))


class Rows(Mapping[str, Column]):
    """Some rows of a table, each column taken when it is asked for."""

    def __init__(self, columns: Mapping[str, Column], rows: Column | slice) -> None:
        self._columns = columns
        self._rows = rows

    def __getitem__(self, name: str) -> Column:
        return self._columns[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns


def gaps_of(steps: Mapping[str, Column], slices: Slices, rows: slice) -> Iterator[tuple[Column, Column]]:
    """The gaps between tokens of the requests in `rows`, in pieces as `RunLog.gaps` has them.

    Within a run of decodes a request gets a token at the end of each step that decodes; between such runs,
    and after the prompt, the gap reaches from the last token before to the first one after.
    """
    prefills, decodes = slices.prefills, slices.decodes
    runs: list[list[Column]] = []
    for replica in np.unique(steps["replica"]):
        here = steps["replica"] == replica
        end_s, number = (steps["start_s"] + steps["duration_s"])[here], steps["step"][here]
        is_decoding = steps["num_decode_seqs"][here] > 0
        decoding, decoded_at_s = number[is_decoding], end_s[is_decoding]
        own = _chosen(decodes, rows, decodes["replica"] == replica)
        first = np.searchsorted(decoding, own["first_step"])
        last = np.searchsorted(decoding, own["last_step"], side="right") - 1
        has_any = first <= last
        first, last, request = first[has_any], last[has_any], own["request"][has_any]
        changes = np.zeros(len(decoding) + 1, dtype=np.int64)
        np.add.at(changes, first + 1, 1)
        np.add.at(changes, last + 1, -1)
        count = np.cumsum(changes)[1:-1] if len(decoding) else changes[:0]
        is_gap = count > 0
        yield np.diff(decoded_at_s)[is_gap], count[is_gap]
        emitted = _chosen(prefills, rows, (prefills["replica"] == replica) & (prefills["emits"] > 0))
        emitted_at_s = end_s[np.searchsorted(number, emitted["step"])]
        runs.append([request, decoded_at_s[first], decoded_at_s[last]])
        runs.append([emitted["request"], emitted_at_s, emitted_at_s])
    if runs:
        of, from_s, to_s = (np.concatenate(columns) for columns in zip(*runs, strict=True))
        order = np.lexsort((from_s, of))
        follows = of[order][1:] == of[order][:-1]
        between_s = (from_s[order][1:] - to_s[order][:-1])[follows]
        yield between_s, np.ones(len(between_s), dtype=np.int64)


def _chosen(table: Mapping[str, Column], rows: slice, is_here: Column) -> dict[str, Column]:
    """The rows of a table of slices that are of the requests measured."""
    request = table["request"]
    chosen = np.flatnonzero(is_here & (request >= rows.start) & (request < rows.stop))
    return {name: column[chosen] for name, column in table.items()}
