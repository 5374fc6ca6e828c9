"""Records in two forms: numpy arrays for compiled rules, lists of objects for interpreted ones.

`plain` makes the second of the first; `live` lets Python read the first as if it were the second.

The same rule reads `requests[i].priority` in either form. Fields are assigned one by one: assigning a whole
record copies in numpy and names the same object in a list.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import starmap
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
from numpy.typing import NDArray

COPIED_AT_ONCE = 4_096
"""Records of a table that whoever goes through all of it gets as copies at a time."""


def plain(value: Any) -> Any:
    """Arrays as lists, records and named tuples as objects with the same fields, tuples of them as tuples.

    Interpreted rules run some ten times as fast over these as over numpy scalars. Arrays of two dimensions
    become lists of lists. Nothing is shared with the arrays.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return object_class(type(value))(*map(plain, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
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


class OnDemand(dict[int, Any]):
    """The records of an array by place as `plain` makes them, when one of their neighbours is asked for.

    The array must stay as it is. A place that is known costs no more than in a list.
    """

    def __init__(self, array: Any) -> None:
        super().__init__()
        self._array = array
        self._make = record_class(array.dtype)

    def __missing__(self, place: int) -> Any:
        first = place % len(self) // NEIGHBOURS * NEIGHBOURS
        rows = self._array[first : first + NEIGHBOURS].tolist()
        self.update(enumerate(starmap(self._make, rows), first))
        return self[place % len(self)]

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))


def rows_on_demand(table: Any, num_used: float) -> list[Any]:
    """The rows of an array of records of two dimensions, as `plain`; as `OnDemand` where they are many.

    Or more than the `num_used` of which a run has use at the most.
    """
    return [*map(OnDemand if table.size > min(MANY, num_used) else plain, table)]


NEIGHBOURS = 64
"""Records that are made together."""
MANY = 1 << 18
"""Records that take `plain` a quarter of a second, and 40 MB."""


def live(value: Any) -> Any:
    """As `plain`, but in the memory of the arrays: what is read is what stands there at that instant.

    Nothing can be set. A slice of a table is a copy.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(live, value))
    if isinstance(value, list):
        return list(map(live, value))
    if isinstance(value, np.void):
        return LiveTable(np.frombuffer(value.data, value.dtype))[0]
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim > 1:
        return [live(row) for row in value]
    return value.data.toreadonly() if value.dtype.names is None else LiveTable(value)


class LiveTable(Sequence[Any]):
    """The records of an array, each an object when it is asked for."""

    def __init__(self, array: Any, base: type = object) -> None:
        """The objects are of a class derived from `base`."""
        self._array = array
        self._make = live_class(array.dtype, base)
        self._copy = _copy_class(array.dtype)
        self._readers = tuple(array[name].item for name in array.dtype.names)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self), COPIED_AT_ONCE):
            yield from self[first : first + COPIED_AT_ONCE]

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(map(self._copy._make, self._array[place].tolist()))
        return self._make(self._readers, place)


@cache
def live_class(dtype: np.dtype[Any], base: type = object) -> type:
    """A class for records of an array: its fields are read, by `readers`, when they are asked for."""
    names = dtype.names
    assert names is not None

    def __init__(self: Any, readers: Any, row: int) -> None:
        self._readers, self._row = readers, row

    def field(number: int) -> property:
        return property(lambda self: self._readers[number](self._row))

    fields = {name: field(number) for number, name in enumerate(names)}
    return type("Live", (base,), {"__slots__": ("_readers", "_row"), "__init__": __init__, **fields})


@cache
def _copy_class(dtype: np.dtype[Any]) -> Any:
    return namedtuple("Copy", dtype.names or ())


def packed(values: list[Any], dtype: np.dtype[Any]) -> Any:
    """Objects with the fields of `dtype`, numbers, as an array of records: the inverse of `plain`."""
    try:
        packed_rows = bytearray().join(map(_packer(dtype), values))
    except StructError:
        # A rule has left a real number where whole ones stand: it is cut off, as it is compiled.
        packed_rows = bytearray().join(map(_packer(dtype, "int({})"), values))
    return np.frombuffer(packed_rows, dtype)


@cache
def _packer(dtype: np.dtype[Any], whole: str = "{}") -> Callable[[Any], bytes]:
    """What gives the bytes of one record, whose fields lie side by side; `whole` makes its whole numbers.

    Written out for its fields, it takes a third of the time that it takes to go through one field after the
    other.
    """
    fields = [(name, dtype[name].str[1:]) for name in dtype.names or ()]
    pack = Struct("=" + "".join(_CODES[kind] for _, kind in fields)).pack
    values = [f"row.{name}" if kind == "f8" else whole.format(f"row.{name}") for name, kind in fields]
    made: Callable[[Any], bytes] = eval(f"lambda row: pack({', '.join(values)})", {"pack": pack})
    return made


_CODES = {"f8": "d", "i8": "q", "i4": "i", "i1": "b"}
"""Kinds of fields as `struct` names them."""


@cache
def record_class(dtype: np.dtype[Any]) -> type:
    """A class with a slot for each field of a record, in their order."""
    assert dtype.names is not None
    return _slotted(dtype.names)


@cache
def object_class(kind: type) -> type:
    """A class with a slot for each field of a kind of named tuple, and its `_replace`.

    Python reads a slot five times as fast as a named tuple's field.
    """
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    made = _slotted(names)

    def _replace(self: Any, **changes: Any) -> Any:
        return made(**{name: getattr(self, name) for name in names} | changes)

    made._replace = _replace  # type: ignore[attr-defined]
    return made


def _slotted(names: tuple[str, ...]) -> type:
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


PIECE = 1 << 16
"""Rows of a piece."""


def pieces(num_rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `PIECE` rows that cover `num_rows` rows."""
    for start in range(0, num_rows, PIECE):
        yield slice(start, min(start + PIECE, num_rows))


def column_pieces(
    table: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Some columns of a table, many rows at a time where it can give them so (`table.pieces(*names)`).

    Integers may have as few bits as hold them.
    """
    if hasattr(table, "pieces"):
        yield from table.pieces(*names)
    else:
        yield tuple(table[name] for name in names)
