"""Intake: from a workload's columns to what is planned of requests, in which numbers stand for names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import WorkloadError
from cbsim.config.bounds import MOST_I32
from cbsim.core.building import new_extras, new_planned
from cbsim.core.layout import FOLLOWING, NOBODY, SEGMENT
from cbsim.workload.request import RequestBatch, Segments, names_by

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Intake:
    """The requests of a run."""

    requests: Array
    """A `PLANNED` for each."""
    names: Callable[[], NDArray[np.object_]]
    """Makes their names, by row: a million of them take 60 MB, and a run needs none."""
    segments: Array | None
    """`layout.Replica.segments`; `None` without prefix caching."""
    extras: Array | None
    """`layout.World.planned_extras`; `None` without speculation and connectors."""
    acceptance: Array
    """`layout.Replica.acceptance`."""
    turns: Array | None
    """`layout.World.turns`; `None` where no request waits for the answer to another."""


def take_in(
    batches: Iterable[RequestBatch],
    until_s: float = np.inf,
    *,
    with_segments: bool = False,
    with_extras: bool = False,
    chances: Sequence[float] = (),
    by_session: bool = False,
) -> Intake:
    """What is fixed of all requests that arrive before `until_s`, seconds; `chances` as for `Lists`.

    `by_session`: requests belong together by their sessions alone, not by what their prompts begin with.
    """
    users, affinities, chains, lists = Numbering(), Numbering(), Chains(), Lists(chances)
    requests, end = new_planned(0), 0
    extras: list[tuple[int, Array]] = []
    named = []
    waits: list[tuple[Array, Array, int]] = []
    for batch in _until(batches, until_s):
        first, end = end, end + len(batch)
        if end > len(requests):
            # In place where memory allows: a million requests take 52 MB.
            requests.resize(max(end, len(requests) * 9 // 8), refcheck=False)
        _check_sizes(batch)
        rows = requests[first:end]
        rows[:] = new_planned(len(batch))
        rows["arrival_s"] = batch.arrival_s
        rows["num_prompt_tokens"] = batch.num_prompt_tokens
        rows["num_output_tokens"] = rows["job_length"] = batch.num_output_tokens
        if batch.priority is not None:
            rows["priority"] = batch.priority
        if batch.deadline_s is not None:
            rows["deadline_s"] = np.where(np.isnan(batch.deadline_s), np.inf, batch.deadline_s)
        if batch.user is not None:
            rows["user_number"] = [users.number(user or "") for user in batch.user]
        if batch.session_id is not None or batch.prompt is not None:
            rows["affinity"] = [affinities.number(name) for name in _affinities(batch, by_session)]
        if with_segments:
            prompts = batch.prompt or [None] * len(batch)
            for row, name, prompt in zip(rows, batch.names(), prompts, strict=True):
                row["first_link"], row["end_link"] = chains.add(
                    name, prompt, int(row["num_prompt_tokens"]), int(row["num_output_tokens"])
                )
        if with_extras and batch.extra and any(batch.extra):
            extras.append((first, new_extras(len(batch))))
            for row, given in zip(extras[-1][1], batch.extra, strict=True):
                for name, value in lists.numbers(given or {}).items():
                    row[name] = value
        if batch.follows is not None and batch.delay_s is not None:
            waits.append((batch.follows, batch.delay_s, first))
        named.append(batch.named_by)
    requests.resize(end, refcheck=False)

    def names() -> NDArray[np.object_]:
        made = [name for column in named for name in names_by(column)]
        return np.array(made, dtype=object)

    segments = chains.rows() if with_segments else None
    brought = new_extras(end if extras else 0)
    for first, several in extras:
        brought[first : first + len(several)] = several
    extra = brought if with_extras else None
    return Intake(requests, names, segments, extra, np.array(lists.values or [0.0]), _turns(waits, end))


def _check_sizes(batch: RequestBatch) -> None:
    """Raise `WorkloadError` for numbers that 32 bits of a record can't hold; those of tokens grow by both."""
    names = ("num_prompt_tokens", "num_output_tokens", "priority")
    for name, most in zip(names, (MOST_I32 // 2, MOST_I32 // 2, MOST_I32), strict=True):
        column = getattr(batch, name)
        if column is None or not len(column):
            continue
        low, high = int(np.min(column)), int(np.max(column))
        if low < -most or high > most:
            told = f"{name}: got {high if high > most else low:,}; allowed: at most {most:,}"
            raise WorkloadError(f"workload: {told}")


def _turns(waits: Iterable[tuple[Array, Array, int]], num_requests: int) -> Array | None:
    """A `FOLLOWING` for each request, by `(follows, delay_s, first row)` of batches; `None` if none waits."""
    turns = np.zeros(num_requests, FOLLOWING)
    turns["next"] = NOBODY
    for follows, delay_s, first in waits:
        rows = np.flatnonzero(follows >= 0)
        turns["next"][follows[rows]] = rows + first
        turns["delay_s"][rows + first] = delay_s[rows]
    return turns if (turns["next"] != NOBODY).any() else None


def _until(batches: Iterable[RequestBatch], until_s: float) -> Iterator[RequestBatch]:
    """The batches with the requests that arrive before an instant, seconds."""
    for batch in batches:
        num_before = int(np.searchsorted(batch.arrival_s, until_s))
        if num_before < len(batch):
            yield batch.part(0, num_before)
            return
        yield batch


class Lists:
    """`Replica.acceptance`: chances by position, then the lists that requests bring along."""

    def __init__(self, chances: Sequence[float]) -> None:
        self.values: list[float] = list(chances)

    def numbers(self, given: Mapping[str, Any]) -> dict[str, float]:
        """What a request brings along as fields of `layout.EXTRA`; its lists are kept here."""
        found: dict[str, float] = {}
        for name, value in given.items():
            if isinstance(value, (list, tuple)):
                found[f"first_{name}"] = len(self.values)
                self.values.extend(map(float, value))
                found[f"end_{name}"] = len(self.values)
            else:
                found[name] = value
        return found


def _affinities(batch: RequestBatch, by_session: bool) -> list[str | None]:
    """`affinity_of` each request, perhaps without its prompt."""
    sessions = [None] * len(batch) if batch.session_id is None else batch.session_id.tolist()
    prompts = None if by_session else batch.prompt
    prompts = prompts or [None] * len(batch)
    return [affinity_of(*each) for each in zip(sessions, prompts, strict=True)]


def affinity_of(session_id: str | None, prompt: Segments | None) -> str | None:
    """A name for the session, else for the prompt's first segment; `None` if the request has neither."""
    if session_id is not None:
        return f"session:{session_id}"
    return f"segment:{prompt[0][0]}" if prompt else None


class Numbering:
    """Numbers for names, from 0 in the order in which they are first met; -1 for `None`."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """The name's number."""
        return -1 if name is None else self._numbers.setdefault(name, len(self._numbers))


class Chains:
    """Names for token sequences: each request is a chain of segments, of its prompt and then of its answer.

    A segment is told by the chain of whole segments before it, so that two requests share a node exactly
    where they share all tokens up to that segment.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, str], int] = {}
        self._starts: list[int] = []
        self._of: list[int] = []

    def add(self, name: str, prompt: Segments | None, num_prompt: int, num_output: int) -> tuple[int, int]:
        """Add the segments of a request. Returns its first row and the row after its last."""
        first = len(self._starts)
        node, start, length = 0, 0, 0
        for segment, num_tokens in (*(prompt or ((f"p:{name}", num_prompt),)), (f"o:{name}", num_output)):
            if num_tokens == 0:
                continue
            node = self._nodes.setdefault((node, length, segment), len(self._nodes) + 1)
            self._starts.append(start)
            self._of.append(node)
            start, length = start + num_tokens, num_tokens
        return first, len(self._starts)

    def from_row(self, first: int) -> Iterator[tuple[int, int]]:
        """`(first position, node)` of each segment from row `first` on."""
        return zip(self._starts[first:], self._of[first:], strict=True)

    def rows(self) -> Array:
        """A `SEGMENT` for each segment of each request."""
        rows = np.zeros(max(len(self._starts), 1), SEGMENT)
        rows["start"][: len(self._starts)] = self._starts
        rows["node"][: len(self._of)] = self._of
        return rows
