"""Lookup in tables over sizes: where a size lies among the knots of an axis, and what stands between them.

Formulas over numbers, and over arrays by `over_columns`. Tables are flat, the last axis fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbsim.cost.elementwise import cell_of, larger, smaller

NUM_OCTAVES = 64


def check_line(xs: str, knots: Sequence[float], ys: str, values: Sequence[float]) -> None:
    """Raise `ValueError` unless knots rise from 1 or more and have a value each."""
    if len(knots) != len(values):
        raise ValueError(f"{len(knots)} {xs} for {len(values)} {ys}")
    if knots[0] < 1 or any(np.diff(knots) <= 0):
        raise ValueError(f"{xs} must be positive and rise")


class Axis(NamedTuple):
    """The knots of one axis of a table, rising."""

    knots: Any
    first_cells: Any
    """By e: the cell of 2 ** (e - 1), where the search for sizes from there to 2 ** e begins."""
    low: float
    high: float
    """The first and the last knot."""


def axis_of(knots: Sequence[float]) -> Axis:
    """The axis of two or more knots, or one without knots where a profile has no such table."""
    array = np.array(knots, dtype=np.float64)
    if not len(array):
        return Axis(array, np.zeros(0, dtype=np.int64), 0.0, 0.0)
    octaves = 2.0 ** (np.arange(NUM_OCTAVES) - 1)
    cells = np.clip(np.searchsorted(array, octaves, side="right") - 1, 0, len(array) - 2)
    return Axis(array, cells.astype(np.int64), float(array[0]), float(array[-1]))


def by_count(values: Any, count: Any) -> Any:
    """The value at a whole number, listed from 0 on; beyond the list as the last two go on."""
    last = len(values) - 1
    if count <= last:
        return values[count]
    return values[last] + (values[last] - values[last - 1]) * (count - last)


def nearest(axis: Any, size: Any) -> Any:
    """A size moved onto the axis where it lies beyond its ends."""
    return smaller(larger(size, axis.low), axis.high)


def share_of(axis: Any, cell: Any, size: Any) -> Any:
    """How far a size lies from the knot below to the next one, 0 to 1."""
    low = axis.knots[cell]
    return (size - low) / (axis.knots[cell + 1] - low)


def on_line(values: Any, at: Any, step: Any, share: Any) -> Any:
    """Between the values at `at` and `step` further."""
    low = values[at]
    return low + share * (values[at + step] - low)


def on_plane(values: Any, at: Any, stride: Any, row_share: Any, column_share: Any) -> Any:
    """Bilinear in the cell whose first corner is at `at`, the last axis first; rows are `stride` apart."""
    low = on_line(values, at, 1, column_share)
    return low + row_share * (on_line(values, at + stride, 1, column_share) - low)


def at_line(values: Any, axes: Any, size: Any) -> Any:
    """The value of a table of one axis at a size within its ends."""
    cell = cell_of(axes[0], size)
    return on_line(values, cell, 1, share_of(axes[0], cell, size))


def at_plane(values: Any, axes: Any, row: Any, column: Any) -> Any:
    """The value of a table of two axes at sizes within its ends, the last axis first."""
    row_cell, column_cell = cell_of(axes[0], row), cell_of(axes[1], column)
    stride = len(axes[1].knots)
    at = row_cell * stride + column_cell
    row_share, column_share = share_of(axes[0], row_cell, row), share_of(axes[1], column_cell, column)
    return on_plane(values, at, stride, row_share, column_share)


def at_space(values: Any, axes: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """The value of a table of four axes at sizes within its ends, the last axis first."""
    first_cell, second_cell = cell_of(axes[0], first), cell_of(axes[1], second)
    third_cell, fourth_cell = cell_of(axes[2], third), cell_of(axes[3], fourth)
    stride = len(axes[3].knots)
    second_stride = stride * len(axes[2].knots)
    first_stride = second_stride * len(axes[1].knots)
    at = first_cell * first_stride + second_cell * second_stride + third_cell * stride + fourth_cell
    second_share = share_of(axes[1], second_cell, second)
    third_share = share_of(axes[2], third_cell, third)
    fourth_share = share_of(axes[3], fourth_cell, fourth)
    low = on_plane(values, at, stride, third_share, fourth_share)
    high = on_plane(values, at + second_stride, stride, third_share, fourth_share)
    low_s = low + second_share * (high - low)
    at = at + first_stride
    low = on_plane(values, at, stride, third_share, fourth_share)
    high = on_plane(values, at + second_stride, stride, third_share, fourth_share)
    high_s = low + second_share * (high - low)
    return low_s + share_of(axes[0], first_cell, first) * (high_s - low_s)


def risen(knots: Any, values: Any, cell: Any, size: Any) -> Any:
    """Between two knots by the slope, as `numpy.interp` has it."""
    low = knots[cell]
    return (values[cell + 1] - values[cell]) / (knots[cell + 1] - low) * (size - low) + values[cell]
