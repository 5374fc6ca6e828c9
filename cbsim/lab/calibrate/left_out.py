"""left_out.csv: what could not be timed, and why, so that the next call doesn't stumble over it again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from cbsim.base.errors import CalibrationError
from cbsim.base.text_files import read_text

Trouble = Literal["failed", "no graph"]
"""`failed`: a point is not timed again; `no graph`: its op is timed kernel by kernel from then on."""

MAX_DEATHS = 2
"""Processes that die of a point in a row before it is left out."""
NO_POINT = -1
"""Place of what is in no plan: a kernel that was to be compared with others."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One point that brought trouble, or one kernel."""

    order: int
    """Its place in the plan; `NO_POINT` for a kernel."""
    op: str
    """What kind of point it is; the kernel's name."""
    window: int
    trouble: Trouble
    error: str
    """What was said, one line."""

    @property
    def kind(self) -> tuple[str, int]:
        """The op, and the window of the layer, that can't be captured if this one can't."""
        return self.op, self.window

    @property
    def is_uncaptured(self) -> bool:
        """Whether it could not be captured into a CUDA graph."""
        return self.trouble == "no graph"


HEADER = [field.name for field in fields(LeftOut)]


def append_left_out(path: Path, row: LeftOut) -> None:
    """Add a row, on disk before this returns; begins the file with its header."""
    rows: list[Iterable[object]] = [astuple(row)] if path.exists() else [HEADER, astuple(row)]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def read_left_out(path: Path) -> list[LeftOut]:
    """The rows of a file, none where it isn't there. Raises `CalibrationError` for what isn't such a file."""
    if not path.exists():
        return []
    text = read_text(path, CalibrationError)
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if rows[0] != HEADER:
            raise ValueError
        # A killed run may have torn the last one.
        return [_row(*row) for row in rows[1:] if len(row) == len(HEADER)]
    except (ValueError, IndexError, csv.Error) as error:
        raise CalibrationError(f"{path}: not a list of points left out; remove it to go on") from error


def _row(order: str, op: str, window: str, trouble: str, error: str) -> LeftOut:
    if trouble not in ("failed", "no graph"):
        raise ValueError
    return LeftOut(int(order), op, int(window), "failed" if trouble == "failed" else "no graph", error)


class DeathMark:
    """A file that says which point is being timed, and so which one a process died of.

    A kill from outside looks the same, so a point is at fault only when processes died of it in a row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order, self.count = NO_POINT, 0
        """The point that the last process died of, and how many in a row did."""
        try:
            self.order, before = map(int, path.read_text(encoding="utf-8").split())
            self.count = before + 1
        except (OSError, ValueError):
            return

    @contextmanager
    def around(self, order: int) -> Iterator[None]:
        """While a point is timed; whatever else ends it than the death of the process takes the mark away."""
        count = self.count if order == self.order else 0
        self.path.write_text(f"{order} {count}", encoding="utf-8", newline="")
        try:
            yield
        finally:
            self.path.unlink(missing_ok=True)
