"""Formats: which columns each kind of trace file has, what they mean, and how a file's format is told."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.units import MS_PER_S, NS_PER_S, US_PER_S
from cbsim.config.bounds import MAX_TOKENS
from cbsim.workload.table import Mistakes
from cbsim.workload.values import (
    COUNTS,
    IDS,
    INSTANT,
    MAX_EXACT,
    SEGMENTS,
    TEXT,
    TIMES,
    TOKEN_IDS,
    Kind,
    number_kind,
    real,
    whole,
)

_TOKENS = whole(1, MAX_TOKENS)
_SECONDS = real("seconds")
_NANOSECONDS = whole(0, 2**63 - 1)
_INSTANT = number_kind("seconds", -(2**63), 2**63, np.float64, is_rounded=True)
"""On a clock that may begin anywhere, in any unit: nanoseconds since 1970 are rounded to 256 of them."""
_ARRIVAL = number_kind(
    "a number of seconds from 0, or of another time_unit", 0, 2**63, np.float64, is_rounded=True
)
"""From the beginning of a trace, or since 1970 in any unit."""
TIME_UNITS = {"s": 1, "ms": MS_PER_S, "us": US_PER_S, "ns": NS_PER_S}
"""Units of time, as `time_unit` names them, by how many make a second."""
EPOCH_S = 1e9
"""Seconds from 1970 to 2001: no trace runs for so long, and every date since is later."""


def unit_since_1970(time: float) -> str | None:
    """The key of `TIME_UNITS` if a time can only be a date in a unit smaller than a second."""
    return next((unit for unit in ("ns", "us", "ms") if time >= EPOCH_S * TIME_UNITS[unit]), None)


class Column(NamedTuple):
    """A column of a file: its name there and what may stand in it."""

    name: str
    kind: Kind
    ticks_per_s: int = 1
    """Units of a time in a second."""


def is_filled(value: Any) -> bool:
    """Whether a column such as `error` says anything."""
    return value not in (None, "", "null", "None", "false", "False", "0") and bool(value)


def is_refused(value: Any) -> bool:
    """Whether a column such as `success` says no."""
    return value in (False, "false", "False", "0")


def is_nothing(value: Any) -> bool:
    """Whether a count of output tokens is none."""
    return value in (None, "", 0, "0")


Flags = dict[str, Callable[[Any], bool]]
"""Columns, and what in them marks a request that failed."""


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
    written_by: str = ""
    """The tools that write it and the units of its times, for a note; empty for traces well known."""
    marks: tuple[str, ...] = ()
    """Columns that tell the format, in place of all those that it must have."""
    failed: Flags = field(default_factory=dict)
    """What marks a request that failed, to be left out and counted."""
    served: dict[str, Column] = field(default_factory=dict)
    """What a log says of an answer: `first_token`, `last_token`, `token_times` on the clock of the arrivals,
    or the durations `ttft` and `gaps`, the times between chunks of the answer."""
    block_tokens: int = 512
    """Prompt tokens that one of the `contents` stands for, unless they are token ids or their number says
    otherwise."""
    prompts_grow: bool = False
    """Whether the prompt of a turn with a delay counts only what is new in it."""

    @property
    def told_by(self) -> tuple[str, ...]:
        """The columns that tell it."""
        return self.marks or tuple(column.name for column in self.required.values())

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

_FAILED: Flags = {
    "error": is_filled,
    "failed": is_filled,
    "is_error": is_filled,
    "success": is_refused,
}


def _inference_perf(mark: str, prompt: str, answer: str) -> Format:
    """A report of inference-perf, told by a column `mark`; `answer` begins the names of answers' columns."""
    return Format(
        "inference_perf",
        Column("start_time", _INSTANT),
        prompt,
        f"{answer}output_tokens",
        has_absolute_clock=True,
        drops_failures=True,
        failed=_FAILED,
        served={
            "token_times": Column(f"{answer}output_token_times", TIMES),
            "last_token": Column("end_time", _INSTANT),
        },
        marks=("start_time", "end_time", mark),
        written_by="inference-perf, times in seconds",
    )


def _mooncake(arrival: str, prompt: str, answer: str, **more: Any) -> Format:
    """A trace in Mooncake's form; AIPerf added turns that come some time after the answer before them."""
    return Format(
        "mooncake",
        Column(arrival, real("milliseconds")),
        prompt,
        answer,
        ticks_per_s=MS_PER_S,
        optional={
            "contents": Column("hash_ids", IDS),
            "session_id": Column("session_id", TEXT),
            "delay_s": Column("delay", real("milliseconds", absent=math.nan), MS_PER_S),
        },
        prompts_grow=True,
        **more,
    )


def _guidellm(arrival: str, first: str, last: str, **more: Any) -> Format:
    """A report of guidellm, by the columns of its times."""
    return Format(
        "guidellm",
        Column(arrival, _INSTANT),
        "prompt_tokens",
        "output_tokens",
        has_absolute_clock=True,
        drops_failures=True,
        failed=_FAILED,
        optional={"request_id": Column("request_id", TEXT)},
        served={"first_token": Column(first, _INSTANT), "last_token": Column(last, _INSTANT)},
        **more,
    )


FORMATS = (
    Format(
        "azure",
        Column("TIMESTAMP", INSTANT),
        "ContextTokens",
        "GeneratedTokens",
        ticks_per_s=NS_PER_S,
        has_absolute_clock=True,
    ),
    _mooncake("timestamp", "input_length", "output_length"),
    _mooncake("created_time", "input_tokens", "output_tokens", written_by="Dynamo, arrivals in milliseconds"),
    _mooncake(
        "timestamp",
        "input_length",
        "output_length",
        marks=("session_id", "input_length", "output_length"),
        written_by="AIPerf, sessions whose turns come some milliseconds after an answer",
    ),
    Format(
        "servegen",
        Column("timestamp", _SECONDS),
        "input_length",
        "output_length",
        marks=("input_length", "output_length", "duration"),
        written_by="a batch task of ServeGen's offline traces",
    ),
    Format(
        "qwen",
        Column("timestamp", _SECONDS),
        "input_length",
        "output_length",
        optional={"contents": Column("hash_ids", IDS)},
        marks=("timestamp", "input_length", "output_length", "chat_id"),
        block_tokens=16,
        written_by="Qwen-Bailian, arrivals in seconds",
    ),
    Format(
        "llmservingsim",
        Column("arrival_time_ns", _NANOSECONDS),
        "input_toks",
        "output_toks",
        ticks_per_s=NS_PER_S,
        optional={
            "contents": Column("input_tok_ids", TOKEN_IDS),
            "session_id": Column("session_id", TEXT),
            "delay_s": Column("delay_ns", real("nanoseconds", absent=math.nan), NS_PER_S),
        },
        written_by="LLMServingSim, arrivals in nanoseconds",
    ),
    Format(
        "bench_serving",
        Column("start_times", _INSTANT),
        "input_lens",
        "output_lens",
        has_absolute_clock=True,
        drops_failures=True,
        failed={"errors": is_filled},
        served={"ttft": Column("ttfts", _SECONDS), "gaps": Column("itls", TIMES)},
        written_by="vllm bench serve or SGLang's bench_serving, times in seconds",
    ),
    _guidellm(
        "request_start_time",
        "info.timings.first_token_iteration",
        "info.timings.last_token_iteration",
        written_by="guidellm, times in seconds",
    ),
    _guidellm(
        "start_time",
        "first_token_time",
        "last_token_time",
        marks=("start_time", "prompt_tokens", "output_tokens", "first_token_time"),
        written_by="guidellm before 0.4, times in seconds",
    ),
    Format(
        "aiperf",
        Column("metadata.request_start_ns", _NANOSECONDS),
        "metrics.input_sequence_length.value",
        "metrics.output_sequence_length.value",
        ticks_per_s=NS_PER_S,
        has_absolute_clock=True,
        failed=_FAILED | {"metadata.was_cancelled": is_filled},
        optional={"request_id": Column("metadata.x_request_id", TEXT)},
        served={
            "ttft": Column("metrics.time_to_first_token.value", real("milliseconds"), MS_PER_S),
            "last_token": Column("metadata.request_end_ns", _NANOSECONDS),
            "gaps": Column("metrics.inter_chunk_latency.value", TIMES, MS_PER_S),
        },
        marks=("metadata.request_start_ns",),
        written_by="aiperf, clock in nanoseconds, latencies in milliseconds",
    ),
    Format(
        "otel",
        Column("startTimeUnixNano", _NANOSECONDS),
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        ticks_per_s=NS_PER_S,
        has_absolute_clock=True,
        drops_failures=True,
        failed=_FAILED,
        optional={"request_id": Column("id", TEXT), "session_id": Column("session_id", TEXT)},
        served={
            "ttft": Column("gen_ai.latency.time_to_first_token", _SECONDS),
            "last_token": Column("endTimeUnixNano", _NANOSECONDS),
        },
        written_by="OpenTelemetry's spans, clock in nanoseconds, latencies in seconds",
    ),
    _inference_perf(
        "info.request_metrics", "info.request_metrics.text.input_tokens", "info.response_metrics."
    ),
    _inference_perf("info.input_tokens", "info.input_tokens", "info."),
    Format(
        "burstgpt",
        Column("Timestamp", _SECONDS),
        "Request tokens",
        "Response tokens",
        drops_failures=True,
        optional={"session_id": Column("Session ID", TEXT)},
    ),
    Format(
        "vidur", Column("arrived_at", _ARRIVAL), "num_prefill_tokens", "num_decode_tokens", unit_may_slip=True
    ),
    Format(
        "cbsim",
        Column("arrival_s", _ARRIVAL),
        "num_prompt_tokens",
        "num_output_tokens",
        optional={
            "request_id": Column("request_id", TEXT),
            "priority": Column("priority", whole(-MAX_EXACT, MAX_EXACT, absent=0)),
            "session_id": Column("session_id", TEXT),
            "user": Column("user", TEXT),
            "deadline_s": Column("deadline_s", real("seconds", absent=math.nan)),
            "delay_s": Column("delay_s", real("seconds", absent=math.nan)),
            "contents": Column("prompt", SEGMENTS),
            **{name: Column(name, kind) for name, (kind, _) in EXTRAS.items()},
        },
        unit_may_slip=True,
        notes_unused=True,
    ),
)
"""Every format; where several fit, the one told by more columns, then the first."""

LOG_NAMES: dict[str, tuple[str, ...]] = {
    "request_id": ("request_id", "req_id", "id"),
    "prompt_tokens": (
        "num_prompt_tokens", "prompt_tokens", "input_tokens", "input_toks", "input_length", "prompt_len",
    ),
    "output_tokens": (
        "num_output_tokens", "output_tokens", "output_toks", "completion_tokens", "num_generation_tokens",
        "output_length", "output_len",
    ),
    "arrival": ("arrival_s", "arrival_time", "arrival_ts", "arrived_at"),
    "queued": ("queued_s", "queued_ts"),
    "scheduled": ("scheduled_s", "scheduled_ts", "first_scheduled_time"),
    "first_token": ("first_token_at_s", "first_token_ts", "first_token_time", "first_token_s"),
    "last_token": ("last_token_at_s", "finished_at_s", "last_token_ts", "finished_time", "last_token_s"),
    "token_times": ("token_times_s", "token_times"),
    "hash_ids": ("hash_ids",),
    "token_ids": ("prompt_token_ids", "input_tok_ids", "input_ids"),
}  # fmt: skip
"""What a log says of a request, and the columns that say it: cbsim's own names, vLLM's and others'."""
LOG_NEEDS = ("arrival", "prompt_tokens", "output_tokens")
"""Keys of `LOG_NAMES`: what a log must say to be a trace."""
PROMPT_KINDS = {"hash_ids": IDS, "token_ids": TOKEN_IDS}
"""What may stand in the columns of `LOG_NAMES` that say what a prompt holds."""


def log_failures(output_tokens: str) -> Flags:
    """What marks a failed request in a log whose output tokens stand in a column of that name."""
    return _FAILED | {output_tokens: is_nothing}


def _log(names: Sequence[str]) -> Format | None:
    """A log of any server as a trace, if its columns have names that are known."""
    found = {what: next((name for name in known if name in names), None) for what, known in LOG_NAMES.items()}
    arrival, prompt, output = (found[what] for what in LOG_NEEDS)
    if arrival is None or prompt is None or output is None:
        return None
    return Format(
        "log",
        Column(arrival, _INSTANT),
        prompt,
        output,
        has_absolute_clock=True,
        failed=log_failures(output),
        optional={"request_id": Column(found["request_id"], TEXT)} if found["request_id"] else {},
        written_by="a server's log, times in seconds",
    )


def prompt_column(names: Sequence[str]) -> Column | None:
    """The column of a log or a trace that says by ids what prompts hold, if there is one."""
    for what, kind in PROMPT_KINDS.items():
        for name in LOG_NAMES[what]:
            if name in names:
                return Column(name, kind)
    return None


def _with_prompts(found: Format, names: Sequence[str]) -> Format:
    """A format, with the ids of prompts that a file has beyond its columns."""
    column = prompt_column(names)
    own = found.optional.get("contents")
    if column is None or (own is not None and own.name in names):
        return found
    return replace(found, optional=found.optional | {"contents": column})


def recognise(names: Sequence[str], wanted: str | None = None) -> Format | None:
    """The format, or that of the name `wanted`, whose marks are all among a file's columns."""
    fitting = [each for each in FORMATS if wanted in (None, each.name) and set(each.told_by) <= set(names)]
    return max(fitting, key=lambda each: len(each.told_by), default=None)


def detect(names: Sequence[str], wanted: str | None, header_line: int, mistakes: Mistakes) -> Format | None:
    """The format `wanted`, else the one that the columns tell; `None`, mistakes added, if none."""
    found = recognise(names, wanted) or (_log(names) if wanted in (None, "log") else None)
    if found is not None:
        return _with_prompts(found, names)
    candidates = [each for each in FORMATS if wanted in (None, each.name)]
    needed = [each.told_by for each in candidates]
    num_found = [len(set(columns) & set(names)) for columns in needed]
    if wanted == "log" or (max(num_found) == 0 and wanted is None):
        known = (
            f"{each.name} ({', '.join(columns)})" for each, columns in zip(candidates, needed, strict=True)
        )
        mistakes.add(
            header_line, 0, f"got columns {', '.join(names) or 'nothing'}; allowed: {'; '.join(known)}"
        )
        return None
    place = num_found.index(max(num_found))
    usual = {name for what in LOG_NEEDS for name in LOG_NAMES[what]}
    is_own = candidates[place].name == "cbsim"
    if wanted is None and not is_own and usual >= set(needed[place]) & set(names):
        # No mark of that format alone: a table of somebody's own.
        lacks = [LOG_NAMES[what] for what in LOG_NEEDS if not set(LOG_NAMES[what]) & set(names)]
        allowed = "; ".join(f"{known[0]} (or {', '.join(known[1:])})" for known in lacks)
        problem = f"got columns {', '.join(names)}; missing: {allowed}, arrivals in seconds"
        mistakes.add(header_line, 0, problem)
        return None
    missing = [name for name in needed[place] if name not in names]
    spare = [name for name in names if name not in needed[place]]
    for name in missing:
        near = difflib.get_close_matches(name, spare, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"got columns {', '.join(names)}"
        problem = f"{name}: missing column of format {candidates[place].name}; {hint}"
        mistakes.add(header_line, needed[place].index(name), problem)
    return None
