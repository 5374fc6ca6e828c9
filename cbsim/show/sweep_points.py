"""Sweep: a sweep's table with a row a point, and how sure the figures of its points are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError
from cbsim.results.table_file import first_line
from cbsim.show.capacity_text import describe_slo
from cbsim.show.figures import COMPARED, MBU, MFU
from cbsim.show.reader_tables import records
from cbsim.studies.intervals import (
    BOOKKEEPING,
    HIGH,
    LOW,
    NUM_REPLICATES,
    SEED,
    Interval,
    across_replicates,
    bootstrap_interval,
    swept_columns,
    t_interval,
)
from cbsim.studies.labels import point_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's table, and the same with a row a point whatever its seed."""

    table: pd.DataFrame
    points: pd.DataFrame
    """As `cbsim.studies.intervals.across_replicates` makes it."""
    keys: Sequence[str]
    """The swept settings, seeds apart."""
    slo: Mapping[str, float]
    by_spread: bool = False
    """As for `cbsim.studies.intervals.across_replicates`."""

    @classmethod
    def of(cls, table: pd.DataFrame, slo: Mapping[str, float], by_spread: bool = False) -> Sweep:
        """A sweep from its table and its limits, seconds."""
        keys = [key for key in swept_columns(table) if key != SEED]
        points = across_replicates(table, by_spread=by_spread)
        return cls(table, points, keys, slo, by_spread)

    @property
    def ran(self) -> pd.DataFrame:
        """The runs that didn't fail."""
        return self.table[self.table["error"].isna()]

    @property
    def is_replicated(self) -> bool:
        """Whether points have intervals: several runs each, in which chance has changed something."""
        column, _ = self.aim
        varies = self.points[column + HIGH] > self.points[column + LOW]
        return bool(self.points[NUM_REPLICATES].min() > 1 and varies.any())

    @property
    def aim(self) -> tuple[str, str]:
        """The figure that makes a point the best, and what it is called."""
        if self.slo:
            return "goodput_per_s", f"goodput, %s requests/s within {describe_slo(self.slo)}"
        return "output_token_throughput_per_s", "throughput, %s output tokens/s"

    @property
    def num_determined(self) -> int:
        """Points of several runs that are the same in every figure: nothing in them was drawn."""
        figures = [name.removesuffix(HIGH) for name in self.points.columns if name.endswith(HIGH)]
        low, high = (self.points[[name + end for name in figures]].to_numpy() for end in (LOW, HIGH))
        is_same = ((low == high) | self.points[figures].isna().to_numpy()).all(axis=1)
        return int((is_same & (self.points[NUM_REPLICATES] > 1)).sum())

    def name(self, row: Mapping[str, Any]) -> str:
        """What a point is called."""
        return point_name(row, self.keys) or "the experiment"

    def interval(self, row: Mapping[str, Any], column: str) -> Interval:
        """A figure of a point over its replicates."""
        return Interval(row[column], row[column + LOW], row[column + HIGH])

    def difference(self, first: Mapping[str, Any], second: Mapping[str, Any], column: str) -> Interval:
        """By how much a figure of one point exceeds another's, paired by seed."""
        by_seed = []
        for row in (first, second):
            runs = self.ran
            for key in self.keys:
                runs = runs[runs[key] == row[key]]
            by_seed.append(runs.set_index(SEED)[column])
        paired = (by_seed[0] - by_seed[1]).dropna().tolist()
        return (bootstrap_interval if self.by_spread else t_interval)(paired)

    def records(self) -> list[dict[str, Any]]:
        """The points as mappings, `None` for what is missing."""
        return records(self.points)


def read_sweep_table(folder: Path) -> pd.DataFrame:
    """The table in a sweep's folder.

    Raises `CbsimError` with a line for each column that is missing or holds no numbers, or if the file can't
    be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "table.parquet"
    try:
        stored: Any = pq.read_table(path)
        _check_columns(stored)
    except CbsimError as error:
        raise CbsimError(*(f"{path}: {problem}" for problem in error.problems)) from None
    except (OSError, pa.ArrowException) as error:
        raise CbsimError(f"{path}: can't be read: {first_line(error)}") from error
    try:
        table: pd.DataFrame = stored.to_pandas()
    except TypeError:  # a swept column is of another type than when pandas described it
        table = stored.replace_schema_metadata(None).to_pandas()
    return table


def _check_columns(stored: Any) -> None:
    """Raise `CbsimError` unless a stored table has the columns of a sweep's, and numbers in its figures."""
    import pyarrow as pa

    names: list[str] = stored.column_names
    needed = {"point", "error"}
    if "error" in names and stored.column("error").null_count:
        needed |= {"num_requests", *(figure.key for figure in (*COMPARED, MFU, MBU)), *BOOKKEEPING}
    missing = sorted(needed - {*names})
    if missing:
        raise CbsimError(f"no table of a sweep: has no column {', '.join(missing)}")
    problems = ["column point: got empty cells; expected names"] if stored.column("point").null_count else []
    first = names.index("num_requests") if "num_requests" in names else len(names)
    for name in names[first:]:
        filled = stored.column(name).drop_null()
        kind = filled.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if name not in BOOKKEEPING and len(filled) and not is_number:
            problems.append(f"column {name}: got {kind} ({filled[0].as_py()!r}); expected numbers")
    if problems:
        raise CbsimError(*problems)
