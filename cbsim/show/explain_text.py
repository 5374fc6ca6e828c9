"""What explain tells as text: steps, the Gantt of their requests, what happened to one, the slowest."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from cbsim.base.units import format_seconds
from cbsim.show.text import MISSING, Table, format_figure
from cbsim.studies.explain.batch_step import BatchStep, Gantt
from cbsim.studies.explain.request_diagnosis import MAX_CULPRITS, Entry, RequestDiagnosis
from cbsim.studies.explain.run_diagnosis import (
    LATENCIES,
    MIN_SHARE,
    SHORT_WORDS,
    WORDS,
    RunDiagnosis,
    SlowRequest,
)

MAX_NAMED = 4
"""Further chunks, or requests to which the same happened, are counted."""
_WORDS = ("chunks", "changes")
_SEPARATOR = "; "
_NO_BREAK = "\N{NO-BREAK SPACE}"
_MIN_WORDS_WIDTH = 28
"""With less room beside the figures, words go below them."""
_INDENT = 9
_COLUMNS: dict[str, tuple[int, Callable[[BatchStep], str]]] = {
    "step": (6, lambda step: str(step.step)),
    "start (s)": (9, lambda step: f"{step.start_s:.4f}"),
    "takes": (7, lambda step: format_seconds(step.duration_s)),
    "decodes": (7, lambda step: f"{step.num_decodes:,}"),
    "tokens": (6, lambda step: f"{step.num_tokens:,}"),
    "left": (6, lambda step: MISSING if step.budget_left is None else f"{step.budget_left:,}"),
    "run": (4, lambda step: f"{step.num_running:,}"),
    "wait": (5, lambda step: f"{step.num_waiting:,}"),
    "for": (6, lambda step: step.waits_for or MISSING),
    "KV used": (7, lambda step: f"{step.kv_blocks_used:,}"),
    "free": (6, lambda step: f"{step.kv_blocks_free:,}"),
    _WORDS[0]: (34, lambda step: _chunks(step)),
    _WORDS[1]: (0, lambda step: _changes(step)),
}
"""Header -> width in a table that runs on, and what a cell shows."""
_LEGEND = {
    "slot": "all max_num_seqs slots are taken",
    "KV": "too few KV blocks are free",
    "budget": "the step's token budget is used up",
    "turn": "nobody is admitted: the step preempted, a batch is under way, or a whole prompt must fit",
}
_KINDS = {
    "waiting": (".", "dim"),
    "prefill": ("#", "bold blue"),
    "decode": ("-", "green"),
    "passed over": ("~", "yellow"),
    "preempted": ("x", "red"),
}
"""What a request does -> its character in the Gantt, and the style of that on a terminal."""
_TICK = 10


def step_table(steps: Sequence[BatchStep]) -> Table:
    """The steps as one table, with what the words of the column `for` mean."""
    rows = tuple(tuple(show(step) for _, show in _COLUMNS.values()) for step in steps)
    return Table(tuple(_COLUMNS), rows, notes=step_notes(steps), words=_WORDS)


def step_notes(steps: Sequence[BatchStep]) -> tuple[str, ...]:
    """What the words of the column `for` mean, of those that are there."""
    reasons = {step.waits_for for step in steps}
    return tuple(f"for {word}: {meaning}" for word, meaning in _LEGEND.items() if word in reasons)


class RunningTable:
    """The same table line by line, for steps that are shown as they come."""

    def __init__(self, max_width: int | None = None) -> None:
        """Lines are wrapped at `max_width` characters, the words within their own columns."""
        self._max_width = max_width

    def header(self) -> str:
        """The line above the first step."""
        return self._line(list(_COLUMNS))

    def line(self, step: BatchStep) -> str:
        """A step, in several lines if its words need them."""
        return self._line([show(step) for _, show in _COLUMNS.values()])

    def _line(self, cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for cell, (name, (width, _)) in zip(cells, _COLUMNS.items(), strict=True)
        ]
        line = "  ".join(padded).rstrip()
        if self._max_width is None or len(line) <= self._max_width:
            return line
        figures = "  ".join(padded[: -len(_WORDS)])
        if len(figures) > self._max_width:  # 80 characters are just enough
            figures = " ".join(padded[: -len(_WORDS)])
        chunks, changes = cells[-len(_WORDS) :]
        # No line ends within what is told of a chunk.
        kept = chunks.replace(" ", _NO_BREAK).replace(f";{_NO_BREAK}", _SEPARATOR)
        words = _SEPARATOR.join(cell for cell in (kept, changes) if cell)
        indent = len(figures) + 2 if self._max_width - len(figures) >= _MIN_WORDS_WIDTH else _INDENT
        wrapped = textwrap.wrap(words, max(_MIN_WORDS_WIDTH, self._max_width - indent))
        below = "\n" + " " * indent
        beside = "  " if indent > _INDENT else below
        return (figures + beside + below.join(wrapped) if wrapped else figures).replace(_NO_BREAK, " ")


def _chunks(step: BatchStep) -> str:
    """`r1 512 of 1,800`: tokens of those that were left to compute; `r2 120`: all of them."""
    told = []
    for chunk in step.chunks:
        of = f" of {chunk.num_left:,}" if chunk.num_left > chunk.num_tokens else ""
        told.append(f"{chunk.request_id} {chunk.num_tokens:,}{of}")
    return _listed(told, _SEPARATOR)


def _changes(step: BatchStep) -> str:
    begun = {
        what: [f"{name} ({num_cached:,} cached)" if num_cached else name for name, num_cached in pairs]
        for what, pairs in (("admitted", step.admitted), ("resumed", step.resumed))
    }
    told = begun | {"preempted": [*step.preempted], "finished": [*step.finished]}
    return _SEPARATOR.join(f"{what} {_listed(names)}" for what, names in told.items() if names)


def _listed(names: list[str], separator: str = " ") -> str:
    more = [f"+{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return separator.join([*names[:MAX_NAMED], *more])


def gantt_lines(gantt: Gantt) -> list[str]:
    """The scale, a line for each request with a character a step, and what the characters mean."""
    width = max([len("step"), *(len(row.request_id) for row in gantt.rows)])
    first = gantt.steps[0].step
    scale = ""
    for place in range(len(gantt.steps)):
        if place == 0 or ((first + place) % _TICK == 0 and len(scale) < place):
            scale = scale.ljust(place) + str(first + place)
    lines = [f"{'step':{width}}  {scale}".rstrip()]
    for row in gantt.rows:
        marks = "".join(_KINDS[bar.kind][0] * (bar.last - bar.first + 1) for bar in row.bars)
        lines.append(f"{row.request_id:{width}}  {' ' * (row.bars[0].first - first)}{marks}")
    seen = {bar.kind for row in gantt.rows for bar in row.bars}
    lines.append("  ".join(f"{mark} {kind}" for kind, (mark, _) in _KINDS.items() if kind in seen))
    return lines


def print_gantt(gantt: Gantt) -> None:
    """Print to standard output; in colours on a terminal."""
    lines = gantt_lines(gantt)
    if not sys.stdout.isatty():
        sys.stdout.write("\n".join(lines) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout)
    width = lines[0].index(str(gantt.steps[0].step))
    style_of = dict(_KINDS.values())
    console.print(lines[0], style="dim", markup=False, highlight=False, soft_wrap=True)
    for line in lines[1:-1]:
        marks = ((mark, style_of.get(mark, "")) for mark in line[width:])
        console.print(Text.assemble(line[:width], *marks), soft_wrap=True)
    console.print(lines[-1], style="dim", markup=False, highlight=False)


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
    "load": "KV that tiers bring",
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


_IN_WORDS = {
    "no room": "waited for its turn and KV blocks where it will decode",
    "no KV": "waited for its KV cache",
    "lost": "lost with its KV cache",
    "given back": "given back, to be prefilled again",
    "given up": "given up by its client",
    "refused": "refused: every queue was full",
    "passed over": "running, but not in the batch",
}


def _what(entry: Entry) -> str:
    if entry.what == "waited":
        return _waited(entry)
    if entry.what == "chunk":
        return _chunk(entry)
    if entry.what == "decoded":
        return _decoded(entry)
    if entry.what == "KV transfer":
        return f"KV transfer: {_count(entry.num_tokens)}"
    if entry.is_swapped:
        return f"{entry.what}, its KV blocks back from host memory"
    if entry.what in ("admitted", "resumed") and entry.num_tokens:
        brought = f", {entry.num_loaded:,} of them brought by tiers" if entry.num_loaded else ""
        return f"{entry.what}, {entry.num_tokens:,} tokens found in the prefix cache{brought}"
    return _IN_WORDS.get(entry.what, entry.what)


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
