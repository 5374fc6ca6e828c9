"""RunInterval: what a run's latencies may be in truth, as its step times may be wrong.

A step-time error grows in queues: near saturation TTFT errs by several times as much. So the run is simulated
twice more, with all steps shorter and longer by the error of its cost model. Instead of the steps the clock
is changed: with arrivals a factor earlier, latencies are those of steps longer by it, divided by it. That
serves cost models of any kind, and clusters, whose links, faults, autoscalers and time-outs are hurried too;
other times that do not scale with steps (timeouts of static batches, loads of a KV connector) are off by the
factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cbsim.base.units import format_seconds
from cbsim.core import layout
from cbsim.core.building import ChangeParts, LinkParts, RouterParts
from cbsim.cost import CostModel
from cbsim.cost.run_errors import CONFIDENCE, FRONT_S, StepError
from cbsim.results.metrics import QUANTILES, request_latencies
from cbsim.results.run_log import Column
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup, make_setup
from cbsim.studies.simulation import simulate_core
from cbsim.workload import Workload
from cbsim.workload.request import RequestBatch

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("mean", *QUANTILES)
MAX_TOKENS = 1_000_000
"""Output tokens that are simulated again, twice, by compiled code: some 0.05 s each."""
MAX_TOKENS_INTERPRETED = 100_000
"""By interpreted code: some 0.25 s each."""

TOLD_FROM = 0.01
"""Share of a mean latency from which it is told what the least certain part of the cost model makes of it."""

Timed = TypeVar("Timed", Setup, ChangeParts, LinkParts, RouterParts)
Figures = Mapping[str, Mapping[str, float | None]]
"""By latency and statistic, seconds."""
Costs = Callable[[Experiment], CostModel]
"""Gives the cost model of an experiment, or of a pool of its cluster."""


@dataclass(frozen=True, slots=True)
class RunInterval:
    """The 90 % interval of each statistic of a run's latencies."""

    error: StepError
    bounds: Mapping[str, Mapping[str, tuple[float, float]]]
    """By latency and statistic, seconds."""
    num_requests: int
    """Of the run that were simulated again."""

    @property
    def by_figure(self) -> dict[str, tuple[float, float]]:
        """By names of the flattened summary's figures, as `ttft_s.p99`."""
        return {f"{name}.{part}": pair for name, parts in self.bounds.items() for part, pair in parts.items()}

    def summary(self) -> dict[str, Any]:
        """As `summary.json` has it."""
        return {
            "basis": self.error.basis,
            "confidence": CONFIDENCE,
            "step_error_pct": self.error.pct,
            "evidence": self.error.evidence,
            "num_requests": self.num_requests,
            **{
                name: {part: list(pair) for part, pair in parts.items()}
                for name, parts in self.bounds.items()
            },
        }


class HurriedWorkload(Workload):
    """A workload whose clock runs `factor` times as fast, cut after so many output tokens."""

    def __init__(self, workload: Workload, factor: float, max_tokens: float) -> None:
        think_time_s = workload.config.think_time_s / factor
        config = workload.config.model_copy(update={"think_time_s": think_time_s})
        super().__init__(config, seed=workload.seed, folder=workload.folder)
        self._workload, self._factor, self._left = workload, factor, max_tokens
        self.was_cut = False
        """Whether some of its requests were left out, so far."""

    def batches(self) -> Iterator[RequestBatch]:
        """See `Workload.batches`."""
        left = self._left
        for batch in self._workload.batches():
            tokens = np.cumsum(batch.num_output_tokens)
            kept = batch.part(0, max(1, int(np.searchsorted(tokens, left, side="right"))))
            times = {"arrival_s": kept.arrival_s, "deadline_s": kept.deadline_s, "delay_s": kept.delay_s}
            scaled: dict[str, Any] = {
                name: time_s / self._factor for name, time_s in times.items() if time_s is not None
            }
            self.was_cut |= len(kept) < len(batch)
            yield replace(kept, **scaled)
            left -= float(tokens[-1]) if len(tokens) else 0.0
            if self.was_cut or left <= 0:
                self.was_cut = True
                return

    def num_requests(self) -> int | None:
        """Not known."""
        return None


def run_interval(
    experiment: Experiment,
    workload: Workload,
    cost_of: Costs,
    simulated: Figures,
    *,
    max_tokens: float = MAX_TOKENS,
    with_front: bool = True,
) -> RunInterval | None:
    """The interval of a run whose latencies are `simulated`; `None` where nothing is known of its errors.

    Longer runs than `max_tokens` output tokens are taken to be as sensitive as their beginning. `with_front`
    says that latencies count from the client's sending, so that what comes before the engine is in them.
    """
    error = known_error(map(cost_of, experiment.alone))
    if error is None:
        return None
    factor = 1.0 + error.pct / 100.0
    faster, slower = (
        rerun(experiment, workload, cost_of, each, max_tokens) for each in (1.0 / factor, factor)
    )
    base = rerun(experiment, workload, cost_of, 1.0, max_tokens).figures if faster.is_part else None
    front_s = max(0.0, FRONT_S - experiment.front_end_s) if with_front else 0.0
    bounds: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in LATENCIES}
    for name, parts in bounds.items():
        for part in STATISTICS:
            if (told_s := simulated.get(name, {}).get(part)) is None:
                continue
            base_s = told_s if base is None else base[name][part]
            if not base_s > 0:
                continue  # Nothing was measured in the beginning that was simulated again.
            ratios = [1.0, *(run.figures[name][part] / base_s for run in (faster, slower))]
            if all(map(math.isfinite, ratios)):
                more_s = 0.0 if name == "tpot_s" else front_s
                parts[part] = (told_s * min(ratios), told_s * max(ratios) + more_s)
    return RunInterval(error, bounds, faster.num_requests)


def known_error(costs: Iterable[CostModel]) -> StepError | None:
    """What is known of the errors of cost models, the largest; nothing where one draws them, or none knows.

    Of drawn errors replicates tell.
    """
    errors = []
    for cost in costs:
        if cost.step_error is None or cost.step_error.pct == 0 or cost.uses_seed:
            return None
        errors.append(cost.step_error)
    return max(errors, key=lambda error: error.pct)


def statistics_of(values: Column) -> dict[str, float]:
    """The statistics that have intervals, of values that may lack some; none of none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    figures = (known.mean(), *np.quantile(known, list(QUANTILES.values())))
    return {part: float(figure) for part, figure in zip(STATISTICS, figures, strict=True)}


class Rerun(NamedTuple):
    """A run, or its beginning, with all steps longer by a factor."""

    figures: Mapping[str, Mapping[str, float]]
    """Seconds by latency and statistic; NaN for none."""
    num_requests: int
    is_part: bool


def rerun(
    experiment: Experiment, workload: Workload, cost_of: Costs, factor: float, max_tokens: float
) -> Rerun:
    """Simulate a run again, or its beginning of `max_tokens` output tokens, with steps longer by a factor and
    perhaps with other cost models.
    """
    hurried = HurriedWorkload(workload, factor, max_tokens)
    setup = _hurried(make_setup(experiment, hurried, cost_of), factor)
    log, _, _ = simulate_core(setup, experiment.speed)
    rows = experiment.measure.faster(factor).rows(log.requests["arrival_s"])
    latencies = {name: values[rows] for name, values in request_latencies(log).items()}
    missing = dict.fromkeys(STATISTICS, math.nan)
    figures = {
        name: {part: factor * figure for part, figure in (statistics_of(latencies[name]) or missing).items()}
        for name in LATENCIES
    }
    return Rerun(figures, len(latencies["ttft_s"]), hurried.was_cut)


def alternative_note(
    experiment: Experiment, workload: Workload, cost_of: Costs, max_tokens: float
) -> str | None:
    """Mean latencies with and without the least certain part of the cost model, if one of them differs by
    more than `TOLD_FROM`.

    The run, or its beginning of `max_tokens` output tokens, is simulated twice more; `None` of cost models
    that have no such part or draw their errors.
    """
    costs = [cost_of(alone) for alone in experiment.alone]
    parts_of = [cost.alternative[0] for cost in costs if cost.alternative is not None]
    if not parts_of or any(cost.uses_seed for cost in costs):
        return None

    def without(alone: Experiment) -> CostModel:
        cost = cost_of(alone)
        return cost if cost.alternative is None else cost.alternative[1]

    on, off = (rerun(experiment, workload, each, 1.0, max_tokens) for each in (cost_of, without))
    means = {name: (on.figures[name]["mean"], off.figures[name]["mean"]) for name in LATENCIES}
    if not any(abs(with_s - without_s) > TOLD_FROM * without_s for with_s, without_s in means.values()):
        return None
    parts = [
        f"{name.removesuffix('_s').upper()} {format_seconds(with_s)} and {format_seconds(without_s)} "
        f"({100 * (with_s / without_s - 1):+.1f} %)"
        for name, (with_s, without_s) in means.items()
        if with_s == with_s
    ]
    part = f" of the first {on.num_requests:,} requests" if on.is_part else ""
    return f"with and without {parts_of[0]}, means{part} are: {', '.join(parts)}"


def _hurried(setup: Setup, factor: float) -> Setup:
    """The setup under a clock that runs `factor` times as fast, without batches, steps as they are."""
    link, changes = setup.link, setup.changes
    return replace(
        _sooner(setup, factor),
        with_batches=False,
        others=tuple(_hurried(pool, factor) for pool in setup.others),
        router=_sooner(setup.router, factor),
        decode_router=_sooner(setup.decode_router, factor),
        link=link and replace(_sooner(link, factor), bytes_per_s=link.bytes_per_s * factor),
        changes=changes and _hurried_changes(changes, factor),
    )


def _sooner(parts: Timed, factor: float) -> Timed:
    """Parts of a setup with their instants and durations over a factor."""
    names = [each.name for each in fields(parts) if each.name.endswith("_s")]
    times = {name: getattr(parts, name) / factor for name in names if not name.endswith("_per_s")}
    return replace(parts, **times)


def _hurried_changes(changes: ChangeParts, factor: float) -> ChangeParts:
    """What changes in a cluster by itself, under that clock."""
    scalers = []
    for place, numbers, planned in changes.scalers:
        is_time = {"interval_s", "delay_s", "stabilization_s"}
        if numbers["kind"] == layout.BY_TTFT:
            is_time.add("target")
        hurried = {name: value / factor if name in is_time else value for name, value in numbers.items()}
        scalers.append((place, hurried, [(at_s / factor, count) for at_s, count in planned]))
    faults = [(row[0] / factor, row[1] / factor, row[2], row[3]) for row in changes.faults]
    return replace(_sooner(changes, factor), faults=faults, scalers=scalers)
