"""Formats: which columns each kind of trace file has, what they mean, and how a file's format is told."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cbsim.base.units import MS_PER_S, NS_PER_S
from cbsim.workload.table import Mistakes
from cbsim.workload.values import (
    COUNTS,
    IDS,
    INSTANT,
    MAX_EXACT,
    MAX_TOKENS,
    SEGMENTS,
    TEXT,
    Kind,
    real,
    whole,
)

_TOKENS = whole(1, MAX_TOKENS)
_SECONDS = real("seconds")


class Column(NamedTuple):
    """A column of a file: its name there and what may stand in it."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Format:
    """How a kind of file says what a request is."""

    name: str
    arrival: Column
    prompt_tokens: str
    output_tokens: str
    ticks_per_s: int = 1
    """Units of the arrival column in a second."""
    has_absolute_clock: bool = False
    """Whether arrivals are dates, so that time counts from the first of them."""
    drops_failures: bool = False
    """Whether an answer of 0 tokens is a failed request, to be left out."""
    optional: dict[str, Column] = field(default_factory=dict)
    """Columns that a file may lack, by their names in `TraceTable`."""
    unit_may_slip: bool = False
    """Whether scripts of users write such files, so that arrivals may be in another unit than they should."""
    notes_unused: bool = False
    """Whether to say which columns weren't used: in a format of our own they are likely slips."""

    @property
    def required(self) -> dict[str, Column]:
        """The columns every file of this format has, by their names in `TraceTable`."""
        output = whole(0, MAX_TOKENS) if self.drops_failures else _TOKENS
        return {
            "arrival_s": self.arrival,
            "num_prompt_tokens": Column(self.prompt_tokens, _TOKENS),
            "num_output_tokens": Column(self.output_tokens, output),
        }


EXTRAS = {
    "accepted": (COUNTS, "accepted"),
    "proposed": (COUNTS, "proposed"),
    "remote_prefill": (whole(0, 1, absent=0), "is_remote_prefill"),
    "load_s": (real("seconds", absent=0.0), "load_s"),
    "remote_decode": (whole(0, 1, absent=0), "is_remote_decode"),
    "send_s": (real("seconds", absent=0.0), "send_s"),
    "tier_tokens": (whole(0, MAX_TOKENS, absent=0), "num_tier_tokens"),
    "fail_from_block": (whole(-1, MAX_TOKENS, absent=-1), "first_bad_block"),
}
"""Columns for speculation and KV connectors: what may stand there, and the request's field in the core.

`accepted`, `proposed`: drafts accepted and proposed the first time, the second and so on, and from the
beginning again behind the last. `remote_prefill`, `load_s`: whether the prompt's KV is elsewhere, and seconds
until it is here. `remote_decode`, `send_s`: whether the answer is decoded elsewhere, and seconds until its KV
is fetched. `tier_tokens`: leading tokens that a tier below the GPU holds. `fail_from_block`: the block from
which the first transfer fails, -1 if it does not.
"""

FORMATS = (
    Format(
        "azure",
        Column("TIMESTAMP", INSTANT),
        "ContextTokens",
        "GeneratedTokens",
        ticks_per_s=NS_PER_S,
        has_absolute_clock=True,
    ),
    Format(
        "mooncake",
        Column("timestamp", real("milliseconds")),
        "input_length",
        "output_length",
        ticks_per_s=MS_PER_S,
        optional={"contents": Column("hash_ids", IDS)},
    ),
    Format(
        "burstgpt",
        Column("Timestamp", _SECONDS),
        "Request tokens",
        "Response tokens",
        drops_failures=True,
        optional={"session_id": Column("Session ID", TEXT)},
    ),
    Format(
        "vidur", Column("arrived_at", _SECONDS), "num_prefill_tokens", "num_decode_tokens", unit_may_slip=True
    ),
    Format(
        "cbsim",
        Column("arrival_s", _SECONDS),
        "num_prompt_tokens",
        "num_output_tokens",
        optional={
            "request_id": Column("request_id", TEXT),
            "priority": Column("priority", whole(-MAX_EXACT, MAX_EXACT, absent=0)),
            "session_id": Column("session_id", TEXT),
            "user": Column("user", TEXT),
            "deadline_s": Column("deadline_s", real("seconds", absent=math.nan)),
            "contents": Column("prompt", SEGMENTS),
            **{name: Column(name, kind) for name, (kind, _) in EXTRAS.items()},
        },
        unit_may_slip=True,
        notes_unused=True,
    ),
)
"""Every format, in the order in which they are tried."""


def detect(names: Sequence[str], wanted: str | None, header_line: int, mistakes: Mistakes) -> Format | None:
    """The format `wanted`, else the first whose columns are all there; `None`, mistakes added, if none."""
    candidates = [each for each in FORMATS if wanted in (None, each.name)]
    needed = [[column.name for column in each.required.values()] for each in candidates]
    num_found = [len(set(columns) & set(names)) for columns in needed]
    place = num_found.index(max(num_found))
    if num_found[place] == 0 and wanted is None:
        known = (
            f"{each.name} ({', '.join(columns)})" for each, columns in zip(candidates, needed, strict=True)
        )
        mistakes.add(
            header_line, 0, f"got columns {', '.join(names) or 'nothing'}; allowed: {'; '.join(known)}"
        )
        return None
    missing = [name for name in needed[place] if name not in names]
    spare = [name for name in names if name not in needed[place]]
    for name in missing:
        near = difflib.get_close_matches(name, spare, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"got columns {', '.join(names)}"
        problem = f"{name}: missing column of format {candidates[place].name}; {hint}"
        mistakes.add(header_line, needed[place].index(name), problem)
    return None if missing else candidates[place]
