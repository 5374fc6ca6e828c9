"""The files of points: `points.csv`, one row a timing, and `meta.json`, where they come from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from cbsim.base.errors import CalibrationError, refusals
from cbsim.base.paths import write_text
from cbsim.base.text_files import read_text
from cbsim.base.units import S_PER_HOUR
from cbsim.config.mistakes import plain_words
from cbsim.config.section import Section
from cbsim.cost.costfile import SHAPE_FIELDS
from cbsim.lab.calibrate.estimates import Estimate
from cbsim.lab.calibrate.point import BY_TOKENS, OPS, SPLITS, Chunks, Point
from cbsim.workload.table import Mistakes, open_table
from cbsim.workload.values import TEXT, Kind, number_kind, read_columns, whole

REQUIRED = ("op", "chunks", "B", "KV", "Kmax", "T", "S", "t_median_s")
MAX_COUNT = 100_000_000
"""No step has more tokens, decodes or context."""
MIN_SECONDS, MAX_SECONDS = 1e-12, S_PER_HOUR
"""Less is 0 to any clock. No kernel takes longer; larger figures are of another unit."""


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Point)}


def _size(name: str) -> tuple[str, Kind]:
    return name, whole(0, MAX_COUNT, DEFAULTS[name])


def _seconds(absent: float | None = None) -> Kind:
    allowed = f"seconds of one kernel or step, more than 0, at most {MAX_SECONDS:,}"
    return number_kind(allowed, MIN_SECONDS, MAX_SECONDS, np.float64, absent)


def _one_of(allowed: Sequence[str]) -> Kind:
    return Kind(", ".join(allowed), lambda text: allowed[allowed.index(text)])


def _read_chunks(text: str) -> Chunks:
    read = whole(0, MAX_COUNT).read
    parts = (part.partition("+") for part in text.split(";") if part)
    chunks = tuple((int(read(tokens)), int(read(context))) for tokens, _, context in parts)
    if not all(tokens for tokens, _ in chunks):
        raise ValueError
    return chunks


COLUMNS: dict[str, tuple[str, Kind]] = {
    "op": ("op", _one_of(OPS)),
    "chunks": ("chunks", Kind(f"TOKENS+CONTEXT;..., each at most {MAX_COUNT:,}", _read_chunks)),
    "B": _size("num_decodes"),
    "KV": _size("decode_context"),
    "Kmax": _size("max_decode_context"),
    "T": _size("tokens"),
    "S": _size("num_logits"),
    "backend": ("backend", TEXT),
    "page_size": _size("page_size"),
    "dtype": ("dtype", TEXT),
    "graph": ("graph", whole(0, 1, absent=0)),
    "l2": ("l2", _one_of(("cold", "warm"))),
    "n": _size("num_runs"),
    "t_median_s": ("t_median_s", _seconds()),
    "t_min_s": ("t_min_s", _seconds(math.nan)),
    "t_p90_s": ("t_p90_s", _seconds(math.nan)),
    "order": _size("order"),
    "split": ("split", _one_of(SPLITS)),
    "seed": ("seed", whole(0, 2**63 - 1, absent=0)),
    "window": _size("window"),
    "longest": _size("num_longest"),
    "t_equal_s": ("t_equal_s", _seconds(math.nan)),
}
"""Of each column the attribute of `Point` that it holds, and what may stand in it."""
USUAL_COLUMNS = [name for name in COLUMNS if name not in ("longest", "t_equal_s")]
"""Those of files without `unequal` points."""


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Write `points.csv`."""
    points = list(points)
    names = [*COLUMNS] if any(point.op == "unequal" for point in points) else USUAL_COLUMNS
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *(_row(point, names) for point in points)])


def append_point(path: Path, point: Point) -> None:
    """Add a row, of no `unequal` point, on disk before this returns; begins the file with its header."""
    row = _row(point, USUAL_COLUMNS)
    rows = [row] if path.exists() else [USUAL_COLUMNS, row]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _row(point: Point, columns: Iterable[str]) -> list[str]:
    return [_text(getattr(point, COLUMNS[name][0])) for name in columns]


def _text(value: object) -> str:
    match value:
        case tuple():
            return ";".join(f"{tokens}+{context}" for tokens, context in value)
        case float():
            return "" if math.isnan(value) else f"{value:.6g}"
        case bool():
            return str(int(value))
    return str(value)


def read_points(path: Path) -> list[Point]:
    """Read `points.csv`. Raises `CalibrationError` with file, line and column of every mistake."""
    mistakes = Mistakes(str(path))
    with refusals(path, "read", CalibrationError):
        points = list(_read(path, mistakes))
    if not points and not mistakes:
        mistakes.add(0, 0, "holds no points")
    if mistakes:
        raise CalibrationError(*mistakes.error().problems)
    return points


def _read(path: Path, mistakes: Mistakes) -> Iterator[Point]:
    table = open_table(path, mistakes)
    if table is None:
        return
    if missing := [name for name in REQUIRED if name not in table.names]:
        listed = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        mistakes.add(table.header_line, 0, f"not a points file: without {listed}")
        return
    wanted = {attribute: (name, kind) for name, (attribute, kind) in COLUMNS.items() if name in table.names}
    columns, lines = read_columns(table, wanted, mistakes)
    if mistakes:
        return
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    for line, row in zip(lines, rows, strict=True):
        named = zip(columns, row, strict=True)
        # What is left empty is the attribute's default, NaN included, so that points read are those written.
        given: dict[str, Any] = {name: value for name, value in named if value is not None and value == value}
        if "op" not in given:
            mistakes.add(line, 0, f"op: got nothing; allowed: {COLUMNS['op'][1].allowed}")
            continue
        point = Point(**given | {"graph": bool(given.get("graph"))})
        for place, problem in enumerate(_lacks(point)):
            mistakes.add(line, place, problem)
        yield point


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
    if point.op == "unequal" and not 0 < point.num_longest < point.num_decodes:
        yield f"longest: expected 1 to B - 1 = {point.num_decodes - 1}, got {point.num_longest}"
    if point.op == "unequal" and math.isnan(point.t_equal_s):
        yield "t_equal_s: an unequal point needs the seconds of equal contexts"
    if point.num_decodes > point.decode_context:
        yield f"KV: {point.decode_context} tokens of context for {point.num_decodes} decodes"
    if point.num_decodes and not 0 < point.max_decode_context <= point.decode_context:
        yield f"Kmax: expected 1 to KV = {point.decode_context}, got {point.max_decode_context}"


class Meta(Section):
    """Device, model and provenance of a set of points."""

    device: str
    """The device as it calls itself."""
    gpu: str | None = None
    """Name of the GPU in `configs/gpus`, if it is one of them."""
    model: dict[str, int | str]
    """The model's name and the figures its kernels depend on."""
    tensor_parallel: int = Field(default=1, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)
    num_multiprocessors: int | None = Field(default=None, ge=1)
    """Of the GPU; null where nobody said."""
    estimates: list[Estimate] = Field(default_factory=list)
    """Launches that, if nobody timed them, are estimated by other GPUs' timings."""
    source: str
    """Who measured what, with which software."""
    licence: str | None = None
    """Of the source's data, where it isn't this project's own."""
    date: str
    """When the points were made, ISO 8601."""
    command: str
    """The command that made them."""
    software: dict[str, str] = Field(default_factory=dict)
    """Versions: driver, torch, cbsim."""
    assumptions: list[str] = Field(default_factory=list)
    """What was not measured, a sentence each; it goes into every run's notes."""
    warnings: list[str] = Field(default_factory=list)
    """What to know about the timings: unstable clocks, points left out."""

    @property
    def parallel(self) -> str:
        """How GPUs shared the model, in words."""
        return f"{self.tensor_parallel} tensor, {self.expert_parallel} expert, {self.data_parallel} data"

    @model_validator(mode="after")
    def _model_is_whole(self) -> Meta:
        missing = [key for key in ("name", *SHAPE_FIELDS) if key not in self.model]
        numbers = (*SHAPE_FIELDS, "window", "num_windowed_layers")
        counts = {key: self.model[key] for key in numbers if key != "dtype" and key in self.model}
        wrong = [f"{key} {n!r}" for key, n in counts.items() if not (isinstance(n, int) and n > 0)]
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has {', '.join(wrong)}, expected whole numbers > 0"] if wrong else []
        if problems:
            raise ValueError(f"model {' and '.join(problems)}")
        return self


def save_meta(meta: Meta, path: Path) -> None:
    """Write `meta.json` whole or not at all."""
    write_text(path, meta.model_dump_json(indent=2) + "\n")


def read_meta(path: Path) -> Meta:
    """Read `meta.json`. Raises `CalibrationError` with one line for each mistake in it."""
    try:
        text = read_text(path, CalibrationError)
    except CalibrationError as error:
        raise CalibrationError(f"{error}; points need their meta.json") from error
    try:
        return Meta.model_validate_json(text)
    except ValidationError as error:
        raise CalibrationError(*(f"{path}: {plain_words(mistake)}" for mistake in error.errors())) from error
