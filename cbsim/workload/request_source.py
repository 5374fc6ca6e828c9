"""Workload: everything that yields requests in order of arrival, with the settings that all of them share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.config.section import ComponentConfig
from cbsim.workload.request import FloatColumn, IntColumn, Request, RequestBatch, Segments, batches_of

MAX_REQUESTS = 1_000_000_000
"""The most that a generator may be asked for: what is beyond would run for days, and is a slip."""


class WorkloadConfig(ComponentConfig):
    """Settings that every workload has: what is kept of it, how fast it comes, and who sends it."""

    rate_scale: float = Field(default=1.0, gt=0)
    """Arrivals come this many times as fast: times between arrivals are divided by it."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many requests (of the window, if one is set)."""
    start_s: float = Field(default=0.0, ge=0)
    """Requests that arrive before this instant (before `rate_scale`) are left out, and time starts here."""
    end_s: float | None = Field(default=None, gt=0)
    """Requests that arrive at this instant or later (before `rate_scale`) are left out."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longer prompts are cut to this length; how many were cut, and by how much, is noted."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Longer answers are cut to this length; how many were cut, and by how much, is noted."""
    concurrency: int | None = Field(default=None, ge=1)
    """Closed loop: so many clients, each sending its next request when its last one has ended. Arrival times
    of the workload are then not used, only its order."""
    think_time_s: float = Field(default=0.0, ge=0)
    """Closed loop: mean seconds between the end of a request and the client's next one."""
    think_time_cv: float = Field(default=0.0, ge=0)
    """Coefficient of variation of that time, gamma-distributed: 0 always the same, 1 exponential. Clients
    with equal requests and equal times stay in step for ever, as no real ones do."""

    wait_for_answers: bool | None = None
    """Whether a turn of a session is sent when the turn before it has been answered: its delay after that,
    and not before its own arrival. False sends all at their arrivals. Null waits where a trace has delays.
    With `concurrency`, that many sessions go on at a time."""

    @property
    def draws_think_times(self) -> bool:
        """Whether the seed decides when the clients of a closed loop send."""
        return self.concurrency is not None and self.think_time_cv > 0

    @model_validator(mode="after")
    def _check_think_time(self) -> Self:
        if self.think_time_cv and not self.think_time_s:
            raise ValueError("think_time_cv: got a spread of no time; allowed: with think_time_s above 0")
        return self

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s: got {self.end_s:g}; allowed: more than start_s, {self.start_s:g}")
        return self


class Workload(ABC):
    """A stream of requests. Two iterations of `requests` yield equal requests."""

    Config: ClassVar[type[WorkloadConfig]]

    def __init__(self, config: WorkloadConfig, *, seed: int, folder: Path) -> None:
        """`seed` is the experiment's; relative paths in `config` are looked up from `folder`."""
        self.config = config
        self.seed = seed
        self.folder = folder

    def __init_subclass__(cls) -> None:
        """A subclass that gives `requests` or `batches` has the other by it, whatever its base has."""
        super().__init_subclass__()
        given = cls.batches
        if "requests" in vars(cls) and "batches" not in vars(cls):
            cls.batches = lambda self: batches_of(self.requests())  # type: ignore[method-assign]
        elif "batches" in vars(cls) and "requests" not in vars(cls):
            cls.requests = lambda self: chain.from_iterable(  # type: ignore[method-assign]
                batch.requests() for batch in given(self)
            )

    def requests(self) -> Iterator[Request]:
        """New `Request` objects in order of arrival, all settings applied; equal times keep their order.

        A workload gives either this or `batches`. Raises `WorkloadError` naming file and line for every
        mistake found.
        """
        raise NotImplementedError

    def batches(self) -> Iterator[RequestBatch]:
        """The same requests as columns, many at a time; raises as `requests`."""
        raise NotImplementedError

    @property
    def uses_seed(self) -> bool:
        """Whether another seed may yield other requests; False lets one run stand for those of all seeds."""
        return True

    @abstractmethod
    def num_requests(self) -> int | None:
        """How many requests will come, for progress bars; `None` if that can't be told beforehand."""

    def inputs(self) -> list[Path]:
        """The files read, whose hashes go into the run's manifest."""
        return []

    def notes(self) -> list[str]:
        """Sentences for `summary.json`, complete after an iteration: what was left out, cut or sorted."""
        return []


class Trim:
    """Applies window, rate scale, limit and length caps, in this order, and counts what the caps cut.

    `rate_factor` comes on top of the rate scale.
    """

    def __init__(self, config: WorkloadConfig, rate_factor: float = 1.0) -> None:
        self._config = config
        self._rate_scale = config.rate_scale * rate_factor
        self._num_cut: Counter[str] = Counter()
        self._num_tokens_cut: Counter[str] = Counter()

    def apply(self, batches: Iterable[RequestBatch]) -> Iterator[RequestBatch]:
        """The batches with every setting applied; reads no further than the window and the limit need.

        Who followed a request before the window follows none.
        """
        left, num_before = self._config.limit or sys.maxsize, 0
        for batch in batches:
            start, end = self.window(batch.arrival_s)
            stop = min(end, start + left)
            left -= stop - start
            num_before += start
            if stop > start:
                kept = batch.part(start, stop)
                if kept.follows is not None and num_before:
                    kept = replace(kept, follows=np.maximum(kept.follows - num_before, -1))
                yield self._capped(kept, (kept.arrival_s - self._config.start_s) / self._rate_scale)
            if end < len(batch) or left == 0:
                return

    def window(self, arrival_s: FloatColumn) -> tuple[int, int]:
        """The first row from `start_s` on, and the first from `end_s` on, of arrivals in order."""
        start = int(np.searchsorted(arrival_s, self._config.start_s))
        end_s = self._config.end_s
        stop = len(arrival_s) if end_s is None else int(np.searchsorted(arrival_s, end_s))
        return start, max(start, stop)

    def notes(self) -> list[str]:
        """What the caps have cut so far."""
        return [
            f"{name} = {getattr(self._config, name):,}: {what} cut: {self._num_cut[name]:,}, "
            f"tokens left out: {self._num_tokens_cut[name]:,}"
            for name, what in (("max_prompt_tokens", "prompts"), ("max_output_tokens", "answers"))
            if self._num_cut[name]
        ]

    def _capped(self, batch: RequestBatch, arrival_s: FloatColumn) -> RequestBatch:
        """The batch with other arrivals and with the caps applied."""
        num_prompt_tokens = self._cap("max_prompt_tokens", batch.num_prompt_tokens)
        num_output_tokens = self._cap("max_output_tokens", batch.num_output_tokens)
        prompt = batch.prompt
        if prompt is not None and num_prompt_tokens is not batch.num_prompt_tokens:
            lengths = num_prompt_tokens.tolist()
            prompt = [each and first_tokens(each, n) for each, n in zip(prompt, lengths, strict=True)]
        return replace(
            batch,
            arrival_s=arrival_s,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            prompt=prompt,
        )

    def _cap(self, name: str, lengths: IntColumn) -> IntColumn:
        cap: int | None = getattr(self._config, name)
        if cap is None or not (over := lengths > cap).any():
            return lengths
        self._num_cut[name] += int(over.sum())
        self._num_tokens_cut[name] += int((lengths[over] - cap).sum())
        return np.minimum(lengths, cap)


def first_tokens(prompt: Segments, num_tokens: int) -> Segments:
    """The first `num_tokens` tokens of a prompt (all of it, if it is no longer)."""
    kept: list[tuple[str, int]] = []
    for name, length in prompt:
        if num_tokens <= 0:
            break
        kept.append((name, min(length, num_tokens)))
        num_tokens -= length
    return tuple(kept)
