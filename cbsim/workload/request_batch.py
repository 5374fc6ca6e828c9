"""RequestBatch: requests in order of arrival, as columns from which `Request` objects are made on demand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.workload.request import Request, Segments

BATCH_SIZE = 8192
"""Requests made from columns at a time: enough for numpy, little to keep in memory."""

IntColumn = NDArray[np.int64]
FloatColumn = NDArray[np.float64]
ObjectColumn = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Some requests of a workload: columns of equal length; a column that no request has is `None`."""

    number: IntColumn
    """Place in the source, from 0: a request without an id of its own is `r<number>`."""
    arrival_s: FloatColumn
    num_prompt_tokens: IntColumn
    num_output_tokens: IntColumn
    request_id: ObjectColumn | None = None
    priority: IntColumn | None = None
    session_id: ObjectColumn | None = None
    user: ObjectColumn | None = None
    deadline_s: FloatColumn | None = None
    """Seconds after the arrival by which the answer is due; NaN for none."""
    prompt: list[Segments | None] | None = None
    extra: list[Mapping[str, Any] | None] | None = None
    """See `Request.extra`."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, start: int, stop: int) -> RequestBatch:
        """The requests from `start` up to `stop`."""

        def cut(column: Any) -> Any:
            return None if column is None else column[start:stop]

        return RequestBatch(**{each.name: cut(getattr(self, each.name)) for each in fields(RequestBatch)})

    @property
    def named_by(self) -> IntColumn | ObjectColumn:
        """The column that tells the ids of the requests to `names_by`."""
        return self.number if self.request_id is None else self.request_id

    def names(self) -> list[str]:
        """The ids of the requests."""
        return names_by(self.named_by)

    def requests(self) -> Iterator[Request]:
        """New `Request` objects, with Python's own numbers."""
        given = [] if self.deadline_s is None else self.deadline_s.tolist()
        deadlines = [None if math.isnan(deadline_s) else deadline_s for deadline_s in given] or None
        return map(
            Request,
            self.names(),
            self.arrival_s.tolist(),
            self.num_prompt_tokens.tolist(),
            self.num_output_tokens.tolist(),
            repeat(0) if self.priority is None else self.priority.tolist(),
            *(
                repeat(None) if each is None else each
                for each in (self.session_id, self.user, deadlines, self.prompt, self.extra)
            ),
        )


COLUMN_TYPES: dict[str, type] = {
    "request_id": object,
    "arrival_s": float,
    "num_prompt_tokens": np.int64,
    "num_output_tokens": np.int64,
    "priority": np.int64,
    "session_id": object,
    "user": object,
    "deadline_s": float,
}
"""The columns that a request has a value for, by its name for them; `prompt` and `extra` are lists."""


def names_by(column: IntColumn | ObjectColumn) -> list[str]:
    """The ids of requests by their numbers, or the ids themselves."""
    values: list[Any] = column.tolist()
    return [f"r{number}" for number in values] if column.dtype.kind == "i" else values


def batches_of(requests: Iterable[Request]) -> Iterator[RequestBatch]:
    """Requests as columns, `BATCH_SIZE` at a time."""
    rest = iter(requests)
    first = 0
    while rows := list(islice(rest, BATCH_SIZE)):
        columns: dict[str, Any] = {
            name: np.array([getattr(row, name) for row in rows], dtype)
            for name, dtype in COLUMN_TYPES.items()
        }
        number = np.arange(first, first + len(rows))
        prompts, extras = [row.prompt for row in rows], [row.extra for row in rows]
        yield RequestBatch(number, **columns, prompt=prompts, extra=extras)
        first += len(rows)
