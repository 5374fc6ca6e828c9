"""Source: a run to be explained, from its folder or from its experiment, and the batches of its steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.base.paths import is_file
from cbsim.base.trust import Trust, trusting
from cbsim.cluster.simpy_world import Progress
from cbsim.core.building import LOG_ROWS
from cbsim.core.layout import STEP
from cbsim.core.stepping import Slice, Stepper, StepwiseWorld, WatchedStepper
from cbsim.results.result import Result, hash_files, load_run, package_version
from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.batch_step import DECISIONS, BatchStep, Limits, Share, steps_of
from cbsim.studies.run import make_cost_model, make_workload, run_experiment
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import step_through, stepwise
from cbsim.workload.request import Request

Take = Callable[[BatchStep], None]
"""Takes a step with its batch, when it has ended."""
Check = Callable[[Any, Sequence[Slice]], None]
"""Looks at a `STEP` and its slices before it ends; may raise."""


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first` to `last` of a replica, both included; `None` for all that follow."""

    replica: int
    first: int
    last: int | None = None


class _Enough(Exception):
    """The last step of the window has ended."""


def rerun(
    experiment: Experiment, window: Window, take: Take, check: Check | None, progress: Progress | None
) -> None:
    """Simulate an experiment up to the window's end and hand its steps to `take`.

    `check` sees every step of the window's replica up to its end. Raises `PluginError` if a third party's
    scheduler fails.
    """
    limits = Limits.of(experiment.resolved())
    setup = setup_of(experiment, make_workload(experiment), make_cost_model(experiment))

    def make_replica(world: StepwiseWorld, number: int) -> Stepper:
        if number == window.replica:
            return _ShownReplica(world, window, limits, take, check)
        return Stepper(world, number)

    world = stepwise(setup, make_replica=make_replica)
    with suppress(_Enough):
        # An OSError is of `take`, whose reader may be gone.
        step_through(world, setup, progress=progress, passes=(_Enough, OSError))


class _ShownReplica(WatchedStepper):
    """A replica that hands over its steps with their batches."""

    def __init__(
        self, world: StepwiseWorld, window: Window, limits: Limits, take: Take, check: Check | None
    ) -> None:
        super().__init__(world, window.replica)
        self._window, self._limits, self._take, self._check = window, limits, take, check
        self._decisions: dict[int, dict[str, list[tuple[str, int]]]]
        self._decisions = defaultdict(lambda: defaultdict(list))
        self._shares: dict[int, tuple[Share, ...]] = {}
        """Both are of the steps under way, by their numbers."""

    def decided(self, step: Any) -> None:
        """Keep decisions for the step they belong to; those of a call that made none, for the next."""
        for what, request, num_cached in self.decisions(step):
            self._decisions[self.own.num_steps][what].append((request.request_id, num_cached))

    def began(self, step: Any) -> None:
        """Keep the batch as requests stand now: another step may be decided before this one ends."""
        if step.number >= self._window.first:
            self._shares[step.number] = tuple(map(_share, self.slices(step)))

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        step, window = self.under_way[0], self._window
        if self._check is not None:
            self._check(step, self.slices(step))
        decisions = self._decisions.pop(step.number, {})
        shares = self._shares.pop(step.number, ())
        finished = super().end_step()
        parts = self.records.slices[step.place]
        shares = tuple(
            replace(share, num_drafts=part.num_drafts, num_accepted=part.num_accepted)
            for share, part in zip(shares, parts, strict=False)
        )
        if self.records.log.lengths.steps >= LOG_ROWS:
            self.world.record()  # Nobody asks for it.
        if step.number < window.first:
            return finished
        row = {name: getattr(step, name) for name in STEP.names or ()}
        row |= {"replica": self.replica, "step": step.number, "scheduled_at_s": step.now}
        row["kv_blocks_total"] = self.own.num_blocks
        decisions["finished"] = [(request.request_id, 0) for request in finished]
        self._take(self._limits.batch_step(row, shares, decisions))
        if step.number == window.last:
            raise _Enough
        return finished


def _share(part: Slice) -> Share:
    request = part.request
    num_left = request.prefill_until - part.num_computed_tokens if part.is_prefill else 1
    return Share(request.request_id, part.num_tokens, num_left, part.is_prefill, request.num_blocks)


def recorded_steps(result: Result, window: Window, config: dict[str, Any]) -> Iterator[BatchStep]:
    """The steps of a window as far as the run has them, with its replica's configuration.

    The run must have its batches.
    """
    batches = result.batches
    assert batches is not None
    last = len(result.steps) if window.last is None else window.last
    here = (batches["replica"] == window.replica) & batches["step"].between(window.first, last)
    slices = dict(iter(batches[here].groupby("step")))
    steps = steps_of(result, window.replica)
    shares, changes, limits = _Shares(result, config), _changes(result.events, steps), Limits.of(config)
    for row in steps[window.first : last + 1].to_dict("records"):
        rows = slices.get(row["step"], batches[:0])
        yield limits.batch_step(
            {str(name): value for name, value in row.items()},
            shares.of(rows, row["scheduled_at_s"]),
            changes.get(row["step"], {}),
        )


class _Shares:
    """Makes shares out of recorded slices: what a chunk leaves of its prompt, and the blocks it fills."""

    def __init__(self, result: Result, config: dict[str, Any]) -> None:
        requests = result.requests
        self._num_prompt = dict(zip(requests["request_id"], requests["num_prompt_tokens"], strict=True))
        self._block_size = int(config["kv_cache"]["block_size"])
        self._resumptions = _resumptions(result)

    def of(self, rows: pd.DataFrame, scheduled_at_s: float) -> Iterator[Share]:
        """The shares of one step."""
        columns = ("request_id", "num_tokens", "num_computed_tokens", "kind", "num_drafts", "num_accepted")
        table = (rows.get(column, [0] * len(rows)) for column in columns)
        for name, num_tokens, before, kind, *drafts in zip(*table, strict=True):
            num_left = self._prefill_until(name, scheduled_at_s) - before if kind == "prefill" else 1
            num_blocks = -(-(before + num_tokens) // self._block_size)
            counts = (int(num_blocks), *map(int, drafts))
            yield Share(name, int(num_tokens), int(num_left), kind == "prefill", *counts)

    def _prefill_until(self, request_id: str, now: float) -> int:
        """Its prompt, and after a preemption what it had answered by then."""
        if request_id not in self._num_prompt:
            raise CbsimError(f"batches.parquet has a request {request_id!r} that requests.parquet has not")
        resumptions = self._resumptions.get(request_id, [])
        place = bisect_right(resumptions, now, key=itemgetter(0))
        return int(self._num_prompt[request_id]) + (resumptions[place - 1][1] if place else 0)


def _resumptions(result: Result) -> dict[str, list[tuple[float, int]]]:
    """When each preempted request was resumed, and how many tokens it had generated by then."""
    preempted = result.requests["request_id"][result.requests["num_preemptions"] > 0]
    events = result.events
    kept = events[events["request_id"].isin(preempted) & events["event"].isin(["emitted", "resumed"])]
    is_token = kept["event"] == "emitted"
    num_generated = is_token.groupby(kept["request_id"].astype(str)).cumsum()
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    columns = (kept["request_id"], kept["time_s"], num_generated)
    for name, time_s, number in zip(*(column[~is_token] for column in columns), strict=True):
        found[name].append((time_s, int(number)))
    return found


def _changes(events: pd.DataFrame, steps: pd.DataFrame) -> dict[int, dict[str, list[tuple[str, int]]]]:
    """The decisions of each step of a replica; a call that made no step decided for the next one."""
    replica = int(steps["replica"].iloc[0]) if len(steps) else 0
    kept = events[events["event"].isin(DECISIONS) & (events["replica"] == replica).fillna(False)]
    following = pd.Series(steps["scheduled_at_s"].searchsorted(kept["time_s"]), kept.index)
    found: dict[int, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    columns = (kept["step"].fillna(following), kept["event"], kept["request_id"], kept["num_tokens"])
    for step, event, name, num_tokens in zip(*columns, strict=True):
        found[int(step)][event].append((str(name), int(num_tokens)))
    return found


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
    trust: Trust = Trust.INSTALLED
    """Which plug-ins that the folder names may be run: it may be a stranger's."""
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
        if experiment.cluster is not None:
            output = experiment.output.model_copy(update={"batches": True})
            experiment = experiment.model_copy(update={"output": output})
        with self.watched(experiment) as progress:
            return run_experiment(experiment, progress, with_interval=False)

    @cached_property
    def experiment(self) -> Experiment:
        """What the run depends on. Raises `ConfigError` if a folder's settings can't be read or trusted."""
        if self.given is not None:
            return self.given
        assert self.folder is not None
        with trusting(self.trust):
            return Experiment.load(self.folder / "config.yaml")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.result.config if self.given is None else self.given.resolved()

    def check_replica(self, replica: int) -> None:
        """Raise `CbsimError` unless the run has such a replica."""
        if replica >= self.num_replicas:
            raise CbsimError(f"--replica: got {replica}; allowed: 0 to {self.num_replicas - 1}")

    @property
    def num_replicas(self) -> int:
        """Replicas that the tables tell apart, each rank of data parallelism one of its own."""
        if self.config.get("cluster"):
            return int(self.result.steps["replica"].max()) + 1 if len(self.result.steps) else 1
        return int(self.config["replicas"]["count"] * self.config.get("parallel", {}).get("data", 1))

    def config_of(self, replica: int) -> dict[str, Any]:
        """The resolved configuration of a replica: in a cluster, that of its pool."""
        steps = steps_of(self.result, replica)
        if not self.config.get("cluster") or not len(steps):
            return self.config
        own = {pool.name: own for pool, own in self.experiment.pools()}
        return own[steps["pool"].iloc[0]].resolved()

    def batch_steps(self, window: Window, take: Take) -> None:
        """Hand the steps of a window to `take`, one after the other, as far as the run has them.

        They are read where the run has recorded its batches, else simulated again. Raises `CbsimError` if
        that can't be, or if it comes out differently.
        """
        is_cluster = bool(self.config.get("cluster"))
        if self.folder is None and not is_cluster:
            self._rerun(window, take)
        elif self.result.make_table("batches") is not None:
            for step in recorded_steps(self.result, window, self.config_of(window.replica)):
                take(step)
        elif is_cluster:
            raise CbsimError(
                f"{self.name}: a cluster's run without batches.parquet, which is not simulated again step by "
                "step; allowed: cbsim run with --set output.batches=true"
            )
        else:
            assert self.folder is not None
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
        if not is_file(path):
            changes.append(f"its input {path} is gone")
        elif hash_files([path])[path] != entry["sha256"]:
            changes.append(f"its input {path} has changed since")
    return changes
