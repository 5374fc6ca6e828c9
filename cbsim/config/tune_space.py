"""TuneSpace: what `tune:` asks for, as ranges and choices of settings, and how they are searched."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cbsim.base.errors import ConfigError
from cbsim.base.registry import did_you_mean
from cbsim.config.condition import Condition
from cbsim.config.document import TUNE, Document, describe_value
from cbsim.config.mistakes import validation_problems
from cbsim.config.section import Section
from cbsim.config.sweep_grid import AxisParser, AxisValue
from cbsim.config.yaml_text import Keys

Number = int | float
DIGITS = 4
"""Significant ones of the numbers that are tried in a continuum: more would say nothing."""
_LOG_FROM = 10
"""A range that spans more than this factor is searched by its logarithm, unless it says otherwise."""
_FORMS = "a range [LOW, HIGH], {from: LOW, to: HIGH}, or a list of choices"


class SearchPlan(Section):
    """How a tune searches; it stands beside the keys that it varies."""

    objective: Literal["goodput", "cost", "latency"] = "goodput"
    """What is best among the settings that meet the SLO: the highest goodput, the lowest cost per million
    output tokens, or the shortest p99 E2E."""
    trials: int = Field(default=50, ge=1)
    """Settings that are tried, those that short windows rule out included."""
    windows: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[0.1, 0.3])
    """Shares of the requests, rising, on which settings are tried before they run in full; an empty list runs
    all of them in full at once."""
    batch: int = Field(default=4, ge=1)
    """Settings that are chosen at once and may run side by side. What is found depends on it, not on the
    number of workers."""


class _TuneSection(Section):
    """`tune:` with the words alone, for mistakes in them."""

    tune: SearchPlan


@dataclass(frozen=True, slots=True)
class Range:
    """A key between two numbers, both included."""

    key: str
    """Dotted."""
    low: Number
    high: Number
    is_whole: bool
    """Whether only whole numbers are meant."""
    is_log: bool
    """Whether equal factors count for the same, rather than equal differences."""
    origin: Keys
    """Where in the document it is written."""
    step: Number | None = None
    """From one value to the next."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it sets: one."""
        return (self.key,)

    @property
    def num_values(self) -> int | None:
        """How many values there are; `None` for a continuum."""
        if self.step is None and not self.is_whole:
            return None
        return math.floor((self.high - self.low) / (self.step or 1) * (1 + 1e-12)) + 1

    def numbered(self, number: int) -> Number:
        """The value of a number from 0, where there are `num_values`."""
        return self.low + number * (self.step or 1)

    def at(self, place: float) -> Number:
        """The value at a place from 0, the lower end, to 1, the upper one."""
        if self.is_log:
            value = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        else:
            value = self.low + place * (self.high - self.low)
        if self.num_values is not None:
            return self.numbered(min(round((value - self.low) / (self.step or 1)), self.num_values - 1))
        if place in (0.0, 1.0):
            return self.high if place else self.low
        # A narrow range needs more digits, or few values would be left in it.
        digits = DIGITS + max(0, math.ceil(math.log10(self.high / (self.high - self.low))) - 1)
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def place(self, value: Number) -> float:
        """Where a value lies: the other way round."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def settings(self, value: Number) -> tuple[AxisValue, ...]:
        """The key at a value."""
        return (AxisValue(self.key, value, self.origin),)

    def extremes(self) -> Iterator[tuple[AxisValue, ...]]:
        """The settings that show whether the key can take its values: at both ends."""
        yield from map(self.settings, (self.low, self.high))


@dataclass(frozen=True, slots=True)
class Choices:
    """A key, or several that vary together, at one of some values."""

    steps: tuple[tuple[AxisValue, ...], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it sets."""
        return tuple(value.key for value in self.steps[0])

    @property
    def num_values(self) -> int:
        """How many choices there are."""
        return len(self.steps)

    @property
    def is_ordered(self) -> bool:
        """Whether they are rising numbers, so that neighbours are alike."""
        values = [step[0].value for step in self.steps]
        is_rising = all(map(_is_number, values)) and values == sorted(set(values))
        return is_rising and len(self.keys) == 1

    def numbered(self, number: int) -> int:
        """The choice of a number from 0."""
        return number

    def at(self, place: float) -> int:
        """The choice at a place from 0, the first, to 1, the last."""
        return min(int(place * self.num_values), self.num_values - 1)

    def place(self, value: Number) -> float:
        """Where a choice lies: the other way round."""
        return (value + 0.5) / self.num_values

    def settings(self, value: Number) -> tuple[AxisValue, ...]:
        """The keys at the choice of a number."""
        return self.steps[int(value)]

    def extremes(self) -> Iterator[tuple[AxisValue, ...]]:
        """The settings that show whether the keys can take their values: all."""
        yield from self.steps


Dimension = Range | Choices


@dataclass(frozen=True, slots=True)
class TuneSpace:
    """The settings that a tune searches, and how."""

    dimensions: tuple[Dimension, ...]
    conditions: tuple[Condition, ...] = ()
    """What all settings must fulfil; others are not tried."""
    plan: SearchPlan = field(default_factory=SearchPlan)
    notes: tuple[str, ...] = ()
    """Which keys an override has pinned."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that vary."""
        return tuple(key for dimension in self.dimensions for key in dimension.keys)

    @property
    def num_settings(self) -> int | None:
        """How many settings there are, before any condition; `None` where a key has a continuum."""
        counts = [dimension.num_values for dimension in self.dimensions]
        return None if None in counts else math.prod(count or 1 for count in counts)

    def numbered(self, number: int) -> tuple[Number, ...]:
        """The settings of a number from 0, a value for each dimension, the first varying slowest."""
        values: list[Number] = []
        for dimension in reversed(self.dimensions):
            number, own = divmod(number, dimension.num_values or 1)
            values.append(dimension.numbered(own))
        return tuple(reversed(values))

    def settings(self, values: tuple[Number, ...]) -> tuple[AxisValue, ...]:
        """All keys at their values."""
        pairs = zip(self.dimensions, values, strict=True)
        return tuple(each for dimension, value in pairs for each in dimension.settings(value))

    def with_floats(self, keys: frozenset[str]) -> TuneSpace:
        """The same, with ranges of `keys` meant as any numbers, though their ends are whole."""
        return replace(
            self,
            dimensions=tuple(
                replace(each, is_whole=False, low=float(each.low), high=float(each.high))
                if isinstance(each, Range) and each.key in keys
                else each
                for each in self.dimensions
            ),
        )


def parse_space(document: Document, pinned: set[Keys]) -> TuneSpace | None:
    """The space of a document's `tune`, `None` without one; `pinned` keys are left out with a note.

    Raises `ConfigError` with a line for each mistake in the form (values are checked by those who know the
    keys).
    """
    raw = document.get((TUNE,))
    if not raw and not isinstance(raw, str | int | float | list):
        return None
    parser = _SpaceParser(document, pinned)
    if not isinstance(raw, Mapping):
        got = describe_value(raw)
        parser.problem((TUNE,), f"got {got}; expected a mapping of dotted keys to ranges and choices")
        raise ConfigError(*parser.problems)
    for key, form in raw.items():
        if key not in WORDS:
            parser.add(key, form)
    parser.add_conditions(raw.get("where"))
    return parser.space(raw)


WORDS = ("where", *SearchPlan.model_fields)
"""Keys below `tune` that are not to vary."""


class _SpaceParser(AxisParser):
    """Collects dimensions and mistakes."""

    def __init__(self, document: Document, pinned: set[Keys]) -> None:
        super().__init__(document, pinned, TUNE)
        self._dimensions: list[Dimension] = []

    def add(self, key: str, form: Any) -> None:
        """A key with its range or its choices, in any of their forms, or keys that vary together."""
        origin: Keys = (TUNE, key)
        if key == "zip":
            self.add_zip(form)
        elif isinstance(form, Mapping):
            self._add_mapping(key, form, origin)
        elif isinstance(form, list) and len(form) == 2 and all(map(_is_number, form)):
            self._add_range(key, {"from": form[0], "to": form[1]}, origin)
        elif isinstance(form, list) and form:
            self.add_axis({key: form}, (TUNE,))
        elif self._is_free(key, origin):
            got = "an empty list" if form == [] else describe_value(form)
            near = difflib.get_close_matches(key, WORDS, n=1)
            self.problem(
                origin, f"got {got}; expected {_FORMS}" + (f"; did you mean '{near[0]}'?" if near else "")
            )
        self._dimensions += map(Choices, self._axes)
        self._axes.clear()

    def space(self, raw: Mapping[str, Any]) -> TuneSpace:
        """What was collected. Raises `ConfigError` with all mistakes."""
        plan = self._plan({word: raw[word] for word in SearchPlan.model_fields if word in raw})
        if not self._dimensions and not self.problems and not self.notes:
            self.problem((TUNE,), f"varies no key; expected keys, each with {_FORMS}")
        if self.problems:
            raise ConfigError(*self.problems)
        return TuneSpace(tuple(self._dimensions), tuple(self.conditions), plan, tuple(self.notes))

    def _plan(self, words: Mapping[str, Any]) -> SearchPlan:
        own = Document({TUNE: {}}, self._document.source)
        for word, value in words.items():
            own.put((TUNE, word), value, self._document, (TUNE, word))
        try:
            plan = _TuneSection.model_validate(own.data).tune
        except ValidationError as error:
            self.problems += validation_problems(error, _TuneSection, own)
            return SearchPlan()
        if plan.windows != sorted(set(plan.windows)):
            self.problem((TUNE, "windows"), f"got {plan.windows}; expected rising shares, as in [0.1, 0.3]")
        return plan

    def _add_mapping(self, key: str, form: Mapping[str, Any], origin: Keys) -> None:
        """The long forms: `{from: 256, to: 16384, log: true}`, `{choices: [...]}`."""
        names = ("choices",) if "choices" in form else ("from", "to", "log", "step")
        unknown = [name for name in form if name not in names]
        for name in unknown:
            self.problem((*origin, name), f"unknown key{did_you_mean(str(name), names)}")
        missing = [] if "choices" in form else [name for name in ("from", "to") if name not in form]
        if missing and not unknown:
            self.problem(origin, f"{' and '.join(missing)} missing; expected {_FORMS}")
        if unknown or missing:
            return
        if "choices" in form:
            self.add_axis({key: form["choices"]}, (TUNE,), ("choices",))
        else:
            self._add_range(key, form, origin)

    def _add_range(self, key: str, form: Mapping[str, Any], origin: Keys) -> None:
        if not self._is_free(key, origin):
            return
        low: Any
        high: Any
        low, high, step, is_log = (form.get(name) for name in ("from", "to", "step", "log"))
        for name, value in (("from", low), ("to", high), ("step", step)):
            if not (_is_number(value) or (name == "step" and value is None)):
                self.problem((*origin, name), f"got {describe_value(value)}; expected a number")
                return
        if is_log not in (None, True, False):
            self.problem((*origin, "log"), f"got {describe_value(is_log)}; expected true or false")
        elif low >= high:
            self.problem(origin, f"got {low:g} to {high:g}; expected the lower end first")
        elif step is not None and not 0 < step <= high - low:
            self.problem((*origin, "step"), f"got {step:g}; expected a number > 0 and <= {high - low:g}")
        elif is_log and (low <= 0 or step is not None):
            why = f"from {low:g}" if low <= 0 else f"step {step:g}"
            self.problem((*origin, "log"), f"got true with {why}; expected from > 0, and no step")
        else:
            if is_log is None:
                is_log = step is None and low > 0 and high / low > _LOG_FROM
            is_whole = all(isinstance(each, int) for each in (low, high, step or 0))
            self._dimensions.append(Range(key, low, high, is_whole, is_log, origin, step))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
