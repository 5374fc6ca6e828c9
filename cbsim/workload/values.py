"""Values: from the raw column of a file to numbers, checked all at once and looked at singly only on failure.

Arrow arrays go to numpy through DLPack: `to_numpy` would import pandas, which takes longer than the reading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, Strict, TypeAdapter

from cbsim.base.text_files import parse_json
from cbsim.base.units import NS_PER_S
from cbsim.config.bounds import MAX_TOKENS
from cbsim.workload.table import Mistakes, RawColumn, Table, shorten

Bad = dict[int, str]
"""Row -> the value that was got there, as text."""

MAX_DRAFTS = 32
"""Drafts of a request in a step: no drafter proposes more."""
MAX_EXACT = 2**53
"""Above this a float64 no longer holds every whole number."""

_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_DIGITS = re.compile(r"[+-]?\d+", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Kind:
    """What may stand in a column."""

    allowed: str
    """The end of the error line of a value that may not."""
    read: Callable[[Any], Any]
    """One value as the array holds it; raises `ValueError` if it is not allowed."""
    dtype: type = np.object_
    absent: Any = None
    """What stands for a value that is left out; numbers may be left out only if there is such a thing."""
    at_once: Callable[[RawColumn], NDArray[Any] | None] = lambda raw: None
    """The whole column through Arrow, where Arrow reads every value."""
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def parse(self, raw: RawColumn) -> tuple[NDArray[Any], Bad]:
        """The column as an array, and the rows whose value is not allowed (any value stands for them)."""
        column = self.at_once(raw)
        if column is None:
            return self._one_by_one(raw if isinstance(raw, list) else raw.to_pylist())
        low, high = self.bounds
        wrong = np.flatnonzero(~((column >= low) & (column <= high))).tolist()
        return column, {row: _shown(raw[row]) for row in wrong}

    def _one_by_one(self, values: Sequence[Any]) -> tuple[NDArray[Any], Bad]:
        filler = None if self.dtype is np.object_ else 0
        may_be_absent = filler is None or self.absent is not None
        column: NDArray[Any] = np.full(len(values), filler, self.dtype)
        bad: Bad = {}
        for row, value in enumerate(values):
            if may_be_absent and (value is None or value == ""):
                column[row] = self.absent
                continue
            try:
                column[row] = self.read(value)
            except (ValueError, OverflowError, RecursionError):
                bad[row] = _shown(value)
        return column, bad


def read_columns(
    table: Table, wanted: Mapping[str, tuple[str, Kind]], mistakes: Mistakes
) -> tuple[dict[str, NDArray[Any]], list[int]]:
    """Columns of a table by the keys of `wanted`, which gives each its name there and what may stand in it.

    Returns them with the line of each row; what may not stand there is added to `mistakes`.
    """
    lines: list[int] = []
    parts: dict[str, list[NDArray[Any]]] = {key: [] for key in wanted}
    for chunk in table.chunks([*dict.fromkeys(name for name, _ in wanted.values())]):
        lines += chunk.lines
        for place, (key, (name, kind)) in enumerate(wanted.items()):
            values, bad = kind.parse(chunk.columns[name])
            parts[key].append(values)
            for row, got in bad.items():
                mistakes.add(chunk.lines[row], place, f"{name}: got {got}; allowed: {kind.allowed}")
    return {key: np.concatenate(pieces) for key, pieces in parts.items() if pieces}, lines


def whole(low: int, high: int, absent: int | None = None) -> Kind:
    """A whole number from `low` to `high`: int64."""
    return number_kind(f"a whole number from {low:,} to {high:,}", low, high, np.int64, absent)


def real(unit: str, absent: float | None = None) -> Kind:
    """A finite number from 0 up: float64."""
    return number_kind(f"a number of {unit} from 0 to {MAX_EXACT:,}", 0, MAX_EXACT, np.float64, absent)


def number_kind(
    allowed: str,
    low: float,
    high: float,
    dtype: Any,
    absent: float | None = None,
    *,
    is_rounded: bool = False,
) -> Kind:
    """A finite number from `low` to `high`, of a numpy type; with `is_rounded` the nearest it can hold."""

    def read(value: Any) -> Any:
        number = _number(value)
        if not low <= number <= high or (number != dtype(number) and not is_rounded):
            raise ValueError
        return dtype(number)

    def at_once(raw: RawColumn) -> NDArray[Any] | None:
        return _numbers(raw, pa.from_numpy_dtype(dtype))

    return Kind(allowed, read, dtype, absent, at_once, (low, high))


def _read_instant(value: Any) -> int:
    found = _INSTANT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError
    moment, fraction, offset = found.groups(default="")
    seconds = (datetime.fromisoformat(moment + (offset or "Z")) - _EPOCH) // timedelta(seconds=1)
    nanoseconds = seconds * NS_PER_S + int(fraction.ljust(9, "0"))
    if abs(nanoseconds) >= np.iinfo(np.int64).max:
        raise ValueError
    return nanoseconds


def _instants(raw: RawColumn) -> NDArray[Any] | None:
    """Through Arrow's ISO 8601 reader, where every value has, or none has, an offset."""
    if isinstance(raw, list):
        return None
    without_offset = _cast(raw, pa.timestamp("ns"), pa.int64())
    return _cast(raw, pa.timestamp("ns", "UTC"), pa.int64()) if without_offset is None else without_offset


def _read_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError
    return str(value)


def _listed(allowed: str, items: Any, convert: Callable[[list[Any]], Any], least: int = 0) -> Kind:
    """A list, or the same as JSON text, as `convert` makes it; None where it is left out."""
    adapter = TypeAdapter(Annotated[list[items], Field(min_length=least)])

    def read(value: Any) -> Any:
        return convert(adapter.validate_python(parse_json(value) if isinstance(value, str) else value))

    return Kind(allowed, read)


def _int(low: int, high: int) -> Any:
    return Annotated[int, Strict(), Field(ge=low, le=high)]


INSTANT = Kind(
    "a time such as 2023-11-16 18:15:46.6805900 (seconds: call the column arrival_s)",
    _read_instant,
    np.int64,
    at_once=_instants,
)
"""A date and time of day, UTC unless it names its offset: nanoseconds since 1970, int64."""
TEXT = Kind("text", _read_text)
"""A name; whole numbers are taken as their digits: str objects, or None where it is left out."""
_SEGMENT: Any = tuple[Annotated[str, Strict()], _int(1, MAX_TOKENS)]  # type: ignore[misc]
SEGMENTS = _listed("[[segment, num_tokens], ...] with whole numbers from 1 up", _SEGMENT, tuple)
"""A prompt as `[[segment, n], ...]`: tuples."""
COUNTS = _listed(f"[n, ...] with whole numbers from 0 to {MAX_DRAFTS}", _int(0, MAX_DRAFTS), tuple, least=1)
"""A list of counts of drafts: tuples."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt as ids of blocks: two prompts hold the same block, and all before it, where ids are equal."""

    ids: NDArray[Any]
    """64-bit integers."""
    num_tokens: int | None = None
    """How many tokens they were made of; None for ids that a file gave, of blocks of its own."""


def _ids(values: list[int]) -> PromptIds:
    """Whole numbers of 64 bits: uint64, or int64 where one is below 0."""
    return PromptIds(np.array(values, dtype=np.int64 if values and min(values) < 0 else np.uint64))


IDS = _listed("a list of whole numbers", _int(-(2**63), 2**64 - 1), _ids)
"""A list of block ids: `PromptIds`."""
TOKENS_PER_ID = 16
"""Tokens of a prompt that one of the ids made by `TOKEN_IDS` stands for."""


def _hashed(tokens: list[int]) -> PromptIds:
    """An id for each block of tokens, equal only where all tokens up to its end are (but for chance)."""
    ids, last = [], 0
    for start in range(0, len(tokens), TOKENS_PER_ID):
        last = hash((last, *tokens[start : start + TOKENS_PER_ID])) % 2**64
        ids.append(last)
    return PromptIds(np.array(ids, dtype=np.uint64), len(tokens))


TOKEN_IDS = _listed("a list of token ids", _int(0, MAX_EXACT), _hashed)
"""A prompt's own tokens: `PromptIds` of its blocks of `TOKENS_PER_ID`."""
_TIME: Any = Annotated[float, Field(ge=-MAX_EXACT, le=MAX_EXACT, allow_inf_nan=False)]
TIMES = _listed("a list of numbers", _TIME, partial(np.array, dtype=np.float64))
"""Times, or times between times: float64 arrays, or None where it is left out."""


def _numbers(raw: RawColumn, kind: pa.DataType) -> NDArray[Any] | None:
    """Numbers, or texts of numbers in a file of texts."""
    is_list = isinstance(raw, list)
    try:
        array = pa.array(raw) if is_list else raw
    except (pa.ArrowException, OverflowError):
        return None
    is_number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    return _cast(array, kind) if is_number or (pa.types.is_string(array.type) and not is_list) else None


def _cast(array: pa.Array, *kinds: pa.DataType) -> NDArray[Any] | None:
    """From one type to the next; `None` where a value is missing or can't be converted exactly."""
    if array.null_count:
        return None
    try:
        for kind in kinds:
            array = array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return np.from_dlpack(array)


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


def _shown(value: Any) -> str:
    """A value in an error line: the text of a CSV field as it is, everything else as JSON writes it."""
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if value is None or value == "":
        return "nothing"
    return shorten(value if isinstance(value, str) else json.dumps(value, default=str))
