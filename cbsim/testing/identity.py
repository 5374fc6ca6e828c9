"""Identity: whether two runs are the same run, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from cbsim.results.run_log import EMITTED, RunLog, distinct_gaps


def without_batches(log: RunLog) -> RunLog:
    """The log as it is where batches are not recorded: without them, and without a row for each token."""
    kept = log.events["event"] != EMITTED
    return replace(log, batches=None, events={name: column[kept] for name, column in log.events.items()})


def differences(one: RunLog, other: RunLog) -> list[str]:
    """Where two logs differ, one line a column or count; empty if they are equal to the last bit.

    Slices, which may be cut differently, are compared by what follows from them: the parts of latencies.
    """
    lines = []
    for entry in fields(RunLog):
        if entry.name == "slices":
            continue
        if entry.name == "gaps":
            for name, *columns in zip(
                ("gap_s", "gap_count"), distinct_gaps(one.gaps), distinct_gaps(other.gaps), strict=True
            ):
                lines += _differences(name, *columns)
            continue
        lines += _differences(entry.name, getattr(one, entry.name), getattr(other, entry.name))
    return lines


def _differences(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping) and name != "rejections":
        if set(one) != set(other):
            return [f"{name}: columns {sorted(one)} and {sorted(other)}"]
        return [line for key in one for line in _differences(f"{name}.{key}", one[key], other[key])]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return _array_differences(name, one, other)
    return [] if one == other else [f"{name}: {one} and {other}"]


def _array_differences(name: str, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> list[str]:
    if one.dtype != other.dtype or one.shape != other.shape:
        return [f"{name}: {one.dtype} {one.shape} and {other.dtype} {other.shape}"]
    if one.dtype == object:
        unequal = np.flatnonzero(one != other)
    else:
        width = one.dtype.itemsize
        bits = [np.ascontiguousarray(column).view(np.uint8).reshape(-1, width) for column in (one, other)]
        unequal = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    if not len(unequal):
        return []
    row = int(unequal[0])
    return [f"{name}: {len(unequal)} of {len(one)} rows, first row {row}: {one[row]} and {other[row]}"]
