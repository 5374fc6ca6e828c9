"""Verbs that formulas are written in, for numbers and, by the same names, for arrays.

A formula such as `blend` is written once, over numbers: a step's rule calls it, interpreted or compiled.
`over_columns` gives the same formula over arrays, element by element: its verbs then stand for numpy's. All
of them are exact or exactly rounded, so the two agree to the last bit. Formulas that are to be used over
arrays choose between numbers by `chosen`, not by `if`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil, frexp, ldexp, sqrt
from typing import Any

import numpy as np

from cbsim.base.binding import Bound


def root(square: Any) -> Any:
    """The square root."""
    return sqrt(square)


def larger(a: Any, b: Any) -> Any:
    """The larger of two."""
    return a if a > b else b


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two."""
    return a if a < b else b


def chosen(condition: Any, then: Any, otherwise: Any) -> Any:
    """One of two values, both of them computed."""
    return then if condition else otherwise


def rounded_up(number: Any) -> Any:
    """The least whole number that is not below `number`, as a float."""
    return float(ceil(number))


def bit_length(number: Any) -> Any:
    """`int.bit_length` of a whole number >= 0: 0 for 0, 1 for 1, 2 for 2 and 3; exact below 2**53."""
    return frexp(float(number))[1]


def power_of_two_from(number: Any) -> Any:
    """The least power of two that is not below `number` > 0."""
    mantissa, exponent = frexp(number)
    return ldexp(0.5 if mantissa == 0.5 else 1.0, exponent)


def cell_of(axis: Any, size: Any) -> Any:
    """Index of the knot of an `Axis` at or below a size on it; the last knot is in the last cell."""
    knots = axis.knots
    last = len(knots) - 2
    cell = 0
    if size >= 1.0:
        cell = axis.first_cells[frexp(size)[1]]
    while cell < last and size >= knots[cell + 1]:
        cell += 1
    return cell


def over_columns(formula: Callable[..., Any]) -> Callable[..., Any]:
    """The formula over arrays, element by element."""
    return _twin(formula)


def _root(square: Any) -> Any:
    return np.sqrt(square)


def _larger(a: Any, b: Any) -> Any:
    return np.maximum(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return np.minimum(a, b)


def _chosen(condition: Any, then: Any, otherwise: Any) -> Any:
    return np.where(condition, then, otherwise)


def _rounded_up(number: Any) -> Any:
    return np.ceil(number)


def _bit_length(number: Any) -> Any:
    return np.frexp(np.asarray(number, dtype=np.float64))[1].astype(np.int64)


def _power_of_two_from(number: Any) -> Any:
    mantissa, exponent = np.frexp(number)
    return np.ldexp(np.where(mantissa == 0.5, 0.5, 1.0), exponent)


def _cell_of(axis: Any, size: Any) -> Any:
    cell = np.searchsorted(axis.knots, size, side="right") - 1
    return np.minimum(np.maximum(cell, 0), len(axis.knots) - 2)


_VERBS: dict[str, Callable[..., Any]] = {
    "root": _root,
    "larger": _larger,
    "smaller": _smaller,
    "chosen": _chosen,
    "rounded_up": _rounded_up,
    "bit_length": _bit_length,
    "power_of_two_from": _power_of_two_from,
    "cell_of": _cell_of,
}


@cache
def _twin(formula: Callable[..., Any]) -> Callable[..., Any]:
    return Bound(formula, _VERBS).interpreted
