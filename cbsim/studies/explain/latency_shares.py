"""Parts: what TTFT and E2E are made of, over one request or many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.results.latency import PARTS, TTFT_PARTS
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
}
WORDS = {name: told for name, (told, _) in _NAMES.items()}
SHORT_WORDS = {name: short for name, (_, short) in _NAMES.items()}
"""What each part is, in words, and in a word or two where there is little room."""
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
    """The mean over requests of `ttft` or `e2e`, in parts; `None` if none has it or its parts."""
    known = requests[requests[f"{latency}_s"].notna()]
    if not len(known) or not {*COLUMNS[latency].values()} <= {*requests.columns}:
        return None
    means = {name: float(known[column].mean()) for name, column in COLUMNS[latency].items()}
    largest = sorted(means.items(), key=lambda item: -item[1])
    return Breakdown(float(known[f"{latency}_s"].mean()), {name: s for name, s in largest if s > 0})
