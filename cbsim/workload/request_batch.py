"""RequestBatch: requests in order of arrival, as columns from which `Request` objects are made on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
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

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, start: int, stop: int) -> RequestBatch:
        """The requests from `start` up to `stop`."""
        parts: dict[str, Any] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            parts[field.name] = None if column is None else column[start:stop]
        return RequestBatch(**parts)

    @property
    def named_by(self) -> IntColumn | ObjectColumn:
        """The column that tells the ids of the requests to `names_by`."""
        return self.number if self.request_id is None else self.request_id

    def names(self) -> list[str]:
        """The ids of the requests."""
        return names_by(self.named_by)

    def requests(self) -> Iterator[Request]:
        """New `Request` objects, with Python's own numbers."""
        names = self.names()
        needed = (
            names,
            self.arrival_s.tolist(),
            self.num_prompt_tokens.tolist(),
            self.num_output_tokens.tolist(),
        )
        optional = (self.priority, self.session_id, self.user, self.deadline_s, self.prompt)
        if all(column is None for column in optional):
            yield from map(Request, *needed)
            return
        absent: list[None] = [None] * len(self)
        priorities = [0] * len(self) if self.priority is None else self.priority.tolist()
        sessions = absent if self.session_id is None else self.session_id.tolist()
        users = absent if self.user is None else self.user.tolist()
        deadlines = absent if self.deadline_s is None else _nan_to_none(self.deadline_s)
        prompts = absent if self.prompt is None else self.prompt
        for name, arrival_s, num_prompt, num_output, priority, session, user, deadline_s, prompt in zip(
            *needed, priorities, sessions, users, deadlines, prompts, strict=True
        ):
            yield Request(
                name,
                arrival_s,
                num_prompt,
                num_output,
                priority=priority,
                session_id=session,
                user=user,
                deadline_s=deadline_s,
                prompt=prompt,
            )


def names_by(column: IntColumn | ObjectColumn) -> list[str]:
    """The ids of requests by their numbers, or the ids themselves."""
    values: list[Any] = column.tolist()
    return [f"r{number}" for number in values] if column.dtype.kind == "i" else values


def _nan_to_none(column: FloatColumn) -> list[float | None]:
    return [None if value != value else value for value in column.tolist()]


def batches_of(requests: Iterable[Request]) -> Iterator[RequestBatch]:
    """Requests as columns, `BATCH_SIZE` at a time."""
    rest = iter(requests)
    first = 0
    while rows := list(islice(rest, BATCH_SIZE)):
        yield RequestBatch(
            number=np.arange(first, first + len(rows)),
            arrival_s=np.array([row.arrival_s for row in rows]),
            num_prompt_tokens=np.array([row.num_prompt_tokens for row in rows], dtype=np.int64),
            num_output_tokens=np.array([row.num_output_tokens for row in rows], dtype=np.int64),
            request_id=_objects([row.request_id for row in rows]),
            priority=np.array([row.priority for row in rows], dtype=np.int64),
            session_id=_objects([row.session_id for row in rows]),
            user=_objects([row.user for row in rows]),
            deadline_s=np.array([np.nan if row.deadline_s is None else row.deadline_s for row in rows]),
            prompt=[row.prompt for row in rows],
        )
        first += len(rows)


def _objects(values: list[Any]) -> ObjectColumn:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
