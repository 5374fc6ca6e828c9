"""Grid: what `sweep:` asks for, as axes, and their product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.config.condition import Condition, parse_condition
from cbsim.config.document import SWEEP, SWEEP_WORDS, TUNE, Document, describe_value, split_key
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
    parser = AxisParser(document, pinned)
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


class AxisParser:
    """Collects the axes, conditions, notes and mistakes of a `section` that varies keys."""

    def __init__(self, document: Document, pinned: set[Keys], section: str = SWEEP) -> None:
        self._document = document
        self._pinned = pinned
        self._section = section
        self._axes: list[tuple[tuple[AxisValue, ...], ...]] = []
        self._seen: set[Keys] = set()
        self.conditions: list[Condition] = []
        self.notes: list[str] = []
        self.problems: list[str] = []

    def problem(self, keys: Keys, message: str) -> None:
        """Note a mistake at a place."""
        self.problems.append(self._document.place(keys).problem(message))

    def add_axis(self, columns: dict[str, Any], origin: Keys, below: Keys = ()) -> None:
        """Some keys that vary together, each with its values, which stand `below` it."""
        read = [self._steps(key, values, (*origin, key, *below)) for key, values in columns.items()]
        steps = [column for column in read if column]
        if len({len(column) for column in steps}) > 1:
            told = ", ".join(f"{column[0].key} has {len(column)}" for column in steps)
            self.problem(origin, f"lists of unequal length: {told}")
        elif steps:
            self._axes.append(tuple(zip(*steps, strict=True)))

    def add_zip(self, columns: Any) -> None:
        """Keys with lists of values, which vary together."""
        origin: Keys = (self._section, "zip")
        if isinstance(columns, dict) and columns:
            self.add_axis(columns, origin)
        else:
            got = describe_value(columns) if columns != {} else "an empty mapping"
            self.problem(origin, f"got {got}; expected a mapping of dotted keys to lists of equal length")

    def add_replicates(self, count: Any, seed: int) -> None:
        """The seeds of so many replicates; `None` adds nothing."""
        if count is None:
            return
        origin: Keys = (SWEEP, "replicates")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            self.problem(origin, f"got {describe_value(count)}; expected an integer >= 1")
        elif count > MAX_POINTS:
            self.problem((SWEEP,), f"{count:,} points; expected at most {MAX_POINTS:,}")
        elif ("seed",) in self._seen:
            self.problem(origin, "replicates varies the seed, which has an axis of its own")
        elif ("seed",) in self._pinned:
            self.notes.append("replicates: dropped, since the seed is set")
        else:
            self._axes.append(tuple((AxisValue("seed", seed + i, origin),) for i in range(count)))

    def add_conditions(self, texts: Any) -> None:
        """One comparison or a list of them; `None` adds nothing."""
        if texts is None:
            return
        for i, text in enumerate(texts if isinstance(texts, list) else [texts]):
            where = (self._section, "where")
            origin: Keys = (*where, i) if isinstance(texts, list) else where
            try:
                if not isinstance(text, str):
                    raise ConfigError(f"got {describe_value(text)}; expected a comparison, as in 'seed < 3'")
                self.conditions.append(parse_condition(text))
            except ConfigError as error:
                self.problem(origin, error.problems[0])

    def grid(self) -> Grid:
        """What was collected. Raises `ConfigError` with all mistakes."""
        grid = Grid(tuple(self._axes), tuple(self.conditions), tuple(self.notes))
        if grid.num_points > MAX_POINTS:
            self.problem((SWEEP,), f"{grid.num_points:,} points; expected at most {MAX_POINTS:,}")
        if self.problems:
            raise ConfigError(*self.problems)
        return grid

    def _is_free(self, key: str, origin: Keys) -> bool:
        """Whether a key is to vary: it may, does so once, and no override has set it."""
        keys = self._document.placed(split_key(key))
        is_varied_twice = keys in self._seen
        self._seen.add(keys)
        if keys[0] in (SWEEP, TUNE):
            what = "itself" if keys[0] == self._section else f"a {keys[0]}"
            self.problem(origin, f"a {self._section} can't vary {what}")
        elif is_varied_twice:
            self.problem(origin, "is swept twice" if self._section == SWEEP else "is tuned twice")
        elif keys in self._pinned:
            self.notes.append(f"{self._section}.{key}: dropped, since {key} is set")
        else:
            return True
        return False

    def _steps(self, key: str, values: Any, origin: Keys) -> list[AxisValue]:
        if not self._is_free(key, origin):
            return []
        if not isinstance(values, list) or not values:
            got = "an empty list" if values == [] else describe_value(values)
            self.problem(origin, f"got {got}; expected a list of values")
            return []
        return [AxisValue(key, value, (*origin, i)) for i, value in enumerate(values)]
