"""Preview: what an experiment would run, without running it, and the mistakes that only its files show."""

from __future__ import annotations

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_count
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload


def preview(experiment: Experiment) -> str:
    """One line on what would run. Raises `CbsimError` for traces that can't be read."""
    points = experiment.points()
    swept = list(dict.fromkeys(key for values, _ in points for key in values))
    over = f"{len(points)} points over {', '.join(swept)}; " if experiment.sweep else ""
    requests = " or ".join(format_count(count) for count in _request_counts([point for _, point in points]))
    schedulers = _distinct(point.scheduler.type for _, point in points)
    models = _distinct(point.model.name for _, point in points)
    gpus = _distinct(_gpus(point) for _, point in points)
    costs = _distinct(point.cost_model.type for _, point in points)
    return (
        f"{over}{requests or 'unknown number of'} requests, {schedulers}, {models} on {gpus}, {costs} costs"
    )


def _request_counts(experiments: list[Experiment]) -> list[int]:
    """How many requests each different workload holds, after a look at its first."""
    counts: dict[int, None] = {}
    problems: dict[str, None] = {}
    looked_at: list[object] = []
    for experiment in experiments:
        kind = (experiment.workload, experiment.seed)
        if kind in looked_at:
            continue
        looked_at.append(kind)
        workload = make_workload(experiment)
        try:
            next(workload.requests(), None)
            count = workload.num_requests()
        except CbsimError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            if count is not None:
                counts[count] = None
    if problems:
        raise CbsimError(*problems)
    return list(counts)


def _gpus(experiment: Experiment) -> str:
    count = experiment.replicas.count * experiment.replicas.tensor_parallel
    return experiment.gpu.name if count == 1 else f"{count} x {experiment.gpu.name}"


def _distinct(names: object) -> str:
    return " and ".join(dict.fromkeys(names))  # type: ignore[call-overload]
