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
from numpy.typing import NDArray

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


@cache
def over_columns(formula: Callable[..., Any]) -> Callable[..., NDArray[Any]]:
    """The formula over arrays, element by element."""
    return Bound(formula, _VERBS).interpreted


_VERBS: dict[str, Callable[..., Any]] = {
    "root": lambda square: np.sqrt(square),
    "larger": lambda a, b: np.maximum(a, b),
    "smaller": lambda a, b: np.minimum(a, b),
    "chosen": lambda condition, then, otherwise: np.where(condition, then, otherwise),
    "rounded_up": lambda number: np.ceil(number),
    "power_of_two_from": lambda number: _power_of_two_from(*np.frexp(number)),
    "cell_of": lambda axis, size: np.clip(
        np.searchsorted(axis.knots, size, side="right") - 1, 0, len(axis.knots) - 2
    ),
}


def _power_of_two_from(mantissa: Any, exponent: Any) -> Any:
    return np.ldexp(1.0, exponent - (mantissa == 0.5))
