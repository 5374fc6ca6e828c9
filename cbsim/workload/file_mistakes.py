"""Mistakes: what is wrong with one input file, gathered while it is read and told all at once."""

from __future__ import annotations

from cbsim.base.errors import WorkloadError

MAX_LINES_TOLD = 20
_KEPT = 50 * MAX_LINES_TOLD


class Mistakes:
    """The mistakes of one file in order of line and column: the first are told, the rest counted."""

    def __init__(self, file: str, unit: str = "") -> None:
        """`unit` goes before a row number in a file that has no lines: `trace.parquet:row 3`."""
        self._file = file
        self._unit = unit
        self._kept: list[tuple[int, int, str]] = []
        self._num_mistakes = 0

    def __bool__(self) -> bool:
        return self._num_mistakes > 0

    def add(self, line: int, column: int, text: str) -> None:
        """One mistake; line 0 is the file as a whole, `column` orders the mistakes of a line."""
        self._num_mistakes += 1
        place = f"{self._file}:{self._unit}{line}" if line else self._file
        self._kept.append((line, column, f"{place}: {text}"))
        if len(self._kept) > 2 * _KEPT:
            self._kept = sorted(self._kept)[:_KEPT]

    def error(self) -> WorkloadError:
        """The error that tells them: at most 20 lines, then how many more there are."""
        lines = [text for _, _, text in sorted(self._kept)[:MAX_LINES_TOLD]]
        num_more = self._num_mistakes - len(lines)
        if num_more:
            lines.append(f"{self._file}: ... and {num_more:,} more")
        return WorkloadError(*lines)
