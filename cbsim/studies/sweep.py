"""Sweep: many configurations, each run once and kept, and one tidy table over them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError, refusals
from cbsim.base.paths import written_whole
from cbsim.base.spreadsheet import escaped
from cbsim.results.metrics import Summary, flatten
from cbsim.results.output import POINTS, check_target, drawn_from_sweep, has_file
from cbsim.results.result import copy_run, hash_mapping, is_whole_run, load_summary, remove_damaged_run
from cbsim.studies.experiment import Experiment
from cbsim.studies.labels import label_values
from cbsim.studies.run import Address, run_experiment
from cbsim.studies.worker_pool import Pool, open_pool, time_left_s

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a sweep: what is special about it, and the folder its run is kept in."""

    swept: Mapping[str, Any]
    """Dotted key -> value, in the order of the experiment file."""
    settings: Mapping[str, Any]
    """The experiment as resolved: plain data, which any worker can be sent."""
    key: str
    """Hash of all that its result depends on: equal keys, equal runs."""
    folder: Path
    run_key: str
    """`key`, without the seed where nothing in the run is drawn: points with equal `run_key` need one run."""
    assumed: tuple[str, ...] = ()
    """As `Experiment.assumed`, which plain data do not tell."""


class SweepInterrupted(KeyboardInterrupt):
    """Somebody stopped a sweep; its text says what is kept."""


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep has come, after each point."""

    num_points: int
    num_reused: int = 0
    """Points whose runs were there already."""
    num_done: int = 0
    """Points run now, failed ones included."""
    num_failed: int = 0
    elapsed_s: float = 0.0
    """Wall-clock seconds since the first point began."""
    best: tuple[Point, Summary] | None = None
    """The best point so far: one that meets its SLO, of the highest goodput (throughput without limits on
    each request)."""
    error: tuple[Point, str] | None = None
    """The point that has just failed, and why."""

    @property
    def time_left_s(self) -> float | None:
        """Wall-clock seconds to go at the pace so far; `None` before the first point is done."""
        return time_left_s(self.elapsed_s, self.num_done, self.num_points - self.num_reused - self.num_done)


def sweep(
    config: str | Path | Mapping[str, Any] | Experiment,
    out: str | Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[SweepProgress], None] | None = None,
    pool_of: Callable[[int], Pool] | None = None,
) -> pd.DataFrame:
    """Run every point of an experiment's `sweep:` and return the table, a row a point.

    Columns: the swept keys under their dotted names, the flattened summary (`ttft_s.p99`, timings of the
    simulation left out), `point` (folder under `out/points`) and `error` (null for a point that ran). Points
    run in this process, on `workers` spawned ones, or on the dask cluster at the address `cluster`, whose
    workers must see the same files, or, instead of either, on the pool that `pool_of` gives for so many; the
    table is the same to the byte. `out`, else `runs/<name>` (with a hash
    behind it if the experiment isn't a file as it stands), keeps the run folders and the table as `table.csv`
    and `table.parquet`; points that are there already are not run
    again, so that a killed sweep resumes; damaged ones are. Where another sweep was in `out`, its runs stay,
    and what was drawn of its table is removed. A failing point, or one whose run somebody has moved away,
    leaves its error in the table and the others go on.

    Raises `ConfigError` for mistakes in the configuration, `CbsimError` if something other than a sweep is in
    the folder, nothing can be written, or the cluster doesn't answer; `SweepInterrupted` for Ctrl-C.
    """
    experiment = Experiment.of(config, overrides or {})
    folder = Path(out) if out is not None else Path("runs") / experiment.name
    if out is None and (overrides or not isinstance(config, str | Path)):
        # Another sweep of that name may be in the folder that the experiment's own file has.
        settings = [point.resolved() for _, point in experiment.points()]
        folder = folder.with_name(f"{folder.name}-{hash_mapping(settings)[:8]}")
    check_target(folder, "sweep")
    points = plan_points(experiment, folder)
    try:
        pool_of = pool_of or (lambda num_points: open_pool(min(workers, num_points), cluster))
        errors = _run_missing(points, pool_of, progress or (lambda _: None))
    except KeyboardInterrupt:
        kept = f"{sum(is_whole_run(point.folder) for point in points)} of {len(points)} points"
        raise SweepInterrupted(f"{kept} kept in {folder}; the same call goes on") from None
    errors |= {point.key: GONE for point in points if point.key not in errors and _is_gone(point)}
    table = make_table(points, errors)
    _remove_drawn_of_others(table, folder)
    save_table(table, folder)
    return table


def plan_points(experiment: Experiment, folder: Path) -> list[Point]:
    """The points of a sweep in the experiment file's order, each with its key and folder.

    Raises `CbsimError` naming every input file that can't be read.
    """
    address = Address()
    points = []
    for swept, point in experiment.points():
        settings = point.resolved()
        key, run_key = address.keys(point, settings)
        path = (folder / POINTS / key).resolve()
        points.append(Point(swept, settings, key, path, run_key, point.assumed))
    return points


GONE = "its run folder is gone: moved or removed while the sweep went on; the same call runs it again"


def _is_gone(point: Point) -> bool:
    return not has_file(point.folder, "summary.json")


def run_point(point: Point) -> None:
    """Run one point and write its folder: the task that workers are given."""
    result = run_experiment(Experiment.from_mapping(point.settings))
    result.summary["notes"][:0] = point.assumed
    remove_damaged_run(point.folder)
    result.save(point.folder)


def make_table(points: Sequence[Point], errors: Mapping[str, str]) -> pd.DataFrame:
    """The table over points, whose runs are read from their folders; `errors` by key are of failed ones."""
    labels = label_values([point.swept for point in points])
    rows = []
    for point, swept in zip(points, labels, strict=True):
        figures = {} if point.key in errors else flatten(load_summary(point.folder))
        rows.append(swept | figures | {"point": point.key, "error": errors.get(point.key)})
    return typed_table(rows)


def typed_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table, each column of the narrowest type; rows that failed lack figures."""
    import pandas as pd

    # Columns that a failing first row lacks still come before its last ones.
    widest = max(rows, key=len, default={})
    table = pd.DataFrame(rows, columns=list(widest))
    kinds: dict[Any, Any] = {
        name: _dtype([row[name] for row in rows if row.get(name) is not None]) for name in table.columns
    }
    # The copy is whole again: a frame of many blocks warns whoever adds a column to it.
    return table.astype(kinds).copy()


def save_table(table: pd.DataFrame, folder: Path, name: str = "table") -> None:
    """Write `<name>.csv` and `<name>.parquet`, each whole or not at all; `check_table` knows it again.

    Raises `CbsimError` if they can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pa.Table.from_pandas(table, preserve_index=False)
    marked = stored.replace_schema_metadata({**stored.schema.metadata, SHA256: _hash_rows(stored)})
    with written_whole(folder / f"{name}.csv") as csv, written_whole(folder / f"{name}.parquet") as parquet:
        csv.write_text(_csv(table), encoding="utf-8", newline="")
        pq.write_table(marked, parquet, compression="zstd")


SHA256 = b"cbsim.sha256"
"""The key, in a Parquet file's own metadata, of the hash of its rows; other tools leave it out."""


def check_table(path: Path, stored: Any) -> None:
    """Raise `CbsimError` if the Arrow table read from a file is not the one that `save_table` wrote there."""
    expected = (stored.schema.metadata or {}).get(SHA256)
    if expected not in (None, _hash_rows(stored)):
        raise CbsimError(f"{path}: was altered since it was written; the same command writes it anew")


def _hash_rows(stored: Any) -> bytes:
    return hashlib.sha256(repr(stored.to_pylist()).encode()).hexdigest().encode()


def _csv(table: pd.DataFrame) -> str:
    texts = table.select_dtypes(["object", "string"])
    return table.assign(**texts.map(escaped)).to_csv(index=False, lineterminator="\n")


def _remove_drawn_of_others(table: pd.DataFrame, folder: Path) -> None:
    """Remove what was drawn of another table in a folder, which would look like this one's."""
    stored = folder / "table.csv"
    if has_file(folder, stored.name) and stored.read_bytes() == _csv(table).encode():
        return
    for path in drawn_from_sweep(folder):
        with refusals(path, "removed"):
            path.unlink()


def _run_missing(
    points: Sequence[Point], pool_of: Callable[[int], Pool], progress: Callable[[SweepProgress], None]
) -> dict[str, str]:
    """Run the points that have no whole run yet, equal ones once; returns the errors by key."""
    there: list[Point] = []
    missing: dict[str, Point] = {}
    for point in points:
        if point.key not in missing and is_whole_run(point.folder):
            there.append(point)
        else:
            missing[point.key] = point
    state = SweepProgress(len(points), len(points) - len(missing), best=reduce(_better, there, None))
    progress(state)
    errors: dict[str, str] = {}
    if not missing:
        return errors
    began = time.perf_counter()
    for point, error in _outcomes(pool_of(len(missing)), list(missing.values()), there):
        elapsed_s = time.perf_counter() - began
        state = replace(state, num_done=state.num_done + 1, elapsed_s=elapsed_s, error=None)
        if error is None:
            state = replace(state, best=_better(state.best, point))
        else:
            told = str(error) if isinstance(error, CbsimError) else f"{type(error).__name__}: {error}"
            errors[point.key] = told
            state = replace(state, num_failed=state.num_failed + 1, error=(point, told))
        progress(state)
    return errors


def _outcomes(
    pool: Pool, missing: Sequence[Point], there: Sequence[Point]
) -> Iterator[tuple[Point, BaseException | None]]:
    """What becomes of each point: of those that need one run the first is run, the others are its copies.

    Where that one fails, the next of them is run, for what failed may be of its own folder.
    """
    whole = {point.run_key: point for point in there}
    waiting: dict[str, list[Point]] = {}
    for point in missing:
        waiting.setdefault(point.run_key, []).append(point)
    for run_key in [run_key for run_key in waiting if run_key in whole]:
        yield from _copies(whole[run_key], waiting.pop(run_key))
    while waiting:
        firsts = [alike.pop(0) for alike in waiting.values()]
        for outcome in pool.run_all(run_point, firsts):
            first = firsts[outcome.index]
            yield first, outcome.error
            if outcome.error is None:
                yield from _copies(first, waiting.pop(first.run_key))
        waiting = {run_key: alike for run_key, alike in waiting.items() if alike}


def _copies(source: Point, points: Sequence[Point]) -> Iterator[tuple[Point, BaseException | None]]:
    """The run of one point, written for others that differ in a seed from which nothing is drawn."""
    for point in points:
        error: CbsimError | None = None
        try:
            remove_damaged_run(point.folder)
            copy_run(source.folder, point.folder, {"seed": point.settings["seed"]})
        except CbsimError as caught:
            error = caught
        yield point, error


def _better(best: tuple[Point, Summary] | None, point: Point) -> tuple[Point, Summary] | None:
    if _is_gone(point):
        return best
    summary = load_summary(point.folder)
    return (point, summary) if best is None or _rank(summary) > _rank(best[1]) else best


def _rank(summary: Summary) -> tuple[bool, float]:
    rate_per_s = summary["goodput_per_s"]
    if rate_per_s is None:
        rate_per_s = summary["output_token_throughput_per_s"]
    return bool(summary.get("slo_met")), rate_per_s or 0.0


def _dtype(values: Sequence[Any]) -> str:
    """The narrowest type of a column: whole numbers stay whole beside nulls."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return "Int64"
    if kinds <= {int, float}:
        return "float64"
    return "boolean" if kinds == {bool} else "object"
