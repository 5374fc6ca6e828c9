"""CostRules: what a step costs as a plain function over records, run interpreted or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cbsim.base.records import plain, record_class

if TYPE_CHECKING:
    from cbsim.cost.step_shape import StepShape

SHAPE = np.dtype(
    [
        ("num_chunks", np.int64),
        ("num_prefill_tokens", np.int64),
        ("num_finishing_chunks", np.int64),
        ("num_decodes", np.int64),
        ("decode_context", np.int64),
        ("max_decode_context", np.int64),
    ]
)
"""What a step computes, chunks apart: the fields of `StepShape`, and the sum of its chunks' tokens."""
CHUNK = np.dtype([("num_tokens", np.int64), ("num_computed_tokens", np.int64)])
"""A prompt chunk: tokens computed now, tokens whose KV is there already."""
MAX_TOKENS = 16_384
MAX_DECODES = 1024
"""Sizes up to which a cost model lists what counts alone decide, unless told others."""

_make_shape = record_class(SHAPE)
_make_chunk = record_class(CHUNK)


class CostRules(NamedTuple):
    """A cost model as the core runs it."""

    step_s: Callable[[Any, Any, Any], float]
    """`step_s(cost, shape, chunks)`: seconds of a step, a plain function of a module that numba can compile.

    `shape` has the fields of `SHAPE`, and the first `shape.num_chunks` of `chunks` those of `CHUNK`.
    """
    record: Any
    """`cost`: a named tuple of arrays and records; `cbsim.base.records.plain` gives the interpreted form."""


def price_steps(cost: Any, shapes: Any, chunks: Any, seconds: Any) -> None:
    """Fill in the seconds of many steps, whose chunks follow each other; bind it to a model's `step_s`."""
    first = 0
    for place in range(len(shapes)):
        shape = shapes[place]
        end = first + shape.num_chunks
        seconds[place] = step_s(cost, shape, chunks[first:end])
        first = end


def step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Stands for a cost model's rule."""
    raise NotImplementedError


def seconds_of(rules: CostRules) -> Callable[[StepShape], float]:
    """The rule, interpreted, as a function of a `StepShape`."""
    rule, cost = rules.step_s, plain(rules.record)

    def seconds(shape: StepShape) -> float:
        return rule(cost, *split_shape(shape))

    return seconds


def split_shape(shape: StepShape) -> tuple[Any, list[Any]]:
    """A `StepShape` as a rule takes it, interpreted: its counts, its chunks."""
    chunks, num_finishing, num_decodes, context, longest = shape
    num_tokens = sum([tokens for tokens, _ in chunks])
    counts = _make_shape(len(chunks), num_tokens, num_finishing, num_decodes, context, longest)
    return counts, [_make_chunk(tokens, before) for tokens, before in chunks]


def as_record(values: Mapping[str, float]) -> np.void:
    """Numbers as a record: bools, integers and floats keep their kind."""
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    array = np.zeros(1, dtype=[(name, kinds[type(value)]) for name, value in values.items()])
    array[0] = tuple(values.values())
    record: np.void = array[0]
    return record
