"""CapacityAnswer: what `capacity` found for each contender, the curve it found it on, and its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from cbsim.base.errors import ConfigError
from cbsim.results.output import ANSWER, POINTS, check_target
from cbsim.results.result import hash_mapping
from cbsim.results.slo import Slo
from cbsim.studies.answer_folder import save_answer, saved_answer
from cbsim.studies.capacity.search import Plan, SearchOutcome, SearchTask, complete_curves, search
from cbsim.studies.capacity.verdict import Contender, Evidence, judge_all
from cbsim.studies.experiment import Experiment
from cbsim.studies.intervals import Interval, seen_range
from cbsim.studies.labels import label_values, point_name
from cbsim.studies.probe import with_assumed
from cbsim.studies.run import Address, make_workload
from cbsim.studies.worker_pool import Pool, open_pool, time_left_s
from cbsim.workload.swing import swing_of
from cbsim.workload.trace import TraceWorkload

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class CapacityProgress:
    """The state of one of the two phases, told at its beginning and after each of its tasks."""

    phase: Literal["searches", "curves"]
    """First each replicate is searched; then the curves are completed, in as many rounds as that takes."""
    num_done: int
    num_tasks: int
    """Of the phase, or of this round of it."""
    elapsed_s: float
    """Wall-clock seconds since the phase, or the round, began."""

    @property
    def time_left_s(self) -> float | None:
        """Wall-clock seconds to the end of it at the pace so far; `None` before the first task is done."""
        return time_left_s(self.elapsed_s, self.num_done, self.num_tasks - self.num_done)


Progress = Callable[[CapacityProgress], None]
"""Told how far the searches, then the curves, are."""


class CapacityInterrupted(KeyboardInterrupt):
    """Somebody stopped a search; its text says what is kept."""


@dataclass(frozen=True, slots=True)
class CapacityAnswer:
    """Capacities with their intervals, and every run behind them."""

    name: str
    slo: Slo
    """What is promised, with the share that was searched for; of the first contender."""
    plan: Plan
    resampled_from: int | None
    """Requests of the trace that replicates are resampled from; `None` where each is drawn from a seed."""
    contenders: tuple[Contender, ...]
    notes: tuple[str, ...]
    """What makes the answer looser than it need be, and what would not."""
    curve: pd.DataFrame
    """A row a run: `contender`, the swept keys, `seed`, `rate_per_s` offered, then the flattened summary."""
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]


def capacity(
    config: str | Path | Mapping[str, Any] | Experiment,
    plan: Plan | None = None,
    *,
    workers: int = 1,
    cluster: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> CapacityAnswer:
    """Find the highest rate of requests at which the experiment's SLO is met.

    It is where `plan.share` of the requests (by default the SLO's) keep their own limits, and all figures of
    a run theirs.

    Each point of a `sweep` is a contender. The rate is a generator's `arrivals.rate_per_s`, or else
    `rate_scale`. Each replicate finds its own capacity by bracketing and bisection over a geometric ladder of
    rates, the same for all, and every contender and rate meets the same requests (common random numbers).
    Then every replicate runs at every rate that any of them tried: the curve. The capacity is where their
    mean, the curve, leaves the SLO; the spread of their own capacities gives its interval.
    Generators are replicated by seeds, with Student's t interval; traces by the block bootstrap, with the
    standard error that it estimates (`cbsim.studies.intervals`).

    `out` keeps the figures of every run in `out/points`, so that a search that was killed goes on where it
    was; `answer.save_capacity` writes the answer beside them. Raises `ConfigError` for an
    experiment without an SLO or a rate, `CbsimError` if something other than a capacity is in the folder or
    nothing can be written, and whatever its runs raise; `CapacityInterrupted` for Ctrl-C.
    """
    experiment = Experiment.of(config, overrides or {})
    plan = plan or Plan()
    slo = Slo.of(experiment.slo.limits(), plan.share)
    plan = replace(plan, share=slo.share)
    points = experiment.points()
    if problems := dict.fromkeys(chain(*(_problems(point, points[0][1]) for _, point in points))):
        raise ConfigError(*problems)
    folder = None if out is None else (Path(out) / POINTS).resolve()
    if out is not None:
        check_target(Path(out), "capacity")
    tasks = [_tasks(point, plan, folder) for _, point in points]
    try:
        outcomes = _search_all(tasks, workers, cluster, progress or (lambda _: None))
    except KeyboardInterrupt:
        kept = "" if folder is None else f"{len(list(folder.glob('*.json')))} runs kept in {out}; "
        raise CapacityInterrupted(f"{kept}the same call goes on" if kept else "stopped") from None
    return _answer(experiment, plan, slo, points, outcomes)


def _problems(experiment: Experiment, first: Experiment) -> Iterator[str]:
    """What leaves a capacity without a meaning, of a contender and of the first one."""
    if not experiment.slo.limits():
        yield "slo: missing; capacity needs at least one limit, as in --set slo.ttft_s=2"
    if experiment.slo.share == 1 and Slo.of(experiment.slo.limits()).own:
        yield "slo.share: got 1; capacity expects less, for one slow request of all would decide"
    if experiment.workload.concurrency is not None:
        yield "workload.concurrency: clients that wait for their answers have no rate to vary"
    if experiment.stop_at_s is not None:
        yield "stop_at_s: capacity needs runs to their end; leave it out"
    measure = experiment.measure
    if measure.warmup_s or measure.from_s is not None or measure.to_s is not None:
        yield "measure: at other rates other requests arrive by then; capacity can leave out warmup_requests"
    if experiment.seed != first.seed:
        yield "sweep: varies the seed; leave that to the replicates of capacity"
    for name in ("rate_scale", "rate_per_s"):
        if getattr(experiment.workload, name, None) != getattr(first.workload, name, None):
            yield f"sweep: varies workload.{name}, which is what capacity finds"


def _tasks(experiment: Experiment, plan: Plan, folder: Path | None) -> list[SearchTask]:
    """The searches of a contender's replicates."""
    settings, slo = experiment.resolved(), Slo.of(experiment.slo.limits(), plan.share)
    workload = settings["workload"]
    rate_key: tuple[str, ...] = ("workload", "rate_scale")
    if workload["type"] == "trace":
        workload["type"] = "resampled"
        if plan.num_requests is not None:
            workload["num_requests"] = plan.num_requests
    elif "rate_per_s" in workload.get("arrivals", {}):
        rate_key = ("workload", "arrivals", "rate_per_s")
    return [
        SearchTask(settings | {"seed": experiment.seed + number}, rate_key, plan, slo, folder)
        for number in range(plan.num_replicates)
    ]


def _search_all(
    tasks: Sequence[Sequence[SearchTask]], workers: int, cluster: str | None, progress: Progress
) -> list[list[SearchOutcome]]:
    """The outcomes of each contender's replicates; of searches that run the same, one is carried out."""
    address, distinct = Address(), dict[str, SearchTask]()
    keys = [[_key(task, address) for task in replicates] for replicates in tasks]
    for key, task in zip(chain(*keys), chain(*tasks), strict=True):
        distinct.setdefault(key, task)
    pool = open_pool(min(workers, len(distinct)), cluster)
    outcomes = _run_all(pool, progress, "searches", list(distinct.values()))
    found = dict(zip(distinct, outcomes, strict=True))
    complete_curves(keys, distinct, found, partial(_run_all, pool, progress, "curves"))
    return [[found[key] for key in replicates] for replicates in keys]


def _key(task: SearchTask, address: Address) -> str:
    _, run_key = address.keys(Experiment.from_mapping(task.settings), task.settings)
    return hash_mapping([run_key, task.rate_key])


def _run_all(
    pool: Pool, progress: Progress, phase: Literal["searches", "curves"], tasks: Sequence[SearchTask]
) -> list[SearchOutcome]:
    """The outcomes in the order of the tasks; raises what the first failing one raised."""
    outcomes: dict[int, SearchOutcome] = {}
    started_s = perf_counter()
    progress(CapacityProgress(phase, 0, len(tasks), 0.0))
    for outcome in pool.run_all(search, tasks):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.answer is not None
        outcomes[outcome.index] = outcome.answer
        progress(CapacityProgress(phase, len(outcomes), len(tasks), perf_counter() - started_s))
    return [outcomes[index] for index in range(len(tasks))]


def _answer(
    experiment: Experiment,
    plan: Plan,
    slo: Slo,
    points: Sequence[tuple[Mapping[str, Any], Experiment]],
    outcomes: Sequence[Sequence[SearchOutcome]],
) -> CapacityAnswer:
    import pandas as pd

    cells = label_values([swept for swept, _ in points])
    evidence = [
        Evidence(
            replicates,
            plan,
            Slo.of(point.slo.limits(), plan.share),
            _num_source_requests(point),
            bool(getattr(point.cost_model, "uncertainty", False)),
        )
        for (_, point), replicates in zip(points, outcomes, strict=True)
    ]
    labels = _names(cells, experiment.name)
    notes = [point.assumed for _, point in points]
    rows = [
        {"contender": label, **swept, "seed": seed, "rate_per_s": each.rate_per_s(rung)}
        | with_assumed(figures, assumed)
        for label, swept, each, assumed in zip(labels, cells, evidence, notes, strict=True)
        for seed, outcome in enumerate(each.outcomes, experiment.seed)
        for rung, figures in sorted(outcome.figures.items())
    ]
    contenders = judge_all(labels, cells, evidence)
    return CapacityAnswer(
        experiment.name,
        slo,
        plan,
        _num_source_requests(experiment),
        contenders,
        _swing_notes(experiment, contenders),
        pd.DataFrame(rows),
        experiment.resolved(),
        outcomes[0][0].manifest,
    )


def _names(cells: Sequence[Mapping[str, Any]], default: str) -> list[str]:
    """The shortest names that tell contenders apart, by as few of the first swept settings as do."""
    keys = list(cells[0])
    names = [default]
    for size in range(1, len(keys) + 1):
        names = [point_name(cell, keys[:size]) for cell in cells]
        if len(set(names)) == len(names):
            break
    return names


def _swing_notes(experiment: Experiment, contenders: Sequence[Contender]) -> tuple[str, ...]:
    """That a trace's own swing makes capacities loose, where it may, and what would make them less so."""
    rates = [
        each.rate_per_s
        for each in contenders
        if each.rate_per_s is not None and seen_range(each.own_rates_per_s) is None
    ]
    workload = make_workload(experiment)
    if not isinstance(workload, TraceWorkload) or not any(
        rate.half_width > LOOSE * rate.estimate for rate in rates
    ):
        return ()
    swing = swing_of(workload.own_arrivals())
    if swing is None:
        return ()
    hints = []
    if workload.config.rate_per_s is None:
        hints.append("workload.rate_per_s brings every resample to one mean rate")
    if swing.steady is not None:
        start_s, end_s, rate_per_s = swing.steady
        hints.append(
            f"workload.start_s={start_s:.6g} with workload.end_s={end_s:.6g} keeps a stretch steady at "
            f"{rate_per_s:.3g} requests/s"
        )
    told = f": {'; '.join(hints)}" if hints else ""
    return (
        f"the intervals are wide, as the trace's own rate swings from {swing.low_per_s:.3g} to "
        f"{swing.high_per_s:.3g} requests/s{told}",
    )


LOOSE = 0.1
"""A capacity of which the interval's half is more than this share is loose."""


def _num_source_requests(experiment: Experiment) -> int | None:
    return make_workload(experiment).num_requests() if experiment.workload.type == "trace" else None


def to_json(answer: CapacityAnswer) -> dict[str, Any]:
    """Everything but the curve, as plain data; intervals as `estimate`, `low` and `high`."""
    told = {field.name: getattr(answer, field.name) for field in fields(answer) if field.name != "curve"}
    contenders = [
        {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in asdict(each).items()
        }
        for each in answer.contenders
    ]
    return told | {"slo": answer.slo.plain(), "plan": asdict(answer.plan), "contenders": contenders}


def save_capacity(answer: CapacityAnswer, folder: Path) -> None:
    """Write the folder's files, each whole or not at all, the answer last.

    Raises `CbsimError` if they can't be written, or something other than a capacity is there.
    """
    check_target(folder, "capacity")
    save_answer(folder, ANSWER, to_json(answer), answer.curve, "curve")


def load_capacity(folder: Path) -> CapacityAnswer:
    """The answer in a folder. Raises `CbsimError` if its files are missing or damaged."""
    from pydantic import TypeAdapter

    with saved_answer(folder, "capacity", ANSWER, "curve") as (read, curve):
        plan = Plan(**read["plan"])
        contenders = TypeAdapter(tuple[Contender, ...]).validate_python(read["contenders"])
        told = {name: read[name] for name in ("name", "resampled_from", "config", "manifest")}
        told |= {"slo": Slo.of(read["slo"], plan.share), "notes": tuple(read.get("notes", ()))}
    return CapacityAnswer(plan=plan, contenders=contenders, curve=curve, **told)
