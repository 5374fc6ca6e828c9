"""The points file: `points.csv`, one row a timing, read with every mistake named."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import S_PER_HOUR
from cbsim.lab.calibrate.point import BY_TOKENS, OPS, SPLITS, Point

REQUIRED = ("op", "chunks", "B", "KV", "Kmax", "T", "S", "t_median_s")
NEVER_EMPTY = ("op", "t_median_s")
MAX_PROBLEMS = 20
MAX_COUNT = 100_000_000
"""No step has more tokens, decodes or context."""
MAX_SHOWN = 40
"""Characters of a value that a message repeats."""
MAX_SECONDS = S_PER_HOUR
"""No kernel takes longer; larger figures are of another unit."""

# Readers of one value: each raises `ValueError` with what is wrong with it.


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"expected a whole number >= 0, got '{text}'")
    return int(text)


def _size(text: str) -> int:
    if text.isdecimal() and _is_beyond(text):
        raise ValueError(f"expected at most {MAX_COUNT:,}, got '{text[:MAX_SHOWN]}'")
    return _whole(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected seconds > 0, got '{text}'")
    if value > MAX_SECONDS:
        raise ValueError(f"expected seconds of one kernel or step, under an hour, got '{text}'")
    return value


def _one_of(allowed: Sequence[str], text: str) -> str:
    if text not in allowed:
        raise ValueError(f"unknown '{text}'{did_you_mean(text, allowed)}")
    return text


def _chunks(text: str) -> tuple[tuple[int, int], ...]:
    chunks = []
    for part in filter(None, text.split(";")):
        tokens, plus, context = part.partition("+")
        if not (plus and tokens.isdecimal() and context.isdecimal() and tokens.strip("0")):
            raise ValueError(f"expected TOKENS+CONTEXT;..., got '{part[:MAX_SHOWN]}'")
        if _is_beyond(tokens) or _is_beyond(context):
            raise ValueError(f"expected at most {MAX_COUNT:,} tokens, got '{part[:MAX_SHOWN]}'")
        chunks.append((int(tokens), int(context)))
    return tuple(chunks)


def _is_beyond(digits: str) -> bool:
    """Whether a whole number is larger than any size can be, however many digits it has."""
    return len(digits) > MAX_SHOWN or int(digits) > MAX_COUNT


COLUMNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "op": ("op", partial(_one_of, OPS)),
    "chunks": ("chunks", _chunks),
    "B": ("num_decodes", _size),
    "KV": ("decode_context", _size),
    "Kmax": ("max_decode_context", _size),
    "T": ("tokens", _size),
    "S": ("num_logits", _size),
    "backend": ("backend", str),
    "page_size": ("page_size", _size),
    "dtype": ("dtype", str),
    "graph": ("graph", "1".__eq__),
    "l2": ("l2", partial(_one_of, ("cold", "warm"))),
    "n": ("num_runs", _size),
    "t_median_s": ("t_median_s", _seconds),
    "t_min_s": ("t_min_s", _seconds),
    "t_p90_s": ("t_p90_s", _seconds),
    "order": ("order", _size),
    "split": ("split", partial(_one_of, SPLITS)),
    "seed": ("seed", _whole),
    "window": ("window", _size),
}
"""Of each column the attribute of `Point` that it holds, and the reader of its values."""


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Write `points.csv`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *map(_row, points)])
    temporary.replace(path)


def append_point(path: Path, point: Point) -> None:
    """Add a row, on disk before this returns; begins the file with its header."""
    rows = [_row(point)] if path.exists() else [COLUMNS, _row(point)]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _row(point: Point) -> list[str]:
    return [_text(getattr(point, name)) for name, _ in COLUMNS.values()]


def _text(value: object) -> str:
    match value:
        case tuple():
            return ";".join(f"{tokens}+{context}" for tokens, context in value)
        case float():
            return "" if math.isnan(value) else f"{value:.6g}"
        case bool():
            return str(int(value))
    return str(value)


def read_points(path: Path, *, drop_torn_line: bool = False) -> list[Point]:
    """Read `points.csv`. Raises `CalibrationError` with file, line and column of every mistake.

    With `drop_torn_line` a last line that a killed run left without its end is ignored.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CalibrationError(f"{path}: can't be read: {reason}") from error
    if drop_torn_line and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    lines = text.splitlines()
    if not lines:
        raise CalibrationError(f"{path}: empty; expected a header with {', '.join(REQUIRED)}")
    header = next(csv.reader(lines[:1]))
    if missing := [name for name in REQUIRED if name not in header]:
        raise CalibrationError(f"{path}:1: not a points file: without {_columns(missing)}")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise CalibrationError(f"{path}:1: twice in the header: {_columns(repeated)}")
    points: list[Point] = []
    problems: list[str] = []
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        if row:
            read = _parse(header, row)
            if isinstance(read, Point):
                points.append(read)
            else:
                problems += [f"{path}:{number}: {problem}" for problem in read]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        rest = [f"{path}: and {more} more such mistakes"] if more > 0 else []
        raise CalibrationError(*problems[:MAX_PROBLEMS], *rest)
    if not points:
        raise CalibrationError(f"{path}: holds no points")
    return points


def _parse(header: Sequence[str], row: Sequence[str]) -> Point | list[str]:
    """The point of a row, or all that is wrong with it; an empty value is the default."""
    if len(row) != len(header):
        return [f"{len(row)} values, expected {len(header)}"]
    values = dict(zip(header, row, strict=True))
    found: dict[str, Any] = {}
    problems = []
    for column, (name, read) in COLUMNS.items():
        text = values.get(column, "")
        if text or column in NEVER_EMPTY:
            try:
                found[name] = read(text)
            except ValueError as error:
                problems.append(f"{column}: {error}")
    if problems:
        return problems
    point = Point(**found)
    return list(_lacks(point)) or point


def _lacks(point: Point) -> Iterator[str]:
    """What is wrong with the sizes that an op is a function of."""
    if point.op in BY_TOKENS and point.tokens < 1:
        yield f"T: a {point.op} point needs tokens"
    if point.op == "logits" and point.num_logits < 1:
        yield "S: a logits point needs rows"
    if point.op in ("prefill", "mixed") and not point.chunks:
        yield f"chunks: a {point.op} point needs some"
    if point.op in ("decode", "mixed") and point.num_decodes < 1:
        yield f"B: a {point.op} point needs decodes"
    if point.num_decodes > point.decode_context:
        yield f"KV: {point.decode_context} tokens of context for {point.num_decodes} decodes"
    if point.num_decodes and not 0 < point.max_decode_context <= point.decode_context:
        yield f"Kmax: expected 1 to KV = {point.decode_context}, got {point.max_decode_context}"


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"
