"""Columns: rows gathered during a run as flat arrays, a table when it is over."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
Table = dict[str, Column]


class Columns:
    """Rows of reals, integers and texts."""

    def __init__(self, **kinds: type[float] | type[int] | type[str]) -> None:
        """The columns' names, in order, and what each holds."""
        self._kinds = kinds
        self._values: list[Any] = [
            [] if kind is str else array("d" if kind is float else "q") for kind in kinds.values()
        ]

    def add(self, *row: float | int | str) -> None:
        """Add a row, its values in the order of the columns."""
        for values, value in zip(self._values, row, strict=True):
            values.append(value)

    def __len__(self) -> int:
        return len(self._values[0])

    def table(self, *keys: str) -> Table:
        """Every column by name, rows in order of these columns, equal ones as they came."""
        table = {
            name: np.array(values, dtype=object if kind is str else kind)
            for (name, kind), values in zip(self._kinds.items(), self._values, strict=True)
        }
        if keys:
            order = np.lexsort([table[key] for key in reversed(keys)])
            table = {name: column[order] for name, column in table.items()}
        return table
