"""The workload of a scaling study on a trace: the trace over and over, until there are enough requests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from pydantic import Field

from cbsim.workload.request import RequestBatch, Segments
from cbsim.workload.request_source import MAX_REQUESTS, Trim
from cbsim.workload.trace import TraceWorkload


class RepeatedTrace(TraceWorkload):
    """Replays a trace lap after lap, each lap's arrivals later by its length and one mean gap.

    Requests, sessions and prompts of later laps bear other names, so that within each lap prompts share what
    they share in the trace, and nothing with an earlier lap.
    """

    class Config(TraceWorkload.Config):
        """Settings of a repeated trace; window and limit choose what is repeated."""

        type: str = "cbsim.lab.bench.repeated:RepeatedTrace"
        num_requests: int = Field(ge=1, le=MAX_REQUESTS)
        """How many requests, in all laps."""

    config: Config

    def batches(self) -> Iterator[RequestBatch]:
        """The file is read when the first batch is asked for; raises as `TraceWorkload.batches`."""
        if not self._num_in_window:
            yield from super().batches()
        whole = {"start_s": 0.0, "end_s": None, "limit": self.config.num_requests}
        self._trim = Trim(self.config.model_copy(update=whole))
        yield from self._trim.apply(self._laps())

    def num_requests(self) -> int:
        """As many as asked for."""
        return self.config.num_requests

    def notes(self) -> list[str]:
        """What reading left out or sorted, how often the trace was repeated, and what the caps cut."""
        num_laps = self.num_requests() / super().num_requests()
        return [*super().notes(), *([f"trace replayed {num_laps:.3g} times"] if num_laps > 1 else [])]

    def _laps(self) -> Iterator[RequestBatch]:
        first, _ = Trim(self.config).window(self._table.arrival_s)
        num_source = super().num_requests()
        arrival_s = self._table.arrival_s[first : first + num_source]
        span_s = float(arrival_s[-1] - arrival_s[0])
        lap_s = span_s + span_s / max(1, num_source - 1)
        for lap in itertools.count():
            row = 0
            for batch in self._table.batches():
                start, stop = max(0, first - row), min(len(batch), first + num_source - row)
                row += len(batch)
                if stop > start:
                    yield _later(batch.part(start, stop), lap, lap * lap_s - self.config.start_s)


def _later(batch: RequestBatch, lap: int, shift_s: float) -> RequestBatch:
    """Requests of a lap from 0, all arrivals shifted, all names but the first lap's their own."""
    moved = replace(batch, arrival_s=batch.arrival_s + shift_s)
    if lap == 0:
        return moved
    mark = f"#{lap + 1}"
    names = np.array(batch.names(), dtype=np.object_) + mark
    sessions, prompts = batch.session_id, batch.prompt
    if sessions is not None:
        sessions = np.array([name and name + mark for name in sessions], dtype=np.object_)
    if prompts is not None:
        prompts = [_marked(prompt, mark) for prompt in prompts]
    return replace(moved, request_id=names, session_id=sessions, prompt=prompts)


def _marked(prompt: Segments | None, mark: str) -> Segments | None:
    return prompt and tuple((f"{name}{mark}", num_tokens) for name, num_tokens in prompt)
