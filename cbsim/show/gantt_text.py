"""The Gantt picture as text: a line a request, a character a step."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from cbsim.studies.explain.gantt import Gantt, Row

if TYPE_CHECKING:
    from rich.text import Text

MARKS = {"waiting": ".", "prefill": "#", "decode": "-", "passed over": "~", "preempted": "x"}
_STYLES = {
    "waiting": "dim",
    "prefill": "bold blue",
    "decode": "green",
    "passed over": "yellow",
    "preempted": "red",
}
_TICK = 10


def gantt_lines(gantt: Gantt) -> list[str]:
    """The scale, a line for each request, and what the characters mean."""
    width = max([len("step"), *(len(row.request_id) for row in gantt.rows)])
    first = gantt.steps[0].step
    lines = [f"{'step':{width}}  {_scale(first, len(gantt.steps))}".rstrip()]
    lines += [f"{row.request_id:{width}}  {_marks(row, first)}" for row in gantt.rows]
    seen = {bar.kind for row in gantt.rows for bar in row.bars}
    lines.append("  ".join(f"{mark} {kind}" for kind, mark in MARKS.items() if kind in seen))
    return lines


def print_gantt(gantt: Gantt, stream: TextIO | None = None) -> None:
    """Print to a stream, standard output if none is given; in colours on a terminal."""
    stream = stream or sys.stdout
    lines = gantt_lines(gantt)
    if not stream.isatty():
        stream.write("\n".join(lines) + "\n")
        return
    from rich.console import Console

    console = Console(file=stream)
    width = lines[0].index(str(gantt.steps[0].step))
    console.print(lines[0], style="dim", markup=False, highlight=False, soft_wrap=True)
    for line in lines[1:-1]:
        console.print(_coloured(line, width), soft_wrap=True)
    console.print(lines[-1], style="dim", markup=False, highlight=False)


def _coloured(line: str, width: int) -> Text:
    from rich.text import Text

    style_of = {mark: _STYLES[kind] for kind, mark in MARKS.items()}
    text = Text(line[:width])
    for mark in line[width:]:
        text.append(mark, style_of.get(mark, ""))
    return text


def _scale(first: int, num_steps: int) -> str:
    """The numbers of the first step and of every tenth, each above its own."""
    scale = ""
    for place in range(num_steps):
        number = first + place
        if place == 0 or (number % _TICK == 0 and len(scale) < place):
            scale = scale.ljust(place) + str(number)
    return scale


def _marks(row: Row, first: int) -> str:
    marks = " " * (row.bars[0].first - first)
    for bar in row.bars:
        marks += MARKS[bar.kind] * (bar.last - bar.first + 1)
    return marks
