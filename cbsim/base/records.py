"""Records in two forms: numpy arrays for compiled rules, lists of objects for interpreted ones.

The same rule reads `requests[i].priority` in either form. Fields are assigned one by one: assigning a whole
record copies in numpy and names the same object in a list.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Arrays as lists, records as objects with the same fields, tuples of them as tuples of these.

    Interpreted rules run some ten times as fast over these as over numpy scalars. Arrays of two dimensions
    become lists of lists. Nothing is shared with the arrays.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(plain, value))
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, np.void):
        return record_class(value.dtype)(*value.tolist())
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            return [plain(row) for row in value]
        if value.dtype.names is None:
            return value.tolist()
        make = record_class(value.dtype)
        return [make(*row) for row in value.tolist()]
    return value


def packed(values: list[Any], dtype: np.dtype[Any]) -> Any:
    """Objects of `record_class(dtype)` as an array of records: the inverse of `plain`."""
    names = dtype.names
    assert names is not None
    return np.array([tuple(getattr(value, name) for name in names) for value in values], dtype=dtype)


@cache
def record_class(dtype: np.dtype[Any]) -> type:
    """A class with a slot for each field of a record, in their order."""
    names = dtype.names
    assert names is not None
    body = "".join(f"        self.{name} = {name}\n" for name in names)
    source = (
        f"class Record:\n    __slots__ = {names!r}\n"
        f"    def __init__(self, {', '.join(names)}):\n{body}"
        "    def __repr__(self):\n"
        "        return ', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)\n"
    )
    scope: dict[str, Any] = {}
    exec(source, scope)
    made = scope["Record"]
    assert isinstance(made, type)
    return made
