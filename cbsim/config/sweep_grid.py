"""Grid: what `sweep:` asks for, as axes, and their product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.config.condition import Condition, parse_condition
from cbsim.config.document import SWEEP, SWEEP_WORDS, Document, describe_value, split_key
from cbsim.config.yaml_text import Keys

MAX_POINTS = 100_000


class AxisValue(NamedTuple):
    """One swept key at one of its values."""

    key: str
    """Dotted."""
    value: Any
    origin: Keys
    """Where in the document it is written."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The axes of a sweep. An axis is a list of steps; a step sets one key or, zipped, several."""

    axes: tuple[tuple[tuple[AxisValue, ...], ...], ...] = ()
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()
    """Which axes an override has pinned."""

    @property
    def num_points(self) -> int:
        """Points before any condition."""
        return math.prod(len(axis) for axis in self.axes) if self.axes else 0

    def points(self) -> Iterator[tuple[AxisValue, ...]]:
        """Every point, the first axis varying slowest; conditions are not applied."""
        if self.axes:
            for steps in itertools.product(*self.axes):
                yield tuple(itertools.chain.from_iterable(steps))

    def points_one_by_one(self) -> Iterator[tuple[AxisValue, ...]]:
        """The first point, then each further step alone with the first of the other axes."""
        first = [axis[0] for axis in self.axes]
        yield tuple(itertools.chain.from_iterable(first))
        for i, axis in enumerate(self.axes):
            for step in axis[1:]:
                yield tuple(itertools.chain.from_iterable([*first[:i], step, *first[i + 1 :]]))


def parse_grid(document: Document, pinned: set[Keys], seed: int) -> Grid:
    """The grid of a document's `sweep`; axes of `pinned` keys are left out with a note.

    `replicates: N` is an axis of the seeds `seed`, `seed + 1`, ...; raises `ConfigError` with a line for each
    mistake in the form (values are checked where the points are made).
    """
    raw = document.get((SWEEP,))
    if raw is None:
        return Grid()
    parser = _Parser(document, pinned)
    if not isinstance(raw, dict):
        got = describe_value(raw)
        parser.problem((SWEEP,), f"got {got}; expected a mapping of dotted keys to lists of values")
    else:
        for key, value in raw.items():
            if key == "zip":
                parser.add_zip(value)
            elif key not in SWEEP_WORDS:
                parser.add_axis({key: value}, (SWEEP,))
        parser.add_replicates(raw.get("replicates"), seed)
        parser.add_conditions(raw.get("where"))
    return parser.grid()


class _Parser:
    """Collects axes, conditions, notes and mistakes."""

    def __init__(self, document: Document, pinned: set[Keys]) -> None:
        self._document = document
        self._pinned = pinned
        self._axes: list[tuple[tuple[AxisValue, ...], ...]] = []
        self._conditions: list[Condition] = []
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._seen: set[Keys] = set()

    def problem(self, keys: Keys, message: str) -> None:
        self._problems.append(self._document.place(keys).problem(message))

    def add_axis(self, columns: dict[str, Any], origin: Keys) -> None:
        """Some keys that vary together, each with its values."""
        read = [self._steps(key, values, (*origin, key)) for key, values in columns.items()]
        steps = [column for column in read if column]
        if len({len(column) for column in steps}) > 1:
            told = ", ".join(f"{column[0].key} has {len(column)}" for column in steps)
            self.problem(origin, f"lists of unequal length: {told}")
        elif steps:
            self._axes.append(tuple(zip(*steps, strict=True)))

    def add_zip(self, columns: Any) -> None:
        origin: Keys = (SWEEP, "zip")
        if isinstance(columns, dict) and columns:
            self.add_axis(columns, origin)
        else:
            got = describe_value(columns) if columns != {} else "an empty mapping"
            self.problem(origin, f"got {got}; expected a mapping of dotted keys to lists of equal length")

    def add_replicates(self, count: Any, seed: int) -> None:
        if count is None:
            return
        origin: Keys = (SWEEP, "replicates")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            self.problem(origin, f"got {describe_value(count)}; expected an integer >= 1")
        elif ("seed",) in self._seen:
            self.problem(origin, "replicates varies the seed, which has an axis of its own")
        elif ("seed",) in self._pinned:
            self._notes.append("replicates: dropped, since the seed is set")
        else:
            self._axes.append(tuple((AxisValue("seed", seed + i, origin),) for i in range(count)))

    def add_conditions(self, texts: Any) -> None:
        if texts is None:
            return
        for i, text in enumerate(texts if isinstance(texts, list) else [texts]):
            origin: Keys = (SWEEP, "where", i) if isinstance(texts, list) else (SWEEP, "where")
            try:
                if not isinstance(text, str):
                    raise ConfigError(f"got {describe_value(text)}; expected a comparison, as in 'seed < 3'")
                self._conditions.append(parse_condition(text))
            except ConfigError as error:
                self.problem(origin, error.problems[0])

    def grid(self) -> Grid:
        grid = Grid(tuple(self._axes), tuple(self._conditions), tuple(self._notes))
        if grid.num_points > MAX_POINTS:
            self.problem((SWEEP,), f"{grid.num_points:,} points; expected at most {MAX_POINTS:,}")
        if self._problems:
            raise ConfigError(*self._problems)
        return grid

    def _steps(self, key: str, values: Any, origin: Keys) -> list[AxisValue]:
        keys = split_key(key)
        is_swept_twice = keys in self._seen
        self._seen.add(keys)
        if keys[0] == SWEEP:
            self.problem(origin, "a sweep can't vary itself")
        elif is_swept_twice:
            self.problem(origin, "is swept twice")
        elif keys in self._pinned:
            self._notes.append(f"sweep.{key}: dropped, since {key} is set")
        elif not isinstance(values, list) or not values:
            got = "an empty list" if values == [] else describe_value(values)
            self.problem(origin, f"got {got}; expected a list of values")
        else:
            return [AxisValue(key, value, (*origin, i)) for i, value in enumerate(values)]
        return []
