"""Identity: whether two runs are the same run, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from cbsim.results.run_log import EMITTED, Column, RunLog, distinct_gaps


def without_batches(log: RunLog) -> RunLog:
    """The log as it is where batches are not recorded: without them, and without a row for each token."""
    kept = log.events["event"] != EMITTED
    return replace(log, batches=None, events={name: column[kept] for name, column in log.events.items()})


def differences(one: RunLog, other: RunLog) -> list[str]:
    """Where two logs differ, one line a column or count; empty if they are equal to the last bit.

    Slices, which may be cut differently, are compared by what follows from them: the parts of latencies.
    """
    others = _parts(other)
    return [line for name, part in _parts(one).items() for line in _differences(name, part, others[name])]


def _parts(log: RunLog) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for entry in fields(RunLog):
        if entry.name == "gaps":
            parts["gap_s"], parts["gap_count"] = distinct_gaps(log.gaps)
        elif entry.name != "slices":
            parts[entry.name] = getattr(log, entry.name)
    return parts


def _differences(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping) and name != "rejections":
        if set(one) != set(other):
            return [f"{name}: columns {sorted(one)} and {sorted(other)}"]
        return [line for key in one for line in _differences(f"{name}.{key}", one[key], other[key])]
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return [] if one == other else [f"{name}: {one} and {other}"]
    if one.dtype != other.dtype or one.shape != other.shape:
        return [f"{name}: {one.dtype} {one.shape} and {other.dtype} {other.shape}"]
    unequal = np.flatnonzero(_bits(one) != _bits(other))
    if not len(unequal):
        return []
    row = int(unequal[0])
    return [f"{name}: {len(unequal)} of {len(one)} rows, first row {row}: {one[row]} and {other[row]}"]


def _bits(column: Column) -> Column:
    """Values that are equal where all bits are; objects as they are."""
    if column.dtype == object:
        return column
    return np.ascontiguousarray(column).view(f"V{column.dtype.itemsize}")
