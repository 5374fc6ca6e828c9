"""Preview: what an experiment would run, without running it, and the mistakes that only its files show."""

from __future__ import annotations

from collections.abc import Iterable

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_count
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload


def preview(experiment: Experiment) -> str:
    """One line on what would run. Raises `CbsimError` for traces that can't be read."""
    points = experiment.points()
    experiments = [point for _, point in points]
    swept = dict.fromkeys(key for values, _ in points for key in values)
    over = f"{len(points)} points over {', '.join(swept)}; " if experiment.sweep else ""
    requests = " or ".join(format_count(count) for count in _request_counts(experiments))
    schedulers = _distinct(point.scheduler.type for point in experiments)
    models = _distinct(point.model.name for point in experiments)
    gpus = _distinct(_gpus(point) for point in experiments)
    costs = _distinct(point.cost_model.type for point in experiments)
    return (
        f"{over}{requests or 'unknown number of'} requests, {schedulers}, {models} on {gpus}, {costs} costs"
    )


def _request_counts(experiments: list[Experiment]) -> list[int]:
    """How many requests each different workload holds, after a look at its first."""
    counts: list[int | None] = []
    problems: list[str] = []
    looked_at: list[object] = []
    for experiment in experiments:
        kind = (experiment.workload, experiment.seed)
        if kind in looked_at:
            continue
        looked_at.append(kind)
        workload = make_workload(experiment)
        try:
            next(workload.requests(), None)
            counts.append(workload.num_requests())
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))
    return [count for count in dict.fromkeys(counts) if count is not None]


def _gpus(experiment: Experiment) -> str:
    count = experiment.replicas.count * experiment.replicas.tensor_parallel
    return experiment.gpu.name if count == 1 else f"{count} x {experiment.gpu.name}"


def _distinct(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))
