"""Table: a small table of texts, printed by rich on a terminal and as aligned plain text anywhere else."""

from __future__ import annotations

import math
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

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
        columns = list(zip(self.header, *self.rows, strict=True))
        # A column that holds a marked figure leaves room for the mark beside the others.
        padded = [_padded(column) for column in columns]
        widths = [max(map(len, column)) for column in padded]
        lines = [self.title] if self.title else []
        for number, row in enumerate(zip(*padded, strict=True)):
            first, *figures = (
                cell.ljust(width) if self._is_left(place) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *figures]).rstrip())
            if number == 0:
                lines.append("  ".join("-" * width for width in widths))
        if any(_is_best(cell) for row in self.rows for cell in row):
            lines.append(f"{BEST} best of the runs compared")
        lines += [_wrapped(note) for note in self.notes]
        return "\n".join(lines)

    def print(self, stream: TextIO | None = None) -> None:
        """Print to a stream, standard output if none is given."""
        stream = stream or sys.stdout
        if stream.isatty():
            from rich.console import Console

            self._print_rich(Console(file=stream))
        else:
            stream.write(self.to_text() + "\n")

    def _is_left(self, place: int) -> bool:
        return place == 0 or self.header[place] in self.words

    def _print_rich(self, console: Console) -> None:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for place, name in enumerate(self.header):
            table.add_column(Text(name), justify="left" if self._is_left(place) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(
                *(Text(cell.removesuffix(BEST), "bold green" if _is_best(cell) else "") for cell in row)
            )
        console.print(table)
        for note in self.notes:
            console.print(Text(f"- {note}", "dim"))


def format_figure(value: float | None, *, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent: `1,240`, `13.2`, `0.0513`; integers whole."""
    if value is None or math.isnan(value):
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


def _is_best(cell: str) -> bool:
    return cell.endswith(BEST)


def _padded(column: tuple[str, ...]) -> list[str]:
    header, *cells = column
    if not any(map(_is_best, cells)):
        return list(column)
    return [f"{header} ", *(cell if _is_best(cell) else f"{cell} " for cell in cells)]


def _wrapped(note: str) -> str:
    return textwrap.fill(note, width=100, initial_indent="- ", subsequent_indent="  ")
