"""Notes of many runs as few sentences: those that differ in numbers alone become one, with ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
    names = dict.fromkeys(name for name, _ in notes_by_run)
    return [_prefix(whose[pattern], names) + _with_ranges(notes) for pattern, notes in told.items()]


def _prefix(whose: Mapping[str, None], names: Mapping[str, None]) -> str:
    if len(whose) == len(names):
        return ""
    if len(whose) <= MAX_NAMED:
        return f"{', '.join(whose)}: "
    return f"{len(whose)} of {len(names)}: "


def _with_ranges(notes: Sequence[str]) -> str:
    """One note for several that differ in numbers."""
    columns = list(zip(*(_NUMBER.findall(note) for note in notes), strict=True))
    ranges = iter([_range(column) for column in columns])
    return _NUMBER.sub(lambda match: next(ranges), notes[0])


def _range(numbers: Sequence[str]) -> str:
    ordered = sorted(numbers, key=lambda number: float(number.replace(",", "")))
    low, high = ordered[0], ordered[-1]
    return low if low == high else f"{low} to {high}"
