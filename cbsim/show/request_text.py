"""What happened to one request, as a table: when, for how long, in which steps, and beside whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cbsim.base.units import format_seconds
from cbsim.show.text import Table
from cbsim.studies.explain.request_diagnosis import RequestDiagnosis
from cbsim.studies.explain.request_story import MAX_CULPRITS, Entry

MAX_CHUNKS = 8
"""More chunks in a row are told as one line between the first and the last of them."""
_WORDS = ("steps", "what")
_WAITED_FOR = {
    "slot": "a slot",
    "KV": "KV blocks",
    "budget": "token budget",
    "turn": "its turn",
    "step": "the step under way",
}


def request_table(diagnosis: RequestDiagnosis) -> Table:
    """The timeline of a request; below it, whose prompts slowed it."""
    rows = [_row(entry) for entry in _merged(diagnosis.entries)]
    width = max((len(at) for at, *_ in rows), default=0)
    slowed_by = diagnosis.slowed_by()
    notes = (f"others' prompts computed beside it: {_tokens(slowed_by)}",) if slowed_by else ()
    padded = tuple((at.rjust(width), *cells) for at, *cells in rows)
    return Table(("at (s)", "lasts", *_WORDS), padded, notes=notes, words=_WORDS)


def _merged(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries with the middle of a long row of chunks made one."""
    place = 0
    while place < len(entries):
        end = place
        while end < len(entries) and entries[end].what == "chunk":
            end += 1
        if end - place <= MAX_CHUNKS:
            end = max(end, place + 1)
            yield from entries[place:end]
        else:
            yield entries[place]
            yield _one_of(entries[place + 1 : end - 1])
            yield entries[end - 1]
        place = end


def _one_of(chunks: Sequence[Entry]) -> Entry:
    first, last = chunks[0], chunks[-1]
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    culprits: dict[str, float] = {}
    for chunk in chunks:
        for name, tokens in chunk.culprits.items():
            culprits[name] = culprits.get(name, 0) + tokens
    return Entry(
        "chunk",
        first.start_s,
        last.end_s,
        first.first_step,
        last.last_step,
        num_tokens,
        first.num_left,
        first.is_recomputed,
        culprits=culprits,
    )


def _row(entry: Entry) -> tuple[str, ...]:
    lasts = format_seconds(entry.duration_s) if entry.duration_s > 0 else ""
    return f"{entry.start_s:.4f}", lasts, _steps(entry), _what(entry)


def _steps(entry: Entry) -> str:
    if entry.first_step is None or entry.last_step is None:
        return ""
    first, last = entry.first_step, entry.last_step
    return f"{first}" if first == last else f"{first} to {last}"


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
    reasons = [
        f"{_WAITED_FOR[reason]} ({seconds / entry.duration_s:.0%})"
        if len(entry.reasons_s) > 1
        else _WAITED_FOR[reason]
        for reason, seconds in entry.reasons_s.items()
    ]
    told = f"waited for {', '.join(reasons)}"
    if not entry.culprits:
        return told
    if next(iter(entry.reasons_s)) == "budget":
        return f"{told}; it went to {_tokens(entry.culprits)}"
    held = [f"{name} {{}}{share:.0%}{{}}" for name, share in entry.culprits.items()]
    first, *others = held
    first = first.format("held ", " of the used blocks")
    return f"{told}; {', '.join([first, *(other.format('', '') for other in others)])}"


def _chunk(entry: Entry) -> str:
    of = f" of {entry.num_left:,} left" if entry.num_left > entry.num_tokens else ""
    first, last = entry.first_step or 0, entry.last_step or 0
    what = "computed again" if entry.is_recomputed else "prompt"
    told = f"{what}: {_count(entry.num_tokens)}{of}"
    if last > first:
        told += f" in {last - first + 1:,} steps"
    return f"{told}, beside {_tokens(entry.culprits)}" if entry.culprits else told


def _decoded(entry: Entry) -> str:
    told = f"{_count(entry.num_tokens)}, {format_seconds(entry.duration_s / entry.num_tokens)} each"
    if not entry.num_slowed:
        return told
    alone = entry.num_tokens - entry.num_slowed
    beside = f"{entry.num_slowed:,} beside prompts of {_tokens(entry.culprits)}"
    if not alone:
        return f"{told}; {beside}"
    slowed_s = entry.slowed_s / entry.num_slowed
    alone_s = (entry.duration_s - entry.slowed_s) / alone
    return f"{told}; {beside}: {format_seconds(slowed_s)} each, the others {format_seconds(alone_s)}"


def _tokens(culprits: Mapping[str, float]) -> str:
    """`r1 (2,048 tokens), r2 (512) and 3 more`."""
    largest = sorted(culprits.items(), key=lambda item: -item[1])
    told = [
        f"{name} ({tokens:,.0f})" if place else f"{name} ({_count(tokens)})"
        for place, (name, tokens) in enumerate(largest[:MAX_CULPRITS])
    ]
    more = len(largest) - MAX_CULPRITS
    return ", ".join(told) + (f" and {more:,} more" if more > 0 else "")


def _count(num_tokens: float) -> str:
    return "1 token" if num_tokens == 1 else f"{num_tokens:,.0f} tokens"
