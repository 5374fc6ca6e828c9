"""A recorded run against its simulation: figures side by side, and the forced replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, nan
from typing import Any, Protocol

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.config.bounds import unreal_figures
from cbsim.core.stepping import Slice, StepwiseWorld, WatchedStepper
from cbsim.lab.validate.server_log import Arrivals, LoggedWorkload, ServerLog
from cbsim.lab.validate.token_clock import Engine, RecordedTokens, waiting_since
from cbsim.results.metrics import Deployment, distribution, flatten, request_latencies, summarize
from cbsim.results.run_log import Column, RunLog
from cbsim.show.text import MISSING, Table, format_figure
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, simulate
from cbsim.studies.run_interval import RunInterval, run_interval
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import step_through, stepwise
from cbsim.workload.formats import LOG_NAMES
from cbsim.workload.request_source import Workload

TITLES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E"}
PER_REQUEST = ("ttft_s", "tpot_s", "e2e_s")
PERCENTILES = ("p50", "p90", "p99")
STATISTICS = ("mean", *PERCENTILES)
RATES = ("request_throughput_per_s", "output_token_throughput_per_s")
NAMES = (*(f"{latency}.{statistic}" for latency in TITLES for statistic in STATISTICS), *RATES)
"""Of the figures that are compared, as a flattened summary has them: seconds, and rates a second."""
MAX_PASSES = 5
NUM_ESTIMATES = 2
"""Passes after which the number of steps between recorded tokens is no longer sought by time."""


def error_pct(simulated: float, real: float) -> float:
    """How far the simulation is off, percent; NaN where the real figure is 0, or next to it."""
    off = 100.0 * (simulated / real - 1.0) if real else nan
    return off if isfinite(off) else nan


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both worlds."""

    name: str
    """Of `NAMES`."""
    real: float
    simulated: float
    bounds: tuple[float, float] | None = None
    """What the real one may be, in 9 of 10 cases, as step times may be wrong."""

    @property
    def error_pct(self) -> float:
        """See `error_pct`."""
        return error_pct(self.simulated, self.real)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What the server measured beside what the simulation says."""

    figures: list[Figure]
    notes: list[str]
    arrival_s: Column
    """Of each request, rising, seconds since the first."""
    recorded: Mapping[str, Column]
    """`ttft_s`, `tpot_s` and `e2e_s` of each request, in that order; NaN where it has none."""
    simulated: Mapping[str, Column]
    interval: RunInterval | None = None

    @property
    def error_pct(self) -> dict[str, float]:
        """Of the means of the latencies, by name."""
        means = {figure.name: figure.error_pct for figure in self.figures}
        return {name: means[f"{name}.mean"] for name in PER_REQUEST if f"{name}.mean" in means}


def compare_with_log(
    experiment: Experiment, log: ServerLog, arrivals: Arrivals = "sent", *, with_interval: bool = True
) -> RecordedRun:
    """Simulate a log's requests by an experiment's settings; latencies count from `arrivals` in both.

    Those from the engine's queue have no front end's time in them, whatever the experiment says.
    """
    if arrivals == "queued":
        experiment = experiment.model_copy(update={"front_end_s": 0.0})
    workload, cost = log.workload(arrivals), make_cost_model(experiment)
    simulated, notes = simulate(experiment, workload, cost=cost)
    summary = summarize(simulated, Deployment(experiment.model, experiment.gpu))
    makespan_s = float(log.last_token_s.max() - log.arrival_s(arrivals).min())
    served = (len(log), int(log.num_output_tokens.sum()))
    real = {name: count / makespan_s for name, count in zip(RATES, served, strict=True) if makespan_s > 0}
    measured = log.latencies(arrivals)
    for name, values in measured.items():
        figures = distribution(values)
        real |= {f"{name}.{part}": known for part in STATISTICS if (known := figures[part]) is not None}
    num_lost = summary["num_requests"] - summary["num_finished"]
    lost = [f"{num_lost:,} requests did not finish in the simulation"] if num_lost else []
    told = [*log.notes, *unreal_figures(real), *_prompt_notes(experiment, log), *notes, *lost]
    order = np.argsort(log.arrival_s(arrivals), kind="stable")
    latencies = request_latencies(simulated)
    interval = None
    if with_interval:
        is_from_client = arrivals == "sent"
        interval = run_interval(experiment, workload, lambda _: cost, summary, with_front=is_from_client)
    bounds = {} if interval is None else interval.by_figure
    return RecordedRun(
        side_by_side(real, flatten(summary), bounds),
        told,
        simulated.requests["arrival_s"],
        {name: measured[name][order] for name in PER_REQUEST},
        {name: latencies[name] for name in PER_REQUEST},
        interval,
    )


def _prompt_notes(experiment: Experiment, log: ServerLog) -> list[str]:
    """What prefix caching can't know, or isn't asked."""
    if log.prompts is None and experiment.kv_cache.prefix_caching:
        return [
            "the log doesn't say what prompts hold: nothing is found in the prefix cache (--prompts says it)"
        ]
    if log.prompts is not None and not experiment.kv_cache.prefix_caching:
        return ["kv_cache.prefix_caching is false: what prompts share is computed again"]
    return []


def side_by_side(
    real: Mapping[str, float | None],
    simulated: Mapping[str, float | None],
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> list[Figure]:
    """The figures that both worlds have, with what is known of their `bounds`."""
    pairs = ((name, real.get(name), simulated.get(name)) for name in NAMES)
    known = bounds or {}
    return [
        Figure(name, one, other, known.get(name))
        for name, one, other in pairs
        if one is not None and other is not None
    ]


def figures_table(figures: list[Figure], real: str, simulated: str, title: str) -> Table:
    """One row a figure: both worlds, and the simulation's error."""
    rows = []
    for figure in figures:
        name, _, statistic = figure.name.partition(".")
        shown = f"{TITLES[name]} {statistic} (s)" if name in TITLES else name.replace("_", " ")
        error = MISSING if np.isnan(figure.error_pct) else f"{figure.error_pct:+.1f}%"
        bounds = MISSING if figure.bounds is None else " to ".join(map(format_figure, figure.bounds))
        rows.append((shown, format_figure(figure.real), format_figure(figure.simulated), error, bounds))
    num_columns = 5 if any(figure.bounds for figure in figures) else 4
    header = ("", real, simulated, "error", "in 9 of 10 cases")[:num_columns]
    return Table(header=header, rows=tuple(row[:num_columns] for row in rows), title=title)


def replay_log(experiment: Experiment, log: ServerLog) -> RecordedTokens:
    """Force the simulated clock to a log's recorded tokens, and tell what contradicts them.

    How many steps lie between two recorded instants isn't in a log of first and last tokens: a first pass
    estimates it, some take the counts that agree with all requests' tokens, and the last ones those of the
    pass before them, which the preemptions that it had are in. The pass with the fewest
    contradictions is told. Raises `WorkloadError` for a log that says of a request neither when its tokens
    came nor when it was first scheduled: the steps before its first token are then anybody's guess.
    """
    if log.token_times_s is None and log.scheduled_s is None:
        tokens, scheduled = (" or ".join(LOG_NAMES[what]) for what in ("token_times", "scheduled"))
        raise WorkloadError(
            f"{log.path}: a replay needs token times: a column {tokens} with a time for each token, or, "
            f"beside first and last tokens, when requests were first scheduled ({scheduled})"
        )
    budget = int(getattr(experiment.scheduler, "max_tokens_per_step", 2**31))
    cap = int(getattr(experiment.scheduler, "chunk_size", 0)) or budget
    engine = Engine(2 if experiment.scheduler.async_scheduling else 1, min(cap, budget))
    workload = LoggedWorkload(log, waiting_since(log, engine))
    passes: list[RecordedTokens] = []
    counts = None
    while len(passes) < MAX_PASSES:
        clock = RecordedTokens(log, engine, counts)
        passes.append(clock)
        replay(experiment, workload, clock)
        if not clock.contradictions:
            break
        better = clock.next_counts(as_decided=len(passes) > NUM_ESTIMATES)
        if counts is not None and np.array_equal(counts, better):
            break
        counts = better
    return min(passes, key=lambda clock: len(clock.contradictions))


class StepClock(Protocol):
    """Says when steps end."""

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        """The end of a step that has just been decided, after `start_s`."""


class RecordedSteps:
    """The clock of a run that recorded every step's end, in order; steps beyond them take as predicted."""

    def __init__(self, ends_s: Sequence[float]) -> None:
        self._ends_s = ends_s

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        """See `StepClock.end_s`."""
        recorded = self._ends_s[number] if number < len(self._ends_s) else start_s
        return recorded if recorded > start_s else start_s + predicted_s


class ReplayedReplica(WatchedStepper):
    """A replica on a clock that is not its cost model's."""

    def __init__(self, world: StepwiseWorld, number: int, clock: StepClock) -> None:
        super().__init__(world, number)
        self._clock = clock

    def began(self, step: Any) -> None:
        """See `WatchedStepper.began`."""
        step.end_s = self._clock.end_s(step.number, self.slices(step), step.start_s, step.duration_s)
        step.duration_s = step.end_s - step.start_s
        self.own.busy_until_s = step.end_s
        if self.records.config.num_stages == 1:
            self.own.first_stage_until_s = step.end_s


def replay(experiment: Experiment, workload: Workload, clock: StepClock) -> RunLog:
    """What an experiment's scheduler decides on one replica if steps end by the clock; with its batches."""
    setup = setup_of(experiment, workload, make_cost_model(experiment))
    setup = replace(setup, num_replicas=1, until_s=inf, with_batches=True)
    world = stepwise(setup, make_replica=partial(ReplayedReplica, clock=clock))
    step_through(world, setup)
    return stepwise_log(world, setup)
