"""TraceTable: all requests of a trace file as columns, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cbsim.workload.formats import MOONCAKE_BLOCK_TOKENS
from cbsim.workload.request import Segments
from cbsim.workload.request_batch import BATCH_SIZE, FloatColumn, IntColumn, RequestBatch

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TraceTable:
    """A trace in memory: what `RequestBatch` holds, prompts still as the file gave them."""

    number: IntColumn
    arrival_s: FloatColumn
    num_prompt_tokens: IntColumn
    num_output_tokens: IntColumn
    optional: Columns
    notes: tuple[str, ...]
    """Sentences on lines left out, sorting done and columns not used."""
    unit_may_slip: bool = False
    """Whether arrivals are in seconds only if whoever wrote the file meant so."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def batches(self, size: int = BATCH_SIZE) -> Iterator[RequestBatch]:
        """The requests in order of arrival, `size` at a time."""
        for start in range(0, len(self), size):
            yield self._batch(slice(start, start + size))

    def _batch(self, rows: slice) -> RequestBatch:
        plain: dict[str, Any] = {
            name: column[rows] for name, column in self.optional.items() if name not in ("prompt", "hash_ids")
        }
        lengths = self.num_prompt_tokens[rows]
        prompt: list[Segments | None] | None = None
        if "prompt" in self.optional:
            prompt = self.optional["prompt"][rows].tolist()
        elif "hash_ids" in self.optional:
            numbers = self.number[rows].tolist()
            hashed = zip(self.optional["hash_ids"][rows], lengths.tolist(), numbers, strict=True)
            prompt = [
                None if ids is None else hashed_prompt(ids.tolist(), n, number) for ids, n, number in hashed
            ]
        return RequestBatch(
            self.number[rows],
            self.arrival_s[rows],
            lengths,
            self.num_output_tokens[rows],
            prompt=prompt,
            **plain,
        )


def hashed_prompt(ids: list[int], num_prompt_tokens: int, number: int) -> Segments:
    """A prompt from Mooncake's block ids: equal ids are equal tokens; what no id covers is unshared."""
    segments = []
    left = num_prompt_tokens
    for block in ids:
        segments.append((f"h:{block}", min(left, MOONCAKE_BLOCK_TOKENS)))
        left -= MOONCAKE_BLOCK_TOKENS
    if left > 0:
        segments.append((f"p:r{number}", left))
    return tuple(segments)
