"""The same experiment in both worlds: served live by a real model, and simulated from a profile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.cost.profile import ProfileConfig
from cbsim.lab.calibrate.accuracy import predict
from cbsim.lab.calibrate.point import seconds_of
from cbsim.lab.calibrate.profile_folder import fit_profile
from cbsim.lab.validate.recorded_run import Figure, RecordedSteps, replay, side_by_side
from cbsim.lab.validate.token_clock import KINDS
from cbsim.results.metrics import flatten
from cbsim.results.result import Result
from cbsim.results.run_log import Column, RunLog
from cbsim.results.tables import batches_table, to_frame
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload, run_experiment
from cbsim.workload.request import Request
from cbsim.workload.request_source import Workload, WorkloadConfig

if TYPE_CHECKING:
    import pandas as pd

IN_TURNS: dict[str, Any] = {"host": "sync", "cuda_graph_batch_sizes": []}
"""The live engine builds a step when the tokens of the one before are known; it pads no batch of a CPU."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Measured against predicted seconds of the live run's steps of one kind."""

    kind: str
    num_steps: int
    measured_s: float
    """Median."""
    predicted_s: float
    """Median of the same steps."""
    ratio: float
    """All measured over all predicted time."""
    median_error_pct: float
    """Of single steps, without sign."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step at which two runs decide otherwise."""

    step: int
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class BothWorlds:
    """A live run, its simulation and what differs."""

    live: Result
    simulated: Result
    figures: list[Figure]
    steps: list[StepTimes]
    difference: Difference | None
    """Between live and simulated decisions; `None` if they are the same throughout."""
    replayed_difference: Difference | None
    """The same, when the simulation is given the live steps' times."""


def validate_live(experiment: Experiment, *, device: str, time_scale: float = 1.0) -> BothWorlds:
    """Serve an experiment live, simulate the same arrivals, and compare; needs torch.

    Raises `ConfigError` for what can't be served live here.
    """
    from cbsim.lab.live.live_run import run_live

    output = experiment.output.model_copy(update={"batches": True})
    experiment = experiment.model_copy(update={"output": output})
    live = run_live(experiment, device=device, time_scale=time_scale)
    num_blocks = int(live.steps["kv_blocks_total"].max())
    kv_cache = experiment.kv_cache.model_copy(update={"num_blocks": num_blocks})
    rate_scale = experiment.workload.rate_scale * time_scale
    workload = experiment.workload.model_copy(update={"rate_scale": rate_scale})
    same = experiment.model_copy(update={"kv_cache": kv_cache, "workload": workload})
    simulated = run_experiment(same)
    assert live.batches is not None
    assert simulated.batches is not None
    ends_s = (live.steps["start_s"] + live.steps["duration_s"]).tolist()
    again = make_workload(same)
    if again.config.concurrency is None:
        again = AsTaken(again, live)
    replayed: RunLog = replay(same, again, RecordedSteps(ends_s))
    return BothWorlds(
        live=live,
        simulated=simulated,
        figures=side_by_side(flatten(live.summary), flatten(simulated.summary)),
        steps=_step_times(live, make_cost_model(experiment)),
        difference=_first_difference(live.batches, simulated.batches),
        replayed_difference=_first_difference(live.batches, to_frame(batches_table(replayed))),
    )


def calibrate_here(experiment: Experiment, folder: Path, *, device: str, plan: Any) -> Experiment:
    """The experiment with a profile of this machine's own, timed and fitted into `folder`; needs torch.

    The live engine's host and device take turns: its host time, what whole steps took beyond their kernels
    when they were timed, is added to theirs.
    """
    from cbsim.lab.calibrate.measurement import measure

    folder.mkdir(parents=True, exist_ok=True)
    measured = measure(experiment.model, folder, device=device, plan=plan, seed=experiment.seed)
    cost_file, _ = fit_profile(folder, measured.meta, experiment.seed)
    steps = [point for point in measured.points if point.op == "step"]
    beyond_s = seconds_of(steps) - predict(cost_file.form, steps) if steps else np.zeros(1)
    host_step_s = max(0.0, float(np.median(beyond_s)))
    return with_profile(experiment, folder, **IN_TURNS, host_step_s=host_step_s, host_request_s=0.0)


def with_profile(experiment: Experiment, folder: Path, **host: Any) -> Experiment:
    """The experiment priced by a profile; host terms are those of its own `cost_model` if that is one.

    Else they are the documented defaults, or `host`: settings of `ProfileConfig`.
    """
    given = experiment.cost_model
    if isinstance(given, ProfileConfig):
        config = given.model_copy(update={"profile": str(folder)})
    else:
        config = ProfileConfig(type="profile", profile=str(folder), **host)
    return experiment.model_copy(update={"cost_model": config})


class AsTaken(Workload):
    """Requests that arrive when the live engine took them: an idle one wakes a little after the arrival."""

    Config = WorkloadConfig

    def __init__(self, workload: Workload, live: Result) -> None:
        super().__init__(workload.config, seed=workload.seed, folder=workload.folder)
        self._workload = workload
        starts_s: Column = live.steps["start_s"].to_numpy(np.float64)
        ends_s = starts_s + live.steps["duration_s"].to_numpy(np.float64)
        arrival_s = live.requests["arrival_s"].to_numpy(np.float64)
        num_started = np.searchsorted(starts_s, arrival_s, side="right")
        is_idle = np.append(-math.inf, ends_s)[num_started] < arrival_s
        wakes_s = np.append(starts_s, math.nan)[num_started]
        taken_s = np.where(is_idle & (num_started < len(starts_s)), wakes_s, arrival_s)
        ids = live.requests["request_id"].astype(str)
        self._taken = dict(zip(ids, taken_s.tolist(), strict=True))

    def requests(self) -> Iterator[Request]:
        """See `Workload.requests`."""
        for request in self._workload.requests():
            request.arrival_s = request.waiting_since_s = self._taken[request.request_id]
            yield request

    def num_requests(self) -> int | None:
        """As many as live."""
        return self._workload.num_requests()


def _step_times(live: Result, cost: CostModel) -> list[StepTimes]:
    """What the cost model says of each live step, by kind."""
    requests = live.requests
    prompt = dict(zip(requests["request_id"].astype(str), requests["num_prompt_tokens"], strict=True))
    measured = dict(zip(live.steps["step"], live.steps["duration_s"], strict=True))
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    assert live.batches is not None
    for step, rows in live.batches.groupby("step"):
        shape = _shape(rows, prompt, cost.model.window)
        kind = "decode" if not shape.chunks else "mixed" if shape.num_decodes else "prefill"
        times[kind].append((float(measured[step]), cost.step_s(shape)))
    found = []
    for kind, pairs in times.items():
        if pairs:
            real, told = np.array(pairs).T
            medians_s = (float(np.median(real)), float(np.median(told)))
            error_pct = 100.0 * float(np.median(np.abs(told / real - 1.0)))
            found.append(StepTimes(kind, len(pairs), *medians_s, float(real.sum() / told.sum()), error_pct))
    return found


def _shape(rows: pd.DataFrame, prompt: dict[str, int], window: int) -> StepShape:
    chunks, contexts, num_finishing = [], [], 0
    columns = ("request_id", "num_tokens", "num_computed_tokens", "kind")
    for request_id, tokens, computed, kind in zip(*(rows[name] for name in columns), strict=True):
        if kind == "decode":
            contexts.append(int(computed + tokens))
        else:
            chunks.append((int(tokens), int(computed)))
            num_finishing += int(computed + tokens >= prompt[str(request_id)])
    longest, windowed = max(contexts, default=0), sum(min(each, window) for each in contexts)
    return StepShape(tuple(chunks), num_finishing, len(contexts), sum(contexts), longest, windowed)


def _first_difference(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """The first slice, in order of steps and places in the batch, that isn't the same in both."""
    columns = ["step", "request_id", "num_tokens", "num_computed_tokens"]
    rows = (zip(*(frame[name].tolist() for name in columns), strict=True) for frame in (first, second))
    for one, other in zip_longest(*rows):
        if one != other:
            step = min(row[0] for row in (one, other) if row is not None)
            return Difference(step, _told(one), _told(other))
    return None


def _told(row: tuple[int, str, int, int] | None) -> str:
    if row is None:
        return "no more steps"
    step, request_id, num_tokens, num_computed = row
    return f"step {step}: {num_tokens} tokens of {request_id} after {num_computed}"
