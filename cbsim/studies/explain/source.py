"""Source: a run to be explained, from its folder or from its experiment, and the batches of its steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.cluster.simpy_world import Progress
from cbsim.results.result import Result, load_run
from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.agreement import Agreement, changed_inputs, changes_since
from cbsim.studies.explain.recorded import recorded_steps
from cbsim.studies.explain.rerun import Check, Take, Window, rerun
from cbsim.studies.run import run_experiment

_LIVE = "live on "
"""What the first note of a live run begins with."""


@dataclass(frozen=True)
class Source:
    """A run: the one in `folder`, or else what `experiment` does."""

    name: str
    """As the user has named it."""
    folder: Path | None = None
    given: Experiment | None = None
    watched: Callable[[Experiment], AbstractContextManager[Progress | None]] = lambda _: nullcontext()
    """What shows how far a simulation is."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the steps handed out so far must know."""

    @cached_property
    def result(self) -> Result:
        """The run's tables; an experiment is run now. Raises as `load_run` and `run_experiment` do."""
        if self.folder is not None:
            return load_run(self.folder)
        assert self.given is not None
        # Who would watch the run itself has nothing to do with its explanation.
        experiment = self.given.model_copy(update={"observers": []})
        with self.watched(experiment) as progress:
            return run_experiment(experiment, progress)

    @cached_property
    def experiment(self) -> Experiment:
        """What the run depends on. Raises `ConfigError` if a folder's settings can't be read any more."""
        if self.given is not None:
            return self.given
        assert self.folder is not None
        return Experiment.load(self.folder / "config.yaml")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.result.config if self.given is None else self.given.resolved()

    def check_replica(self, replica: int) -> None:
        """Raise `CbsimError` unless the run has such a replica."""
        num_replicas = int(self.config["replicas"]["count"])
        if replica >= num_replicas:
            raise CbsimError(f"--replica: got {replica}; allowed: 0 to {num_replicas - 1}")

    def batch_steps(self, window: Window, take: Take) -> None:
        """Hand the steps of a window to `take`, one after the other, as far as the run has them.

        They are read where the run has recorded its batches, else simulated again. Raises `CbsimError` if
        that can't be, or if it comes out differently.
        """
        if self.folder is None:
            self._rerun(window, take)
        elif self.result.make_table("batches") is not None:
            for step in recorded_steps(self.result, window):
                take(step)
        else:
            self._rerun_folder(self.folder, window, take)

    def _rerun(self, window: Window, take: Take, check: Check | None = None) -> None:
        with self.watched(self.experiment) as progress:
            rerun(self.experiment, window, take, check, progress)

    def _rerun_folder(self, folder: Path, window: Window, take: Take) -> None:
        if any(note.startswith(_LIVE) for note in self.result.notes[:1]):
            raise CbsimError(
                f"{self.name}: a live run without batches.parquet, which can't be simulated again; "
                "allowed: cbsim live with --set output.batches=true"
            )
        agreement = Agreement(folder, self.result, window.replica)
        try:
            self._rerun(window, take, agreement.check)
        except CbsimError as error:
            reasons = (f"{folder}: {why}" for why in changes_since(self.result))
            allowed = f"allowed: cbsim run {folder / 'config.yaml'} --out DIR, then cbsim explain DIR"
            raise CbsimError(*error.problems, *reasons, f"{folder}: {allowed}") from error
        self.remarks.extend(
            f"{folder}: {change}; the steps up to here are simulated again from it, and go as they went"
            for change in changed_inputs(self.result)
        )
