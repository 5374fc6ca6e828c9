"""The points file: `points.csv`, one row a timing, read with every mistake named."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import S_PER_HOUR
from cbsim.lab.calibrate.point import OPS, SPLITS, Point

COLUMNS = (
    "op",
    "chunks",
    "B",
    "KV",
    "Kmax",
    "T",
    "S",
    "backend",
    "page_size",
    "dtype",
    "graph",
    "l2",
    "n",
    "t_median_s",
    "t_min_s",
    "t_p90_s",
    "order",
    "split",
    "seed",
)
REQUIRED = ("op", "chunks", "B", "KV", "Kmax", "T", "S", "t_median_s")
MAX_PROBLEMS = 20
MAX_COUNT = 100_000_000
"""No step has more tokens, decodes or context."""
MAX_SHOWN = 40
"""Characters of a value that a message repeats."""
MAX_SECONDS = S_PER_HOUR
"""No kernel takes longer; larger figures are of another unit."""


def point_row(point: Point) -> list[str]:
    """The values of `COLUMNS` for a point."""
    return [
        point.op,
        ";".join(f"{tokens}+{context}" for tokens, context in point.chunks),
        str(point.num_decodes),
        str(point.decode_context),
        str(point.max_decode_context),
        str(point.tokens),
        str(point.num_logits),
        point.backend,
        str(point.page_size),
        point.dtype,
        str(int(point.graph)),
        point.l2,
        str(point.num_runs),
        *(_seconds_text(value) for value in (point.t_median_s, point.t_min_s, point.t_p90_s)),
        str(point.order),
        point.split,
        str(point.seed),
    ]


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Write `points.csv`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(point_row(point) for point in points)
    temporary.replace(path)


def append_point(path: Path, point: Point) -> None:
    """Add a row, on disk before this returns; begins the file with its header."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(point_row(point))


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
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise CalibrationError(f"{path}:1: not a points file: without {_columns(missing)}")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise CalibrationError(f"{path}:1: twice in the header: {_columns(repeated)}")
    points: list[Point] = []
    problems: list[str] = []
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        if not row:
            continue
        mistakes = _Mistakes(f"{path}:{number}")
        if len(row) != len(header):
            mistakes.add(f"{len(row)} values, expected {len(header)}")
        else:
            point = _parse(dict(zip(header, row, strict=True)), mistakes)
            if not mistakes.lines:
                points.append(point)
        problems.extend(mistakes.lines)
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise CalibrationError(
            *problems[:MAX_PROBLEMS], *([f"{path}: and {more} more such mistakes"] if more > 0 else [])
        )
    if not points:
        raise CalibrationError(f"{path}: holds no points")
    return points


class _Mistakes:
    """Gathers the mistakes of one line."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.lines: list[str] = []

    def add(self, message: str) -> None:
        self.lines.append(f"{self.place}: {message}")


def _parse(values: dict[str, str], mistakes: _Mistakes) -> Point:
    def integer(name: str, default: int = 0, *, is_size: bool = True) -> int:
        text = values.get(name, "")
        if not text:
            return default
        if not text.isdecimal():
            mistakes.add(f"{name}: expected a whole number >= 0, got '{text}'")
            return default
        if is_size and _is_beyond(text):
            mistakes.add(f"{name}: expected at most {MAX_COUNT:,}, got '{text[:MAX_SHOWN]}'")
            return default
        return int(text)

    def seconds(name: str, default: float = math.nan) -> float:
        text = values.get(name, "")
        if not text and name not in REQUIRED:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            mistakes.add(f"{name}: expected seconds > 0, got '{text}'")
        elif value > MAX_SECONDS:
            mistakes.add(f"{name}: expected seconds of one kernel or step, under an hour, got '{text}'")
        return value

    def choice(name: str, allowed: Sequence[str], default: str) -> str:
        text = values.get(name, "") or default
        if text not in allowed:
            mistakes.add(f"{name}: unknown '{text}'{did_you_mean(text, allowed)}")
        return text

    point = Point(
        op=choice("op", OPS, ""),  # type: ignore[arg-type]
        t_median_s=seconds("t_median_s"),
        chunks=_parse_chunks(values["chunks"], mistakes),
        num_decodes=integer("B"),
        decode_context=integer("KV"),
        max_decode_context=integer("Kmax"),
        tokens=integer("T"),
        num_logits=integer("S"),
        backend=values.get("backend", ""),
        page_size=integer("page_size", 16),
        dtype=values.get("dtype", "") or "bfloat16",
        graph=values.get("graph", "") == "1",
        l2=choice("l2", ("cold", "warm"), "cold"),
        num_runs=integer("n", 1),
        t_min_s=seconds("t_min_s"),
        t_p90_s=seconds("t_p90_s"),
        order=integer("order"),
        split=choice("split", SPLITS, "fit"),  # type: ignore[arg-type]
        seed=integer("seed", is_size=False),
    )
    if not mistakes.lines:
        _check_sizes(point, mistakes)
    return point


def _parse_chunks(text: str, mistakes: _Mistakes) -> tuple[tuple[int, int], ...]:
    chunks = []
    for part in filter(None, text.split(";")):
        tokens, plus, context = part.partition("+")
        if not (plus and tokens.isdecimal() and context.isdecimal() and tokens.strip("0")):
            mistakes.add(f"chunks: expected TOKENS+CONTEXT;..., got '{part[:MAX_SHOWN]}'")
            return ()
        if _is_beyond(tokens) or _is_beyond(context):
            mistakes.add(f"chunks: expected at most {MAX_COUNT:,} tokens, got '{part[:MAX_SHOWN]}'")
            return ()
        chunks.append((int(tokens), int(context)))
    return tuple(chunks)


def _check_sizes(point: Point, mistakes: _Mistakes) -> None:
    """Whether the sizes that an op is a function of are there."""
    needs_chunks = point.op in ("prefill", "mixed")
    needs_decodes = point.op in ("decode", "mixed")
    if point.op == "dense" and point.tokens < 1:
        mistakes.add("T: a dense point needs tokens")
    if point.op == "logits" and point.num_logits < 1:
        mistakes.add("S: a logits point needs rows")
    if needs_chunks and not point.chunks:
        mistakes.add(f"chunks: a {point.op} point needs some")
    if needs_decodes and point.num_decodes < 1:
        mistakes.add(f"B: a {point.op} point needs decodes")
    if point.num_decodes and not point.num_decodes <= point.decode_context:
        mistakes.add(f"KV: {point.decode_context} tokens of context for {point.num_decodes} decodes")
    if point.num_decodes and not 0 < point.max_decode_context <= point.decode_context:
        mistakes.add(f"Kmax: expected 1 to KV = {point.decode_context}, got {point.max_decode_context}")


def _is_beyond(digits: str) -> bool:
    """Whether a whole number is larger than any size can be, however many digits it has."""
    return len(digits) > MAX_SHOWN or int(digits) > MAX_COUNT


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _seconds_text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
