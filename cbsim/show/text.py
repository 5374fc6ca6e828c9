"""Table: a small table of texts, printed by rich on a terminal and as aligned plain text anywhere else."""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

from cbsim.results.slo import joined

if TYPE_CHECKING:
    from rich.console import Console

    from cbsim.studies.intervals import Interval

BEST = "*"
"""Ends the best figure of its kind in plain text; rich shows it in bold green."""
MISSING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under a header: the first column names them, the others are figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    """Sentences that belong under the table."""
    words: tuple[str, ...] = ()
    """Further columns of words, by their headers: aligned to the left."""

    def transposed(self) -> Table:
        """The same figures with rows as columns."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Table(header, tuple(rows), self.title, self.notes)

    def to_text(self) -> str:
        """Aligned lines without colour, the notes under them."""
        padded = [_padded(column) for column in zip(self.header, *self.rows, strict=True)]
        aligned: list[list[str]] = []
        for name, column in zip(self.header, padded, strict=True):
            width = max(map(len, column))
            is_left = not aligned or name in self.words
            cells = [cell.ljust(width) if is_left else cell.rjust(width) for cell in column]
            aligned.append([cells[0], "-" * width, *cells[1:]])
        lines = [self.title] if self.title else []
        lines += ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]
        if any(map(_is_best, chain(*self.rows))):
            lines.append(f"{BEST} best of the runs compared")
        lines += [
            textwrap.fill(note.replace("`", ""), WIDTH, initial_indent="- ", subsequent_indent="  ")
            for note in self.notes
        ]
        return "\n".join(lines)

    def print(self, stream: TextIO | None = None) -> None:
        """Print to a stream, standard output if none is given."""
        stream = stream or sys.stdout
        if stream.isatty():
            from rich.console import Console

            self._print_rich(Console(file=stream))
        else:
            stream.write(self.to_text() + "\n")

    def _print_rich(self, console: Console) -> None:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for place, name in enumerate(self.header):
            is_left = place == 0 or name in self.words
            table.add_column(Text(name), justify="left" if is_left else "right", overflow="fold")
        for row in self.rows:
            styles = ["bold green" if _is_best(cell) else "" for cell in row]
            table.add_row(*map(Text, (cell.removesuffix(BEST) for cell in row), styles))
        console.print(table)
        for note in self.notes:
            console.print(Text(f"- {note.replace('`', '')}", "dim"))


WIDTH = 100
"""Characters of a line of prose in plain text."""


def print_answer(*sentences: str) -> None:
    """Print what a reader asked for, with a blank line after it; nothing where there are no sentences."""
    for sentence in sentences:
        sys.stdout.write(textwrap.fill(sentence.replace("`", ""), WIDTH) + "\n")
    if sentences:
        sys.stdout.write("\n")


def format_figure(value: float | None, *, digits: int = 3) -> str:
    """A number with `digits` significant ones and no exponent: `1,240`, `13.2`, `0.0513`; integers whole."""
    if value is None or not math.isfinite(value):
        return MISSING
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    size = math.floor(math.log10(abs(value)))
    # 9.996 has one digit before the point, but 10.0 with three digits has two.
    size = math.floor(math.log10(abs(round(value, digits - 1 - size))))
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def format_share(value: float | None) -> str:
    """A share as a percentage: `97.4%`."""
    return MISSING if value is None or math.isnan(value) else f"{value:.1%}"


def format_interval(interval: Interval, seen: tuple[float, float] | None = None) -> str:
    """`11.8 ± 0.3`: the estimate to as many digits as its half-width of two digits allows.

    `11.8 (11.5 to 12.1)` with what replicates too few for an interval have `seen`; `11.8` where nothing was
    drawn, or only one was.
    """
    if interval.low == interval.high or math.isinf(interval.half_width):
        return format_figure(interval.estimate)
    if seen is not None:
        low, high = map(format_figure, seen)
        return format_figure(interval.estimate) + (f" ({low} to {high})" if low != high else "")
    half_width = format_figure(interval.half_width, digits=2)
    decimals = len(half_width.partition(".")[2])
    estimate = f"{interval.estimate:,.{decimals}f}" if decimals else format_figure(interval.estimate)
    return f"{estimate} ± {half_width}"


def _is_best(cell: str) -> bool:
    return cell.endswith(BEST)


def _padded(column: tuple[str, ...]) -> list[str]:
    """A column that holds a marked figure leaves room for the mark beside the others."""
    header, *cells = column
    if not any(map(_is_best, cells)):
        return list(column)
    return [f"{header} ", *(cell if _is_best(cell) else f"{cell} " for cell in cells)]


MAX_NAMED = 3
"""Of more runs a note tells only how many they are."""
_DIGITS = re.compile(r"(?<![\w.-])\d(?:[\d,]*\d)?(?:\.\d+)?")


def merged_notes(notes_by_run: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Each note once, `notes_by_run` being runs' names and their notes; runs may share a name.

    Notes that differ in numbers only are told as `4 to 78% of the tokens computed were padding`. Before a
    note stand the names of the runs that have it, unless all have, or how many these are.
    """
    kinds = alike(note for _, notes in notes_by_run for note in notes)
    whose = [dict.fromkeys(name for name, own in notes_by_run if {*own} & {*notes}) for notes in kinds]
    num_runs = len({name for name, _ in notes_by_run})
    return [_prefix(names, num_runs) + with_ranges(notes) for names, notes in zip(whose, kinds, strict=True)]


def alike(texts: Iterable[str]) -> list[list[str]]:
    """Texts that differ in numbers only together, in the order of the first of each."""
    kinds: dict[str, list[str]] = {}
    for text in texts:
        kinds.setdefault(_DIGITS.sub("#", text), []).append(text)
    return list(kinds.values())


_STEP_TIMES = re.compile(r"step times are (\w+): within ([\d.]+)% in 9 of 10 cases")
"""As `cbsim.cost.run_errors.StepError` tells it."""


def certainty(names: Iterable[str], told: Iterable[Any]) -> str:
    """A sentence on what the step times of the rows of a table come from and how wrong they may be, by their
    notes; empty where these say nothing of it.
    """
    rows = [(name, str(text)) for name, text in zip(names, told, strict=False)]
    whose: dict[tuple[str, str], dict[str, None]] = {}
    for name, text in rows:
        for found in _STEP_TIMES.findall(text):
            whose.setdefault(found, {})[name] = None
    num_names, parts = len({name for name, _ in rows}), []
    for (basis, pct), those in whose.items():
        few = joined([*those]) if len(those) <= MAX_NAMED else f"{len(those)} of {num_names}"
        who = "" if len(those) == num_names else f" for {few}"
        parts.append(f"{basis}{who} (within {pct}% in 9 of 10 cases)")
    return f"Step times are {joined(parts)}." if parts else ""


def merged_column(names: Iterable[str], told: Iterable[Any]) -> list[str]:
    """The merged notes of the rows of a table: each row's in one text between semicolons, or missing."""
    notes = [text.split("; ") if isinstance(text, str) else [] for text in told]
    return merged_notes(list(zip(names, notes, strict=True)))


def _prefix(whose: Mapping[str, None], num_runs: int) -> str:
    if len(whose) == num_runs:
        return ""
    return f"{', '.join(whose)}: " if len(whose) <= MAX_NAMED else f"{len(whose)} of {num_runs}: "


def with_ranges(notes: Sequence[str]) -> str:
    """One text for several that differ in numbers only: these from the least to the most."""
    ranges = []
    for numbers in zip(*map(_DIGITS.findall, notes), strict=True):
        low, *_, high = sorted([*numbers, *numbers], key=lambda number: float(number.replace(",", "")))
        ranges.append(low if low == high else f"{low} to {high}")
    told = iter(ranges)
    return _DIGITS.sub(lambda _: next(told), notes[0])
