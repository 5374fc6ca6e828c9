"""StepColumns: many steps as columns of equal length, what vector forms of a cost are functions of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.records import plain
from cbsim.cost.costrules import CHUNK, SHAPE
from cbsim.cost.step_shape import StepShape

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StepColumns:
    """Steps as columns of equal length, one row a step."""

    num_tokens: Ints
    num_logits: Ints
    num_chunks: Ints
    prefill_tokens: Ints
    longest_prefill: Ints
    """Largest context of a chunk, its own tokens included; 0 without chunks."""
    num_decodes: Ints
    decode_context: Ints
    max_decode_context: Ints
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    _pairs: dict[int, Ints] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_shapes(cls, shapes: Sequence[StepShape]) -> StepColumns:
        """The columns of some steps."""

        def column(values: list[int]) -> Ints:
            return np.array(values, dtype=np.int64)

        return cls(
            num_tokens=column([shape.num_tokens for shape in shapes]),
            num_logits=column([shape.num_logits for shape in shapes]),
            num_chunks=column([len(shape.chunks) for shape in shapes]),
            prefill_tokens=column([sum(tokens for tokens, _ in shape.chunks) for shape in shapes]),
            longest_prefill=column([max(map(sum, shape.chunks), default=0) for shape in shapes]),
            num_decodes=column([shape.num_decodes for shape in shapes]),
            decode_context=column([shape.decode_context for shape in shapes]),
            max_decode_context=column([shape.max_decode_context for shape in shapes]),
            chunks=tuple(shape.chunks for shape in shapes),
        )

    def take(self, places: Ints) -> StepColumns:
        """Some of the steps."""
        counts = {
            each.name: getattr(self, each.name)[places]
            for each in fields(self)
            if each.name not in ("chunks", "_pairs")
        }
        return StepColumns(**counts, chunks=tuple(self.chunks[place] for place in places.tolist()))

    def records(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The steps as rules take them: records of `SHAPE`, and those of `CHUNK`, step after step."""
        shapes = np.zeros(len(self.num_chunks), dtype=SHAPE)
        shapes["num_chunks"], shapes["num_prefill_tokens"] = self.num_chunks, self.prefill_tokens
        shapes["num_finishing_chunks"] = self.num_logits - self.num_decodes
        shapes["num_decodes"], shapes["decode_context"] = self.num_decodes, self.decode_context
        shapes["max_decode_context"] = self.max_decode_context
        _, tokens, before = self.flat_chunks
        chunks = np.zeros(len(tokens), dtype=CHUNK)
        chunks["num_tokens"], chunks["num_computed_tokens"] = tokens, before
        return shapes, chunks

    def plain_steps(self) -> list[tuple[Any, list[Any]]]:
        """The steps one by one, as interpreted rules take them."""
        shapes, chunks = map(plain, self.records())
        ends = np.cumsum(self.num_chunks).tolist()
        return [
            (shape, chunks[end - shape.num_chunks : end]) for shape, end in zip(shapes, ends, strict=True)
        ]

    def shapes(self) -> list[StepShape]:
        """The steps one by one."""
        counts = (self.num_decodes, self.decode_context, self.max_decode_context)
        finishing = (self.num_logits - self.num_decodes).tolist()
        rows = zip(self.chunks, finishing, *(count.tolist() for count in counts), strict=True)
        return [StepShape(*row) for row in rows]

    @cached_property
    def flat_chunks(self) -> tuple[Ints, Ints, Ints]:
        """All chunks, one row a chunk: its step, its tokens, its context."""
        flat = [chunk for chunks in self.chunks for chunk in chunks]
        tokens, context = np.array(flat, dtype=np.int64).reshape(-1, 2).T
        return np.repeat(np.arange(len(self.num_chunks)), self.num_chunks), tokens, context

    def pairs(self, tile: int) -> Ints:
        """(query, key) pairs of each step's chunks, computed tile by tile."""
        if tile not in self._pairs:
            steps, tokens, context = self.flat_chunks
            self._pairs[tile] = np.zeros(len(self.num_chunks), dtype=np.int64)
            np.add.at(self._pairs[tile], steps, chunk_pairs(tile, tokens, context))
        return self._pairs[tile]


def num_pairs(chunks: Sequence[tuple[int, int]], tile: int) -> int:
    """(query, key) pairs computed for chunks `(tokens, context)` by tiles of `tile` (even) queries."""
    return sum(chunk_pairs(tile, tokens, context) for tokens, context in chunks)


def chunk_pairs(tile: Any, num_tokens: Any, before: Any) -> Any:
    """(query, key) pairs computed for one chunk over a context of `before`, `P` of `StepForm`."""
    return -(-num_tokens // tile) * (tile // 2) * (2 * before + num_tokens + tile)
