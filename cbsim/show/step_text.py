"""The steps of a run as text: a table of what each batch held and left, and the Gantt of its requests."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence

from cbsim.base.units import format_seconds
from cbsim.show.text import MISSING, Table
from cbsim.studies.explain.batch_step import BatchStep
from cbsim.studies.explain.gantt import Gantt

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
