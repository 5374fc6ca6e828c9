"""Determined runs: those in which nothing is drawn, so that the run of one seed stands for that of any."""

from __future__ import annotations

from pathlib import Path

from cbsim.cost import CostModel
from cbsim.results.result import copy_run
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.workload import Workload


def is_determined(experiment: Experiment, workload: Workload, cost: CostModel) -> bool:
    """Whether a run would be the same under any seed; `workload` and `cost` are the experiment's.

    Workloads and cost models say so themselves. Of cbsim's own schedulers only those that predict lengths
    draw; one of a third party is taken to, unless its class has `uses_seed = False`.
    """
    return not (
        workload.uses_seed
        or workload.config.draws_think_times
        or cost.uses_seed
        or _scheduler_uses_seed(experiment)
        or (experiment.replicas.router == "random" and experiment.replicas.count > 1)
    )


def copy_for_seed(source: Path, target: Path, seed: int) -> None:
    """Write what a determined run would be with another seed; raises as `Result.save`."""
    copy_run(source, target, lambda kept: kept | {"seed": seed})


def _scheduler_uses_seed(experiment: Experiment) -> bool:
    scheduler_class = SCHEDULERS.get(experiment.scheduler.type)
    if scheduler_class.__module__.startswith("cbsim."):
        return getattr(experiment.scheduler, "length_knowledge", None) == "predicted"
    return bool(getattr(scheduler_class, "uses_seed", True))
