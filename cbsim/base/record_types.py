"""Named tuples of records as numba sees them: where they lie, not what they hold.

numba would pass a named tuple by value, seven words for each of its arrays, at every call. Here it is a
pointer to words that nobody changes while the code runs, as `cbsim.base.machine_code.words_of` gives them.
Importing this imports numba.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import register_model
from numba.core.imputils import lower_builtin, lower_getattr_generic
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.np.numpy_support import from_dtype

from cbsim.base.machine_code import WORD_BYTES, kind_of, words_of

WORD = ir.IntType(64)


class Fields(types.Type):
    """A named tuple: the type of each field, and the word at which it begins."""

    def __init__(self, value: Any) -> None:
        self.types: dict[str, Any] = {}
        self.places: dict[str, int] = {}
        self.num_words = 0
        for name, item in zip(value._fields, value, strict=True):
            self.types[name], self.places[name] = type_of(item), self.num_words
            self.num_words += sum(1 for _ in words_of(item, []))
        super().__init__(f"{type(value).__name__}.{_digest(kind_of(value))}")


class Several(types.Type):
    """A list of named tuples of one kind: a pointer to their number and to where the first lies."""

    def __init__(self, item: Fields) -> None:
        self.item = item
        super().__init__(f"Several({item})")


for _kind in (Fields, Several):
    register_model(_kind)(models.OpaqueModel)


def type_of(value: Any) -> Any:
    """The type of an argument. Those of records get short names, which stand in every symbol."""
    if isinstance(value, list):
        return Several(Fields(value[0]))
    if hasattr(value, "_fields"):
        return Fields(value)
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([type_of(item) for item in value])
    if isinstance(value, np.void):
        return _record(value.dtype)
    found = numba.typeof(value)
    is_table = isinstance(value, np.ndarray) and value.dtype.names is not None
    return found.copy(dtype=_record(value.dtype)) if is_table else found


@cache
def _record(dtype: np.dtype[Any]) -> Any:
    made = from_dtype(dtype)
    made.name = f"Record.{_digest(repr(dtype))}"
    return made


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@infer_getattr
class FieldTypes(AttributeTemplate):
    """What a field of a named tuple is."""

    key = Fields

    def generic_resolve(self, value: Any, attr: str) -> Any:  # type: ignore[override]
        """Its type; `None` if there is no such field."""
        return value.types.get(attr)


@lower_getattr_generic(Fields)
def read_field(context: Any, builder: Any, fields: Fields, base: Any, name: str) -> Any:
    """Code that reads a field."""
    return _read(context, builder, fields.types[name], base, fields.places[name])


def _read(context: Any, builder: Any, kind: Any, base: Any, place: int) -> Any:
    """Code that reads a value of some type from the words at `place`."""
    if isinstance(kind, (Fields, Several)):
        return _at(builder, base, place)
    if isinstance(kind, types.BaseTuple):
        items = []
        for item in _items(kind):
            items.append(_read(context, builder, item, base, place))
            place += _num_words(item)
        return context.make_tuple(builder, kind, items)
    if isinstance(kind, types.Array):
        return _read_array(context, builder, kind, base, place)
    if isinstance(kind, types.Boolean):
        return builder.trunc(_word(builder, base, place), ir.IntType(1))
    return _word(builder, base, place, context.get_value_type(kind))


def _items(kind: Any) -> tuple[Any, ...]:
    """The types of a tuple's items."""
    return tuple(kind.types)


def _read_array(context: Any, builder: Any, kind: Any, base: Any, place: int) -> Any:
    item = context.get_data_type(kind.dtype)
    size = ir.Constant(WORD, context.get_abi_sizeof(item))
    shape = [_word(builder, base, place + 1 + axis) for axis in range(kind.ndim)]
    if kind.layout == "C":
        strides = [size]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
    else:
        strides = [_word(builder, base, place + 1 + kind.ndim + axis) for axis in range(kind.ndim)]
    num_items = shape[0]
    for length in shape[1:]:
        num_items = builder.mul(num_items, length)
    model = context.data_model_manager[kind]
    array = ir.Constant(model.get_value_type(), None)
    for name, value in (
        ("nitems", num_items),
        ("itemsize", size),
        ("data", _word(builder, base, place, item.as_pointer())),
        ("shape", cgutils.pack_array(builder, shape)),
        ("strides", cgutils.pack_array(builder, strides)),
    ):
        array = builder.insert_value(array, value, model.get_field_position(name))
    return array


def _at(builder: Any, base: Any, place: int) -> Any:
    return builder.gep(base, [ir.Constant(WORD, place * WORD_BYTES)])


def _word(builder: Any, base: Any, place: int, kind: Any = WORD) -> Any:
    """Code that reads one word, which nobody changes."""
    found = builder.load(builder.bitcast(_at(builder, base, place), kind.as_pointer()))
    found.set_metadata("invariant.load", builder.module.add_metadata([]))
    return found


def _num_words(kind: Any) -> int:
    if isinstance(kind, types.BaseTuple):
        return sum(_num_words(item) for item in _items(kind))
    if isinstance(kind, Fields):
        return kind.num_words
    if isinstance(kind, types.Array):
        return 1 + 2 * int(kind.ndim)
    return 2 if isinstance(kind, Several) else 1


@infer_global(len)
class NumberTypes(AbstractTemplate):
    """How many named tuples there are."""

    def generic(self, args: Sequence[Any], kws: Any) -> Any:
        """A whole number."""
        return signature(types.intp, *args) if isinstance(args[0], Several) else None


@lower_builtin(len, Several)
def read_number(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Code that reads how many there are."""
    return _word(builder, args[0], 0)


@infer_global(operator.getitem)
class ItemTypes(AbstractTemplate):
    """One of several named tuples."""

    def generic(self, args: Sequence[Any], kws: Any) -> Any:
        """A named tuple."""
        several, number = args
        if isinstance(several, Several) and isinstance(number, types.Integer):
            return signature(several.item, several, types.intp)
        return None


@lower_builtin(operator.getitem, Several, types.intp)
def find_item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Code that finds one of several named tuples."""
    several, number = args
    cgutils.do_boundscheck(context, builder, number, _word(builder, several, 0))
    size = ir.Constant(WORD, sig.return_type.num_words * WORD_BYTES)
    return builder.gep(_word(builder, several, 1, cgutils.voidptr_t), [builder.mul(number, size)])
