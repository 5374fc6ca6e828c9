"""Source: a run to be explained, from its folder or from its experiment, and the batches of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.cluster.simpy_world import Progress
from cbsim.core.stepping import Slice
from cbsim.results.manifest import hash_files, package_version
from cbsim.results.result import Result, load_run
from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.batch_step import steps_of
from cbsim.studies.explain.step_source import Check, Take, Window, recorded_steps, rerun
from cbsim.studies.run import run_experiment

_LIVE = "live on "
"""What the first note of a live run begins with."""
_TIMES = ("start_s", "duration_s")
_COUNTS = ("num_running", "num_waiting", "kv_blocks_used")
_OF_REQUESTS = ("arrival_s", "num_prompt_tokens", "num_output_tokens")
_TOLERANCE = 1e-9
"""Relative, of times: another machine's mathematics may differ in the last bits."""


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
        try:
            self._rerun(window, take, _Agreement(folder, self.result, window.replica).check)
        except CbsimError as error:
            then, now = self.result.manifest["versions"].get("cbsim"), package_version("cbsim")
            versions = [] if then == now else [f"it was run with cbsim {then}, this is {now}"]
            allowed = f"allowed: cbsim run {folder / 'config.yaml'} --out DIR, then cbsim explain DIR"
            told = (f"{folder}: {why}" for why in (*versions, *_changed_inputs(self.result), allowed))
            raise CbsimError(*error.problems, *told) from error
        self.remarks.extend(
            f"{folder}: {change}; the steps up to here are simulated again from it, and go as they went"
            for change in _changed_inputs(self.result)
        )


class _Agreement:
    """Compares the steps of one replica, as they are simulated again, with those in a run folder."""

    def __init__(self, folder: Path, result: Result, replica: int) -> None:
        self._folder = folder
        self._result = result
        steps = steps_of(result, replica)
        self._steps = list(zip(*(steps[name].tolist() for name in (*_TIMES, *_COUNTS)), strict=True))
        columns = (result.requests[name].tolist() for name in ("request_id", *_OF_REQUESTS))
        self._requests = {name: values for name, *values in zip(*columns, strict=True)}
        self._seen: set[str] = set()

    def check(self, step: Any, slices: Sequence[Slice]) -> None:
        """Raise `CbsimError` unless the folder has the same step (`STEP`), of requests that it has."""
        number = step.number
        if number >= len(self._steps):
            raise self._differs(f"has a step {number}, which the folder has not")
        self._compare((*_TIMES, *_COUNTS), step, self._steps[number], number)
        for name, request in ((part.request.request_id, part.request) for part in slices):
            if name in self._seen:
                continue
            if name not in self._requests:
                raise self._differs(f"has in step {number} a request '{name}', which the folder has not")
            self._compare(_OF_REQUESTS, request, self._requests[name], number, f"request '{name}' has ")
            self._seen.add(name)

    def _compare(self, names: Sequence[str], now: Any, then: Any, step: int, of: str = "") -> None:
        """Raise `CbsimError` if one of some attributes is not what it was."""
        for name, before in zip(names, then, strict=True):
            value = getattr(now, name)
            if not math.isclose(value, before, rel_tol=_TOLERANCE):
                raise self._differs(f"differs from step {step} on: {of}{name} {value:.9g}, was {before:.9g}")

    def _differs(self, how: str) -> CbsimError:
        return CbsimError(
            f"{self._folder}: can't be explained step by step: it has no batches.parquet, and simulating it "
            f"again {how}"
        )


def _changed_inputs(result: Result) -> list[str]:
    """The input files of a run that are gone or not what they were."""
    changes = []
    for entry in (entry for entry in result.manifest["inputs"] if "file" in entry):
        path = Path(entry["file"])
        if not path.is_file():
            changes.append(f"its input {path} is gone")
        elif hash_files([path])[path] != entry["sha256"]:
            changes.append(f"its input {path} has changed since")
    return changes
