"""Notes of many runs as few sentences: those that differ in numbers alone become one, with ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_NAMED = 3
"""Of more runs a note tells only how many they are."""
_NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?")


def merged_notes(notes_by_run: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Each note once, `notes_by_run` being runs' names and their notes; runs may share a name.

    Notes that differ in numbers only are told as `4 to 78% of the tokens computed were padding`. Before a
    note stand the names of the runs that have it, unless all have, or how many these are.
    """
    whose: dict[str, dict[str, None]] = {}
    told: dict[str, list[str]] = {}
    for name, notes in notes_by_run:
        for note in notes:
            pattern = _NUMBER.sub("#", note)
            whose.setdefault(pattern, {})[name] = None
            told.setdefault(pattern, []).append(note)
    num_runs = len({name for name, _ in notes_by_run})
    return [_prefix(whose[pattern], num_runs) + _with_ranges(notes) for pattern, notes in told.items()]


def merged_column(names: Iterable[str], told: Iterable[Any]) -> list[str]:
    """The merged notes of the rows of a table: each row's in one text between semicolons, or missing."""
    notes = [text.split("; ") if isinstance(text, str) else [] for text in told]
    return merged_notes(list(zip(names, notes, strict=True)))


def _prefix(whose: Mapping[str, None], num_runs: int) -> str:
    if len(whose) == num_runs:
        return ""
    return f"{', '.join(whose)}: " if len(whose) <= MAX_NAMED else f"{len(whose)} of {num_runs}: "


def _with_ranges(notes: Sequence[str]) -> str:
    """One note for several that differ in numbers."""
    ranges = []
    for numbers in zip(*map(_NUMBER.findall, notes), strict=True):
        low, *_, high = sorted([*numbers, *numbers], key=lambda number: float(number.replace(",", "")))
        ranges.append(low if low == high else f"{low} to {high}")
    told = iter(ranges)
    return _NUMBER.sub(lambda _: next(told), notes[0])
