"""TraceTable: all requests of a trace file as columns, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cbsim.workload.request import Segments
from cbsim.workload.request_batch import BATCH_SIZE, ObjectColumn, RequestBatch

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that one of Mooncake's `hash_ids` stands for."""


@dataclass(frozen=True, slots=True)
class TraceTable(RequestBatch):
    """A trace in memory, as one batch whose prompts are still as the file gave them."""

    contents: ObjectColumn | None = None
    """Prompts as segments, or as arrays of Mooncake's block ids; None where a row has neither."""
    notes: tuple[str, ...] = ()
    """Sentences on lines left out, sorting done and columns not used."""
    unit_may_slip: bool = False
    """Whether arrivals are in seconds only if whoever wrote the file meant so."""

    def batches(self, size: int = BATCH_SIZE) -> Iterator[RequestBatch]:
        """The requests in order of arrival, `size` at a time."""
        for start in range(0, len(self), size):
            batch = self.part(start, start + size)
            if self.contents is not None:
                columns = (self.contents[start : start + size], batch.num_prompt_tokens, batch.number)
                rows = zip(*(column.tolist() for column in columns), strict=True)
                batch = replace(batch, prompt=[_prompt(*row) for row in rows])
            yield batch


def _prompt(content: Any, num_prompt_tokens: int, number: int) -> Segments | None:
    """Block ids as segments: equal ids are equal tokens; what no id covers is unshared."""
    if not isinstance(content, np.ndarray):
        given: Segments | None = content
        return given
    segments = []
    left = num_prompt_tokens
    for block in content.tolist():
        segments.append((f"h:{block}", min(left, MOONCAKE_BLOCK_TOKENS)))
        left -= MOONCAKE_BLOCK_TOKENS
    if left > 0:
        segments.append((f"p:r{number}", left))
    return tuple(segments)
