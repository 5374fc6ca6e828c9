"""Values: from the raw column of a file to numbers, checked all at once and looked at singly only on failure.

Arrow arrays go to numpy through DLPack: `to_numpy` would import pandas, which takes longer than the reading.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cbsim.base.units import MEGA, NS_PER_S
from cbsim.workload.table import RawColumn, shorten

Bad = dict[int, str]
"""Row -> the value that was got there, as text."""

MAX_TOKENS = 100 * MEGA
"""Longer prompts and answers are taken for mistakes."""
MAX_EXACT = 2**53
"""Above this a float64 no longer holds every whole number."""

_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_DIGITS = re.compile(r"[+-]?\d+", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(ABC):
    """What may stand in a column. `allowed` ends the error line of a value that may not."""

    allowed: str
    is_optional: bool = False

    @abstractmethod
    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """The column as an array, and the rows whose value is not allowed (any value stands for them)."""


class Whole(Kind):
    """A whole number from `low` to `high`: int64. With a `default` it may be left out."""

    def __init__(self, low: int, high: int, default: int | None = None) -> None:
        self.low, self.high, self.default = low, high, default
        self.is_optional = default is not None
        self.allowed = f"a whole number from {low:,} to {high:,}"

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """Through Arrow or numpy at once where every value is a whole number."""
        numbers = _int64_at_once(raw)
        if numbers is None:
            return _one_by_one(raw, self._one, np.int64, self.default, self.low)
        return numbers, _out_of_range(numbers, self.low, self.high, raw)

    def _one(self, value: Any) -> int:
        number = _number(value)
        if not self.low <= number <= self.high or number != int(number):
            raise ValueError
        return int(number)


class Real(Kind):
    """A finite number from 0 to `high`: float64. With `is_optional`, NaN stands for one that is left out."""

    def __init__(self, unit: str, high: float = MAX_EXACT, is_optional: bool = False) -> None:
        self.high = high
        self.is_optional = is_optional
        self.allowed = f"a number of {unit} from 0 to {high:,}"

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """Through Arrow or numpy at once where every value is a number."""
        numbers = _float64_at_once(raw)
        if numbers is None:
            return _one_by_one(raw, self._one, np.float64, math.nan if self.is_optional else None, 0.0)
        return numbers, _out_of_range(numbers, 0.0, self.high, raw)

    def _one(self, value: Any) -> float:
        number = float(_number(value))
        if not 0 <= number <= self.high:
            raise ValueError
        return number


class Instant(Kind):
    """A date and time of day, UTC unless it names its offset: nanoseconds since 1970, int64."""

    allowed = "a time such as 2023-11-16 18:15:46.6805900"

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """Through Arrow's ISO 8601 reader at once where every value has, or none has, an offset."""
        if isinstance(raw, pa.Array) and raw.null_count == 0:
            for wanted in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
                try:
                    return np.from_dlpack(pc.cast(raw, wanted).cast(pa.int64())), {}
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    continue
        return _one_by_one(raw, self._one, np.int64, None, 0)

    def _one(self, value: Any) -> int:
        found = _INSTANT.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError
        moment, fraction, _, sign, hours, minutes = found.groups()
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
        since_epoch = datetime.fromisoformat(moment).replace(tzinfo=zone) - _EPOCH
        seconds = since_epoch.days * int(timedelta(days=1).total_seconds()) + since_epoch.seconds
        nanoseconds = seconds * NS_PER_S + int((fraction or "").ljust(9, "0"))
        if abs(nanoseconds) >= np.iinfo(np.int64).max:
            raise ValueError
        return nanoseconds


class Text(Kind):
    """A name; whole numbers are taken as their digits: str objects, or None where it is left out."""

    allowed = "text"
    is_optional = True

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """Python strings; an empty one counts as left out."""
        return _one_by_one(raw, self._one, np.object_, None, None)

    def _one(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        return str(value)


class SegmentList(Kind):
    """A prompt as `[[segment, n], ...]`, or the same as JSON text: tuples, or None where it is left out."""

    allowed = "[[segment, num_tokens], ...] with whole numbers from 1 up"
    is_optional = True

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """Python tuples `((segment, num_tokens), ...)`."""
        return _one_by_one(raw, self._one, np.object_, None, None)

    def _one(self, value: Any) -> tuple[tuple[str, int], ...]:
        listed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(listed, list):
            raise ValueError
        for part in listed:
            if not (isinstance(part, list) and len(part) == 2 and isinstance(part[0], str)):
                raise ValueError
            if type(part[1]) is not int or not 1 <= part[1] <= MAX_TOKENS:
                raise ValueError
        return tuple((name, num_tokens) for name, num_tokens in listed)


class IdList(Kind):
    """A list of block ids, whole numbers: int64 arrays, or None where it is left out."""

    allowed = "a list of whole numbers"
    is_optional = True

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """One int64 array a row."""
        return _one_by_one(raw, self._one, np.object_, None, None)

    def _one(self, value: Any) -> NDArray[np.int64]:
        listed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(listed, list) or not set(map(type, listed)) <= {int}:
            raise ValueError
        if any(abs(number) > MAX_EXACT for number in listed):
            raise ValueError
        return np.array(listed, dtype=np.int64)


def _int64_at_once(raw: RawColumn) -> NDArray[np.int64] | None:
    if isinstance(raw, list):
        if set(map(type, raw)) <= {int} and all(abs(value) <= MAX_EXACT for value in (min(raw), max(raw))):
            return np.array(raw, dtype=np.int64)
        return None
    if raw.null_count or not (pa.types.is_string(raw.type) or pa.types.is_integer(raw.type)):
        return None
    try:
        return np.asarray(np.from_dlpack(pc.cast(raw, pa.int64())), dtype=np.int64)
    except pa.ArrowInvalid:
        return None


def _float64_at_once(raw: RawColumn) -> NDArray[np.float64] | None:
    if isinstance(raw, list):
        if set(map(type, raw)) <= {int, float} and max(map(abs, raw)) <= MAX_EXACT:
            return np.array(raw, dtype=np.float64)
        return None
    is_number = pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type)
    if raw.null_count or not (pa.types.is_string(raw.type) or is_number):
        return None
    try:
        return np.asarray(np.from_dlpack(pc.cast(raw, pa.float64())), dtype=np.float64)
    except pa.ArrowInvalid:
        return None


def _out_of_range(numbers: NDArray[Any], low: float, high: float, raw: RawColumn) -> Bad:
    allowed = (numbers >= low) & (numbers <= high)
    if allowed.all():
        return {}
    return {int(row): show(_values(raw, int(row))) for row in np.flatnonzero(~allowed)}


def _one_by_one(
    raw: RawColumn, parse: Callable[[Any], Any], dtype: Any, default: Any, filler: Any
) -> tuple[NDArray[Any], Bad]:
    values: Sequence[Any] = raw if isinstance(raw, list) else raw.to_pylist()
    column = np.empty(len(values), dtype=dtype)
    bad: Bad = {}
    can_be_absent = default is not None or dtype is np.object_
    for row, value in enumerate(values):
        if can_be_absent and (value is None or value == ""):
            column[row] = default
            continue
        try:
            column[row] = parse(value)
        except (ValueError, OverflowError, RecursionError):
            bad[row] = show(value)
            column[row] = filler
    return column, bad


def _values(raw: RawColumn, row: int) -> Any:
    return raw[row] if isinstance(raw, list) else raw[row].as_py()


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        if _DIGITS.fullmatch(text):
            return int(text)
        if "_" in text or not text.isascii():  # float() itself takes underscores and foreign digits
            raise ValueError
        return float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


def show(value: Any) -> str:
    """A value in an error line: the text of a CSV field as it is, everything else as JSON writes it."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, str):
        return shorten(value)
    return shorten(json.dumps(value, default=str))
