"""RunDiagnosis: where the time of a run's requests goes, on average and in the slowest hundredth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_seconds
from cbsim.results.latency import HAND_OVER_PARTS, PARTS, TTFT_PARTS
from cbsim.results.latency.parts import slowest
from cbsim.results.result import Result

_NAMES = {
    "queue": ("waiting for its turn", "its turn"),
    "no_slot": ("waiting for a slot", "slot"),
    "no_kv": ("waiting for KV blocks", "KV blocks"),
    "prefill": ("computing its prompt", "prompt"),
    "recompute": ("computing again what a preemption lost", "again"),
    "others_prefill": ("slowed by others' prompts", "others"),
    "decode": ("decoding", "decodes"),
    "skipped": ("running but passed over", "passed by"),
    "preempted": ("preempted and waiting", "preempted"),
    "swap": ("moving KV blocks to and from the host", "swap"),
    "host": ("the host's own work", "host"),
    "handed_over": ("waiting for room where it decodes", "handed over"),
    "kv_transfer": ("its KV cache on its way", "KV transfer"),
    "decode_queue": ("waiting to decode, its KV cache there", "decode queue"),
}
WORDS = {name: told for name, (told, _) in _NAMES.items()}
SHORT_WORDS = {name: short for name, (_, short) in _NAMES.items()}
"""What each part is, in words, and in a word or two where there is little room."""
LATENCIES = {"ttft": "TTFT", "e2e": "E2E"}
COLUMNS = {"ttft": TTFT_PARTS, "e2e": PARTS | HAND_OVER_PARTS}
"""By the keys of `LATENCIES`: the columns of the parts, as far as a run has them."""
MIN_SHARE = 0.01
"""Smaller parts go unsaid."""
MAX_TOLD = 4


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A latency in parts, seconds: of one request, or the mean over several."""

    total_s: float
    parts_s: Mapping[str, float]
    """By the names of `cbsim.results.latency.PARTS`, the largest first; those that are 0 left out."""

    @property
    def shares(self) -> dict[str, float]:
        """What share of the whole each part is."""
        return {name: part_s / self.total_s for name, part_s in self.parts_s.items()} if self.total_s else {}

    def in_words(self, whole: str) -> str:
        """`71% of it is waiting for KV blocks, 12% decoding`: the largest parts, `whole` for `of it`."""
        told = [(name, share) for name, share in self.shares.items() if share >= MIN_SHARE][:MAX_TOLD]
        if not told:
            return "none of it is known"
        first, *others = (f"{share:.0%} {{}}{WORDS[name]}" for name, share in told)
        return ", ".join([first.format(f"{whole} is "), *(other.format("") for other in others)])

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"total_s": self.total_s, "parts_s": dict(self.parts_s), "shares": self.shares}


def has_parts(result: Result) -> bool:
    """Whether the run has written down where its time went."""
    return set(PARTS.values()) <= set(result.requests.columns)


def check_parts(result: Result, name: str) -> None:
    """Raise `CbsimError` unless the run has written down where its time went."""
    if not has_parts(result):
        raise CbsimError(
            f"{name}: its requests have no part_*_s columns, as those of live runs, former versions and "
            "requests that come again; allowed: --request ID and --steps A:B, which need none"
        )


def breakdown(requests: pd.DataFrame, latency: str) -> Breakdown | None:
    """The mean over requests of `ttft` or `e2e`, in parts; `None` if none has it or its parts."""
    known = requests[requests[f"{latency}_s"].notna()]
    means = {
        name: float(known[column].mean()) for name, column in COLUMNS[latency].items() if column in known
    }
    if not len(known) or not means:
        return None
    largest = sorted(means.items(), key=lambda item: -item[1])
    return Breakdown(float(known[f"{latency}_s"].mean()), {name: s for name, s in largest if s > 0})


@dataclass(frozen=True, slots=True)
class LatencyDiagnosis:
    """One latency: its mean and its tail, in parts."""

    latency: str
    """A key of `LATENCIES`."""
    mean: Breakdown
    p99_s: float
    slowest: Breakdown
    """The mean over the slowest hundredth of the requests."""
    num_slowest: int
    num_slowest_preempted: int

    def sentences(self) -> list[str]:
        """The mean, then the tail."""
        name = LATENCIES[self.latency]
        is_one, num_preempted, preempted = self.num_slowest == 1, self.num_slowest_preempted, ""
        if num_preempted:
            who = "it" if is_one else f"{num_preempted:,} of them"
            preempted = f"; {who} {_was(num_preempted)} preempted"
        requests = "request" if is_one else f"{self.num_slowest:,} requests"
        return [
            f"Mean {name} is {format_seconds(self.mean.total_s)}: {self.mean.in_words('of it')}.",
            f"p99 {name} is {format_seconds(self.p99_s)}: in the slowest {requests}, "
            f"{self.slowest.in_words('of it')}{preempted}.",
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        told = {name: getattr(self, name) for name in self.__slots__ if name != "latency"}
        return told | {"mean": self.mean.to_json(), "slowest": self.slowest.to_json()}


class SlowRequest(NamedTuple):
    """One of the slowest requests."""

    request_id: str
    arrival_s: float
    ttft_s: float
    e2e_s: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    mostly: dict[str, float]
    """The shares of the parts of the latency they are sorted by."""


@dataclass(frozen=True, slots=True)
class RunDiagnosis:
    """What a run's requests spent their time on. Make it with `diagnose_run`."""

    latencies: dict[str, LatencyDiagnosis]
    """By the keys of `LATENCIES`; empty if no request got a token."""
    by: str
    """The latency by which the requests of `slow` are the slowest."""
    slow: list[SlowRequest]
    num_requests: int
    num_preempted: int
    """Requests that were preempted at least once."""
    num_rejected: int
    num_unfinished: int

    def sentences(self) -> list[str]:
        """The diagnosis in words."""
        told = [line for latency in self.latencies.values() for line in latency.sentences()]
        told = told or [f"None of {self.num_requests:,} requests got a token."]
        counts = (self.num_preempted, self.num_rejected, self.num_unfinished)
        named = zip(counts, ("preempted", "rejected", "left unfinished"), strict=True)
        happened = ", ".join(f"{count:,} {_was(count)} {what}" for count, what in named if count)
        return [*told, f"Of {self.num_requests:,} requests {happened}."] if happened else told

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "sentences": self.sentences(),
            **{name: latency.to_json() for name, latency in self.latencies.items()},
            "slowest_by": self.by,
            "slowest": [request._asdict() for request in self.slow],
            **{name: getattr(self, name) for name in self.__slots__ if name.startswith("num_")},
        }


def diagnose_run(result: Result, by: str = "ttft", num_slow: int = 5) -> RunDiagnosis:
    """Where a run's time went, and its slowest requests `by` TTFT or E2E; the run must have its parts."""
    requests = result.measured
    latencies = {name: _diagnose(requests, name) for name in LATENCIES}
    known = {name: latency for name, latency in latencies.items() if latency is not None}
    rows = requests.iloc[slowest(requests[f"{by}_s"].to_numpy(float), share=1.0)[:num_slow]]
    num_in = requests["state"].astype(str).value_counts()
    return RunDiagnosis(
        latencies=known,
        by=by,
        slow=[_slow_request(rows[place : place + 1], by) for place in range(len(rows))],
        num_requests=len(requests),
        num_preempted=int((requests["num_preemptions"] > 0).sum()),
        num_rejected=int(num_in.get("rejected", 0)),
        num_unfinished=int(num_in.get("unfinished", 0)),
    )


def _diagnose(requests: pd.DataFrame, latency: str) -> LatencyDiagnosis | None:
    latency_s = requests[f"{latency}_s"].to_numpy(float)
    tail = requests.iloc[slowest(latency_s)]
    mean, of_tail = breakdown(requests, latency), breakdown(tail, latency)
    if mean is None or of_tail is None:
        return None
    num_preempted = int((tail["num_preemptions"] > 0).sum())
    p99_s = float(requests[f"{latency}_s"].quantile(0.99))
    return LatencyDiagnosis(latency, mean, p99_s, of_tail, len(tail), num_preempted)


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _slow_request(row: pd.DataFrame, by: str) -> SlowRequest:
    columns = row[list(SlowRequest._fields[:-1])].astype(object)
    parts = breakdown(row, by)
    values = columns.where(columns.notna(), None).iloc[0]
    return SlowRequest._make([*values, parts.shares if parts else {}])
