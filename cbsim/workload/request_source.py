"""Workload: everything that yields requests in order of arrival."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from cbsim.config.section import ComponentConfig
from cbsim.workload.request import Request
from cbsim.workload.request_batch import RequestBatch, batches_of

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
