"""Trials: the settings that a tune tries, and their runs on windows of the requests, each kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cbsim.base.errors import CbsimError
from cbsim.config.sweep_grid import AxisValue
from cbsim.results.result import hash_mapping
from cbsim.studies.experiment import Experiment
from cbsim.studies.probe import Probe, ProbeStore, read_probe, run_probe, with_assumed
from cbsim.studies.run import make_workload
from cbsim.studies.tune.merit import Figures, with_gpu_hours
from cbsim.studies.worker_pool import Pool

MIN_WINDOW = 100
"""Requests of the shortest window worth running: fewer tell nothing of a tail."""
IN_FULL = 1.0
"""The share of the requests that a run in full has."""


@dataclass(slots=True)
class Trial:
    """Settings that are tried, and what came of them."""

    number: int
    """From 0, the settings as written, in the order in which they were chosen."""
    settings: tuple[AxisValue, ...]
    """What is varied, at its values; none for what is written."""
    experiment: Experiment | None = None
    """`None` where the settings don't go together."""
    proposal: int | None = None
    """The sampler's number; `None` where it did not propose them."""
    figures: Figures | None = None
    """Of the run in full."""
    window: float = 0.0
    """Share of the requests of the longest run so far."""
    is_given_up: bool = False
    """Whether it fell behind on a window."""
    error: str | None = None
    """Why it can't run."""

    @property
    def state(self) -> Literal["ran", "given up", "failed"]:
        """What has become of it in the end."""
        return "failed" if self.error else "given up" if self.is_given_up else "ran"

    @property
    def is_under_way(self) -> bool:
        """Whether further runs of it are wanted."""
        return not (self.error or self.is_given_up or self.figures)


def run_window(task: tuple[Mapping[str, Any], Path]) -> Probe:
    """Run an experiment given as plain data and keep its figures in a file: the task of a worker."""
    settings, path = task
    return run_probe(Experiment.from_mapping(settings), path)


class WindowRunner:
    """Runs trials on windows of the requests: the first so many, to their end."""

    def __init__(self, folder: Path, pool: Pool, on_run: Callable[[bool], None]) -> None:
        """Figures are kept in `folder`; `on_run` hears of each run, and whether it was there already."""
        self._store = ProbeStore(folder)
        self._pool = pool
        self._on_run = on_run
        self._counts: dict[str, int] = {}
        self.manifest: dict[str, Any] = {}
        """Of the first run."""

    def run(self, trials: Sequence[Trial], share: float) -> dict[int, Figures]:
        """The figures of trials, by number, on a share of their requests.

        Trials for which the window would be too short are left out. The error of one that fails is noted in
        it.
        """
        found: dict[int, Figures] = {}
        wanted: dict[str, list[tuple[Trial, Experiment]]] = {}
        for trial in trials:
            try:
                experiment = self._windowed(trial, share)
                if experiment is not None:
                    wanted.setdefault(self._store.key(experiment), []).append((trial, experiment))
            except CbsimError as error:
                trial.error = _one_line(error)
        tasks: dict[str, tuple[Mapping[str, Any], Path]] = {}
        for key, alike in wanted.items():
            path = self._store.path(key)
            probe = read_probe(path)
            if probe is None:
                tasks[key] = alike[0][1].resolved(), path
            else:
                self._take(alike, probe, share, found)
                self._on_run(True)
        keys = list(tasks)
        for outcome in self._pool.run_all(run_window, list(tasks.values())):
            alike = wanted[keys[outcome.index]]
            if outcome.answer is not None:
                self._take(alike, outcome.answer, share, found)
            elif outcome.error is not None:
                for trial, _ in alike:
                    trial.error = _one_line(outcome.error)
            self._on_run(False)
        return found

    def _take(
        self,
        alike: Sequence[tuple[Trial, Experiment]],
        probe: Probe,
        share: float,
        found: dict[int, Figures],
    ) -> None:
        self.manifest = self.manifest or probe.manifest
        for trial, experiment in alike:
            found[trial.number] = with_gpu_hours(with_assumed(probe.figures, experiment.assumed), experiment)
            trial.window = share

    def _windowed(self, trial: Trial, share: float) -> Experiment | None:
        """A trial's experiment on a window, nobody watching; `None` if that is too short or is all."""
        assert trial.experiment is not None
        experiment = trial.experiment.model_copy(update={"observers": []})
        if share == IN_FULL:
            return experiment
        num_requests = self._num_requests(experiment)
        limit = math.ceil(share * num_requests)
        if not MIN_WINDOW <= limit < num_requests:
            return None
        workload = experiment.workload.model_copy(update={"limit": limit})
        return experiment.model_copy(update={"workload": workload})

    def _num_requests(self, experiment: Experiment) -> int:
        """How many requests there are, counted once for all rates."""
        settings = experiment.workload.model_dump(mode="json") | {"rate_scale": 1.0}
        key = hash_mapping([settings, experiment.seed])
        if key not in self._counts:
            workload = make_workload(experiment)
            known = workload.num_requests()
            if known is None:
                known = sum(len(batch) for batch in workload.batches())
            self._counts[key] = known
        return self._counts[key]


def _one_line(error: BaseException) -> str:
    """An error as a cell of a table has it."""
    told = "; ".join(error.problems) if isinstance(error, CbsimError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())
