"""Arrow arrays made from their buffers: `pyarrow.array` would import pandas, which takes 0.25 s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ArrowArray = Any
"""A `pyarrow.Array`; pyarrow carries no types."""


def numbers(values: NDArray[Any], type_: Any, is_null: NDArray[np.bool_] | None = None) -> ArrowArray:
    """Numbers of a fixed width, null where `is_null`; `type_` is a `pyarrow.DataType` of numbers."""
    import pyarrow as pa

    data = np.ascontiguousarray(values, dtype=type_.to_pandas_dtype())
    validity, num_nulls = _validity(is_null)
    return pa.Array.from_buffers(type_, len(data), [validity, pa.py_buffer(data)], num_nulls)


def texts(strings: Sequence[str] | NDArray[Any]) -> ArrowArray:
    """Strings, none of them null."""
    import pyarrow as pa

    encoded = [text.encode() for text in strings]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers, 0)


def labels(codes: NDArray[Any], names: Sequence[str] | NDArray[Any]) -> ArrowArray:
    """Repeated strings by their codes, as Arrow keeps them; a negative code is a null."""
    import pyarrow as pa

    indices = numbers(np.maximum(codes, 0), pa.int32(), codes < 0)
    return pa.DictionaryArray.from_arrays(indices, texts(names))


def _validity(is_null: NDArray[np.bool_] | None) -> tuple[Any, int]:
    import pyarrow as pa

    if is_null is None or not is_null.any():
        return None, 0
    return pa.py_buffer(np.packbits(~is_null, bitorder="little")), int(is_null.sum())
