"""Requests as tables: what happened to one, when, in which steps and beside whom; the slowest of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from cbsim.base.units import format_seconds
from cbsim.show.text import Table, format_figure
from cbsim.studies.explain.request_diagnosis import RequestDiagnosis
from cbsim.studies.explain.request_story import MAX_CULPRITS, Entry
from cbsim.studies.explain.run_diagnosis import (
    LATENCIES,
    MIN_SHARE,
    SHORT_WORDS,
    WORDS,
    RunDiagnosis,
    SlowRequest,
)

MAX_CHUNKS = 8
"""More chunks in a row are told as one line between the first and the last of them."""
WIDE = 110
"""Characters in which the largest parts of slow requests can be told in full."""
_MAX_PARTS = 2
_WAITED_FOR = {
    "slot": "a slot",
    "KV": "KV blocks",
    "budget": "token budget",
    "turn": "its turn",
    "step": "the step under way",
}
_OF_SLOW: dict[str, Callable[[SlowRequest], str]] = {
    "slowest": lambda request: request.request_id,
    "arrival (s)": lambda request: f"{request.arrival_s:.3f}",
    "TTFT (s)": lambda request: format_figure(request.ttft_s),
    "E2E (s)": lambda request: format_figure(request.e2e_s),
    "prompt": lambda request: f"{request.num_prompt_tokens:,}",
    "output": lambda request: f"{request.num_output_tokens:,}",
    "preemptions": lambda request: f"{request.num_preemptions:,}",
}


def slow_table(diagnosis: RunDiagnosis, max_width: int | None = None) -> Table:
    """A row a request, the slowest first, with the largest parts of the latency they are sorted by.

    On a terminal of less than `WIDE` characters the largest part alone is told, in a word or two.
    """
    is_narrow = max_width is not None and max_width < WIDE
    columns = dict(list(_OF_SLOW.items())[: -1 if is_narrow else None])
    name = LATENCIES[diagnosis.by] + ("" if is_narrow else " is mostly")
    columns[name] = _largest_part if is_narrow else _largest_parts
    rows = [tuple(show(request) for show in columns.values()) for request in diagnosis.slow]
    return Table(tuple(columns), tuple(rows), words=(name,))


def _largest_part(request: SlowRequest) -> str:
    return next((f"{SHORT_WORDS[name]} {share:.0%}" for name, share in request.mostly.items()), "")


def _largest_parts(request: SlowRequest) -> str:
    parts = [f"{WORDS[name]} {share:.0%}" for name, share in request.mostly.items() if share >= MIN_SHARE]
    return ", ".join(parts[:_MAX_PARTS])


def request_table(diagnosis: RequestDiagnosis) -> Table:
    """The timeline of a request; below it, whose prompts slowed it."""
    rows = [_row(entry) for entry in _merged(diagnosis.entries)]
    width = max((len(at) for at, *_ in rows), default=0)
    slowed_by = diagnosis.slowed_by()
    notes = (f"others' prompts computed beside it: {_tokens(slowed_by)}",) if slowed_by else ()
    padded = tuple((at.rjust(width), *cells) for at, *cells in rows)
    return Table(("at (s)", "lasts", "steps", "what"), padded, notes=notes, words=("steps", "what"))


def _merged(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries with the middle of a long row of chunks made one."""
    for is_chunk, alike in groupby(entries, key=lambda entry: entry.what == "chunk"):
        row = list(alike)
        if is_chunk and len(row) > MAX_CHUNKS:
            row[1:-1] = [_one_of(row[1:-1])]
        yield from row


def _one_of(chunks: Sequence[Entry]) -> Entry:
    first, last = chunks[0], chunks[-1]
    culprits = sum((Counter(chunk.culprits) for chunk in chunks), Counter[str]())
    return replace(
        first,
        end_s=last.end_s,
        last_step=last.last_step,
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        culprits=dict(culprits),
    )


def _row(entry: Entry) -> tuple[str, ...]:
    lasts = format_seconds(entry.duration_s) if entry.duration_s > 0 else ""
    steps = "" if entry.first_step is None else f"{entry.first_step}"
    if entry.last_step != entry.first_step:
        steps += f" to {entry.last_step}"
    return f"{entry.start_s:.4f}", lasts, steps, _what(entry)


def _what(entry: Entry) -> str:
    if entry.what == "waited":
        return _waited(entry)
    if entry.what == "chunk":
        return _chunk(entry)
    if entry.what == "decoded":
        return _decoded(entry)
    if entry.what == "passed over":
        return "running, but not in the batch"
    if entry.is_swapped:
        return f"{entry.what}, its KV blocks back from host memory"
    if entry.what in ("admitted", "resumed") and entry.num_tokens:
        return f"{entry.what}, {entry.num_tokens:,} tokens found in the prefix cache"
    return entry.what


def _waited(entry: Entry) -> str:
    reasons = [_WAITED_FOR[reason] for reason in entry.reasons_s]
    if len(reasons) > 1:
        shares = (seconds / entry.duration_s for seconds in entry.reasons_s.values())
        reasons = [f"{reason} ({share:.0%})" for reason, share in zip(reasons, shares, strict=True)]
    told = f"waited for {', '.join(reasons)}"
    if not entry.culprits:
        return told
    if next(iter(entry.reasons_s)) == "budget":
        return f"{told}; it went to {_tokens(entry.culprits)}"
    (name, held), *others = entry.culprits.items()
    also = "".join(f", {other} {share:.0%}" for other, share in others)
    return f"{told}; {name} held {held:.0%} of the used blocks{also}"


def _chunk(entry: Entry) -> str:
    of = f" of {entry.num_left:,} left" if entry.num_left > entry.num_tokens else ""
    num_steps = (entry.last_step or 0) - (entry.first_step or 0) + 1
    what = "computed again" if entry.is_recomputed else "prompt"
    told = f"{what}: {_count(entry.num_tokens)}{of}"
    if num_steps > 1:
        told += f" in {num_steps:,} steps"
    return f"{told}, beside {_tokens(entry.culprits)}" if entry.culprits else told


def _decoded(entry: Entry) -> str:
    told = f"{_count(entry.num_tokens)}, {format_seconds(entry.duration_s / entry.num_tokens)} each"
    if entry.num_drafts:
        told += f"; {entry.num_accepted:,} of {entry.num_drafts:,} drafts accepted"
    if not entry.num_slowed:
        return told
    told += f"; {entry.num_slowed:,} beside prompts of {_tokens(entry.culprits)}"
    num_others = entry.num_tokens - entry.num_accepted - entry.num_slowed
    if not num_others:
        return told
    slowed_s = entry.slowed_s / entry.num_slowed
    others_s = (entry.duration_s - entry.slowed_s) / num_others
    return f"{told}: {format_seconds(slowed_s)} each, the others {format_seconds(others_s)}"


def _tokens(culprits: Mapping[str, float]) -> str:
    """`r1 (2,048 tokens), r2 (512) and 3 more`."""
    (name, most), *others = sorted(culprits.items(), key=lambda item: -item[1])
    told = [f"{name} ({_count(most)})"]
    told += [f"{other} ({num_tokens:,.0f})" for other, num_tokens in others[: MAX_CULPRITS - 1]]
    more = len(culprits) - MAX_CULPRITS
    return ", ".join(told) + (f" and {more:,} more" if more > 0 else "")


def _count(num_tokens: float) -> str:
    return "1 token" if num_tokens == 1 else f"{num_tokens:,.0f} tokens"
