"""Formats: which columns each kind of trace file has, what they mean, and how a file's format is told."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cbsim.base.units import MS_PER_S, NS_PER_S
from cbsim.workload.file_mistakes import Mistakes
from cbsim.workload.values import MAX_EXACT, MAX_TOKENS, IdList, Instant, Kind, Real, SegmentList, Text, Whole

TOKENS = Whole(1, MAX_TOKENS)
MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that one of Mooncake's `hash_ids` stands for."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a file: its name there and what may stand in it."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Format:
    """How a kind of file says what a request is."""

    name: str
    arrival: Field
    prompt_tokens: Field
    output_tokens: Field
    ticks_per_s: int = 1
    """Units of the arrival column in a second."""
    has_absolute_clock: bool = False
    """Whether arrivals are dates, so that time counts from the first of them."""
    drops_failures: bool = False
    """Whether an answer of 0 tokens is a failed request, to be left out."""
    optional: dict[str, Field] = field(default_factory=dict)
    """Columns that a file may lack, by the name of the request's attribute; `hash_ids` become its prompt."""
    unit_may_slip: bool = False
    """Whether scripts of users write such files, so that arrivals may be in another unit than they should."""
    notes_unused: bool = False
    """Whether to say which columns weren't used: in a format of our own they are likely slips."""

    @property
    def required(self) -> tuple[Field, Field, Field]:
        """The columns every file of this format has."""
        return (self.arrival, self.prompt_tokens, self.output_tokens)


FORMATS = {
    each.name: each
    for each in (
        Format(
            "azure",
            Field("TIMESTAMP", Instant()),
            Field("ContextTokens", TOKENS),
            Field("GeneratedTokens", TOKENS),
            ticks_per_s=NS_PER_S,
            has_absolute_clock=True,
        ),
        Format(
            "mooncake",
            Field("timestamp", Real("milliseconds")),
            Field("input_length", TOKENS),
            Field("output_length", TOKENS),
            ticks_per_s=MS_PER_S,
            optional={"hash_ids": Field("hash_ids", IdList())},
        ),
        Format(
            "burstgpt",
            Field("Timestamp", Real("seconds")),
            Field("Request tokens", TOKENS),
            Field("Response tokens", Whole(0, MAX_TOKENS)),
            drops_failures=True,
            optional={"session_id": Field("Session ID", Text())},
        ),
        Format(
            "vidur",
            Field("arrived_at", Real("seconds")),
            Field("num_prefill_tokens", TOKENS),
            Field("num_decode_tokens", TOKENS),
            unit_may_slip=True,
        ),
        Format(
            "cbsim",
            Field("arrival_s", Real("seconds")),
            Field("num_prompt_tokens", TOKENS),
            Field("num_output_tokens", TOKENS),
            optional={
                "request_id": Field("request_id", Text()),
                "priority": Field("priority", Whole(-MAX_EXACT, MAX_EXACT, default=0)),
                "session_id": Field("session_id", Text()),
                "user": Field("user", Text()),
                "deadline_s": Field("deadline_s", Real("seconds", is_optional=True)),
                "prompt": Field("prompt", SegmentList()),
            },
            unit_may_slip=True,
            notes_unused=True,
        ),
    )
}
"""Every format by its name, in the order in which they are tried."""


def detect(names: Sequence[str], wanted: str | None, header_line: int, mistakes: Mistakes) -> Format | None:
    """The format `wanted`, else the first whose columns are all there; `None`, mistakes added, if none."""
    candidates = [FORMATS[wanted]] if wanted is not None else list(FORMATS.values())
    for candidate in candidates:
        if all(column.name in names for column in candidate.required):
            return candidate
    nearest = max(candidates, key=lambda each: sum(column.name in names for column in each.required))
    num_found = sum(column.name in names for column in nearest.required)
    if num_found == 0 and wanted is None:
        known = "; ".join(f"{each.name} ({', '.join(c.name for c in each.required)})" for each in candidates)
        mistakes.add(header_line, 0, f"got columns {', '.join(names) or 'nothing'}; allowed: {known}")
        return None
    spare = [name for name in names if name not in {column.name for column in nearest.required}]
    for order, column in enumerate(nearest.required):
        if column.name not in names:
            near = difflib.get_close_matches(column.name, spare, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"got columns {', '.join(names)}"
            mistakes.add(
                header_line, order, f"{column.name}: missing column of format {nearest.name}; {hint}"
            )
    return None
