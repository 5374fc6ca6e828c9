"""Rounds: a tune from its first settings to its last: batches that are proposed, run on windows, and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.config.condition import ABSENT, lookup
from cbsim.config.tune_space import Choices, Dimension, Number, TuneSpace
from cbsim.studies.experiment import Experiment
from cbsim.studies.tune.merit import Aim, Figures
from cbsim.studies.tune.sampler import MAX_REPEATS, Sampler
from cbsim.studies.tune.trials import IN_FULL, Trial, WindowRunner
from cbsim.studies.worker_pool import time_left_s


@dataclass(frozen=True, slots=True)
class TuneProgress:
    """How far a tune has come, after each run and each batch of settings."""

    num_trials: int
    """To be tried in all."""
    num_done: int = 0
    num_given_up: int = 0
    """Of those done, fallen behind on a short window."""
    num_failed: int = 0
    """Of those done, not able to run."""
    num_runs: int = 0
    """Runs made now, on windows or in full."""
    num_reused: int = 0
    """Runs whose figures were there already."""
    elapsed_s: float = 0.0
    """Wall-clock seconds since the first one began."""
    best: Trial | None = None
    """The best of those that have run in full, as far as is known."""
    is_met: bool = False
    """Whether it meets the SLO."""
    ends_batch: bool = False

    @property
    def time_left_s(self) -> float | None:
        """Wall-clock seconds to go at the pace so far; `None` before the first settings are done."""
        return time_left_s(self.elapsed_s, self.num_done, self.num_trials - self.num_done)


class Rounds:
    """One tune from its first settings to its last."""

    def __init__(
        self, experiment: Experiment, space: TuneSpace, aim: Aim, progress: Callable[[TuneProgress], None]
    ) -> None:
        self._experiment, self._space, self._aim = experiment, space, aim
        self._sampler = Sampler(space, experiment.seed)
        self._written = _written_values(experiment, space)
        num_further, num_settings = int(self._written is None), space.num_settings
        most = space.plan.trials if num_settings is None else num_settings + num_further
        self._is_grid = num_settings is not None and most <= space.plan.trials
        self.trials: list[Trial] = []
        self._seen: set[tuple[Number, ...]] = set()
        self._state = TuneProgress(min(most, space.plan.trials))
        self._progress = progress
        self._began = time.perf_counter()
        self.manifest: dict[str, Any] = {}

    def run(self, runner: WindowRunner) -> None:
        """Try settings, a batch at a time, until there are as many as planned, or no further ones."""
        self._progress(self._state)
        first = self._first_batch()
        while batch := first or self._proposed([]):
            first = []
            self.trials += batch
            for window, share in enumerate((*self._space.plan.windows, IN_FULL)):
                found = runner.run([trial for trial in batch if trial.is_under_way], share)
                for trial in batch:
                    if trial.error or trial.number in found:
                        self._take(trial, window, found.get(trial.number))
            self._sampler.end_batch()
            self._tell(batch)
        self.manifest = runner.manifest

    def on_run(self, was_there: bool) -> None:
        """Hear of a run."""
        state = self._state
        self._state = replace(
            state,
            num_runs=state.num_runs + (not was_there),
            num_reused=state.num_reused + was_there,
            elapsed_s=time.perf_counter() - self._began,
            ends_batch=False,
        )
        self._progress(self._state)

    def _take(self, trial: Trial, window: int, figures: Figures | None) -> None:
        """What a window has shown of a trial; nothing if it failed."""
        if figures is not None and trial.window == IN_FULL:
            trial.figures = figures
        if trial.proposal is None:
            return
        if figures is None:
            self._sampler.fail(trial.proposal)
            trial.proposal = None
        elif trial.figures is not None:
            self._sampler.tell(trial.proposal, *self._shown(figures))
        else:
            trial.is_given_up = self._sampler.is_behind(trial.proposal, window, *self._shown(figures))

    def _shown(self, figures: Figures) -> tuple[float, float, float]:
        """What the sampler learns from."""
        aim = self._aim
        return aim.score(figures), aim.promise(figures), aim.headroom(figures)

    def _tell(self, batch: Sequence[Trial]) -> None:
        ran = [trial for trial in self.trials if trial.figures is not None]
        all_figures = [trial.figures or {} for trial in ran]
        best = self._aim.best(all_figures) if ran else None
        self._state = replace(
            self._state,
            num_done=len(self.trials),
            num_given_up=sum(trial.is_given_up for trial in self.trials),
            num_failed=sum(trial.error is not None for trial in self.trials),
            elapsed_s=time.perf_counter() - self._began,
            best=None if best is None else ran[best],
            is_met=best is not None and self._aim.score(all_figures[best]) > 0,
            ends_batch=True,
        )
        self._progress(self._state)

    def _first_batch(self) -> list[Trial]:
        """The settings as written, then the sampler's first."""
        written = Trial(0, (), self._experiment.at(()))
        if self._written is not None:
            self._sampler.put_first(self._written)
            written.proposal, _ = self._sampler.propose()
            self._seen.add(self._written)
        return self._proposed([written])

    def _proposed(self, batch: list[Trial]) -> list[Trial]:
        """The next batch, which may begin with some settings; it ends early where there are no more."""
        plan, num_repeats = self._space.plan, 0
        size = min(plan.batch, plan.trials - len(self.trials))
        while len(batch) < size and num_repeats < MAX_REPEATS:
            if self._is_grid:
                if len(self._seen) == self._space.num_settings:
                    break
                self._sampler.put_first(self._first_unseen())
            is_near = len(batch) % 4 != 0 and not self._is_grid
            proposal, values = self._sampler.propose_by_surrogate() if is_near else self._sampler.propose()
            is_new = values not in self._seen
            self._seen.add(values)
            trial = self._trial(len(self.trials) + len(batch), values, proposal) if is_new else None
            if trial is None:
                self._sampler.drop(proposal)
                num_repeats += 1
            else:
                batch.append(trial)
                num_repeats = 0
        return batch

    def _trial(self, number: int, values: tuple[Number, ...], proposal: int) -> Trial | None:
        """A trial of settings; `None` where a condition rules them out."""
        settings = self._space.settings(values)
        try:
            experiment = self._experiment.allowed_at(settings)
        except ConfigError as error:
            return Trial(number, settings, proposal=proposal, error="; ".join(error.problems))
        return None if experiment is None else Trial(number, settings, experiment, proposal)

    def _first_unseen(self) -> tuple[Number, ...]:
        numbered = map(self._space.numbered, range(self._space.num_settings or 0))
        return next(values for values in numbered if values not in self._seen)

    def values(self, trial: Trial) -> dict[str, Any]:
        """The varied keys at a trial's values."""
        if trial.settings:
            return {each.key: each.value for each in trial.settings}
        return {key: _written(self._experiment, key) for key in self._space.keys}


def _written(experiment: Experiment, key: str) -> Any:
    """The value that an experiment has under a key."""
    value = lookup(experiment.model_dump(mode="json"), key)
    return None if value is ABSENT else value


def _written_values(experiment: Experiment, space: TuneSpace) -> tuple[Number, ...] | None:
    """What is written, as a value for each dimension; `None` where a value lies outside its range."""
    values = [_written_value(experiment, dimension) for dimension in space.dimensions]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _written_value(experiment: Experiment, dimension: Dimension) -> Number | None:
    own = [_written(experiment, key) for key in dimension.keys]
    if isinstance(dimension, Choices):
        for number, step in enumerate(dimension.steps):
            try:
                chosen = experiment.at(step)
            except ConfigError:
                continue
            if own == [_written(chosen, key) for key in dimension.keys]:
                return number
        return None
    (value,) = own
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    is_within = dimension.low <= value <= dimension.high
    if dimension.step is not None:
        steps = (value - dimension.low) / dimension.step
        is_within = is_within and abs(steps - round(steps)) < 1e-9
    return value if is_within else None
