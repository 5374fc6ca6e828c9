"""Measure a scaling study point by point, and say how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cbsim.base.errors import CbsimError
from cbsim.lab.bench.process import in_fresh_process
from cbsim.lab.bench.scaling import ScalePoint
from cbsim.lab.bench.scaling_ledger import Entry, Ledger
from cbsim.lab.bench.work_timing import Measured, measure_scaled, num_runs


@dataclass(frozen=True, slots=True)
class Row:
    """A point and what became of it."""

    point: ScalePoint
    measured: Measured | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """How far a study is."""

    num_points: int
    """Different points; one that stands on two axes counts once."""
    num_done: int
    """Points measured or failed, those that were there already included."""
    num_reused: int
    current: ScalePoint | None
    """The point that is measured now; `None` at the end."""
    time_left_s: float | None
    """Wall-clock seconds to go at the pace so far; `None` while there is none."""


class StudyInterrupted(KeyboardInterrupt):
    """Somebody stopped a study; `rows` is what it has measured."""

    def __init__(self, rows: Sequence[Row], text: str) -> None:
        super().__init__(text)
        self.rows = rows


def measure_study(
    points: Sequence[ScalePoint], ledger: Ledger, progress: Callable[[StudyProgress], None] | None = None
) -> list[Row]:
    """A row a point, in order: each in a process of its own, or as the ledger has it.

    A point that fails leaves its error in its row. Raises `StudyInterrupted` for Ctrl-C, after which a second
    call goes on, and `CbsimError` if the ledger can't be written.
    """
    tell = progress or _ignore
    keys = [ledger.key(point) for point in points]
    missing: dict[str, ScalePoint] = {}
    for key, point in zip(keys, points, strict=True):
        if ledger.get(key) is None:
            missing.setdefault(key, point)
    num_points = len(set(keys))
    num_reused = num_points - len(missing)
    errors: dict[str, str] = {}
    # The cheapest first: they say how long the others will take.
    waiting = sorted(missing.items(), key=lambda item: item[1].num_requests)
    try:
        for place, (key, point) in enumerate(waiting):
            left_s = time_left_s([later for _, later in waiting[place:]], _measured(ledger, keys))
            tell(StudyProgress(num_points, num_reused + place, num_reused, point, left_s))
            outcome = _measure(point)
            if isinstance(outcome, Entry):
                ledger.put(key, outcome)
            else:
                errors[key] = outcome
    except KeyboardInterrupt:
        done = [row for row in _rows(points, keys, ledger, errors) if row.measured is not None]
        num_kept = sum(ledger.get(key) is not None for key in set(keys))
        kept = f"{num_kept} of {num_points} points kept in {ledger.folder}; the same call goes on"
        raise StudyInterrupted(done, kept) from None
    tell(StudyProgress(num_points, num_points, num_reused, None, None))
    return _rows(points, keys, ledger, errors)


def _measure(point: ScalePoint) -> Entry | str:
    """A point's figures, or why there are none."""
    began = time.perf_counter()
    try:
        measured = in_fresh_process(measure_scaled, point.settings, point.small)
    except CbsimError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return Entry(measured, time.perf_counter() - began)


def time_left_s(points: Sequence[ScalePoint], measured: Sequence[Entry]) -> float | None:
    """Wall-clock seconds that points will take, from what a process costs anyway and the mean pace."""
    if not measured:
        return None
    fixed_s = min(entry.wall_s - entry.measured.cpu_s * num_runs(entry.measured.cpu_s) for entry in measured)
    num_requests = sum(entry.measured.num_requests for entry in measured)
    s_per_request = sum(entry.measured.cpu_s for entry in measured) / num_requests
    run_s = [point.num_requests * s_per_request for point in points]
    return sum(max(0.0, fixed_s) + each_s * num_runs(each_s) for each_s in run_s)


def _measured(ledger: Ledger, keys: Sequence[str]) -> list[Entry]:
    """What is known of the study's own points."""
    return [entry for entry in map(ledger.get, dict.fromkeys(keys)) if entry is not None]


def _rows(
    points: Sequence[ScalePoint], keys: Sequence[str], ledger: Ledger, errors: dict[str, str]
) -> list[Row]:
    rows = []
    for point, key in zip(points, keys, strict=True):
        entry = ledger.get(key)
        rows.append(Row(point, None if entry is None else entry.measured, errors.get(key)))
    return rows


def _ignore(progress: StudyProgress) -> None:
    """Nobody asked to be told."""
