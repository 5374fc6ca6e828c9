"""Parts: what TTFT and E2E are made of, over one request or many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.results.latency import PARTS, TTFT_PARTS
from cbsim.results.result import Result

WORDS = {
    "queue": "waiting for its turn",
    "no_slot": "waiting for a slot",
    "no_kv": "waiting for KV blocks",
    "prefill": "computing its prompt",
    "recompute": "computing again what a preemption lost",
    "others_prefill": "slowed by others' prompts",
    "decode": "decoding",
    "skipped": "running but passed over",
    "preempted": "preempted and waiting",
    "swap": "moving KV blocks to and from the host",
    "host": "the host's own work",
}
"""What each part is, in words."""
LATENCIES = {"ttft": "TTFT", "e2e": "E2E"}
COLUMNS = {"ttft": TTFT_PARTS, "e2e": PARTS}
"""By the keys of `LATENCIES`: the columns of the parts."""
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
            f"{name}: its requests have no part_*_s columns, as those of live runs and former versions; "
            "allowed: --request ID and --steps A:B, which need none"
        )


def breakdown(requests: pd.DataFrame, latency: str) -> Breakdown | None:
    """The mean over requests of `ttft` or `e2e`, in parts; `None` if none of them has it."""
    known = requests[requests[f"{latency}_s"].notna()]
    if not len(known):
        return None
    means = {name: float(known[column].mean()) for name, column in COLUMNS[latency].items()}
    largest = sorted(means.items(), key=lambda item: -item[1])
    return Breakdown(float(known[f"{latency}_s"].mean()), {name: s for name, s in largest if s > 0})
