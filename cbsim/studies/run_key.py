"""Address: what names a run by all that it depends on, so that none is run twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.cost import CostModel
from cbsim.results.manifest import hash_files, hash_mapping, package_version
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload
from cbsim.workload import Workload

SEED = "seed"
_COST_SECTIONS = ("cost_model", "model", "gpu", "replicas")
"""What a cost model is made from, its draws apart."""


class Address:
    """Hashes experiments with their inputs; files are read, and cost models made, once for all of them."""

    def __init__(self) -> None:
        self._version = package_version("cbsim")
        self._digests: dict[Path, str] = {}
        self._costs: dict[str, CostModel | None] = {}

    def keys(self, experiment: Experiment, settings: Mapping[str, Any]) -> tuple[str, str]:
        """The key of an experiment's run, and that of all runs that are the same but for the seed's number.

        The two are equal where the run draws anything. `settings` is the experiment as resolved. Raises
        `CbsimError` naming every input file that can't be read.
        """
        workload, cost = make_workload(experiment), self._cost(experiment, settings)
        files = sorted({*workload.inputs(), *(cost.inputs() if cost else ())})
        self._digests |= hash_files(file for file in files if file not in self._digests)
        digests = [self._digests[file] for file in files]
        key = self._hash(settings, digests)
        if cost is None or not is_determined(experiment, workload, cost):
            return key, key
        return key, self._hash({name: each for name, each in settings.items() if name != SEED}, digests)

    def _hash(self, settings: Mapping[str, Any], digests: list[str]) -> str:
        return hash_mapping([self._version, settings, digests])[:16]

    def _cost(self, experiment: Experiment, settings: Mapping[str, Any]) -> CostModel | None:
        """The cost model; `None` where none can be made, which the run itself will tell."""
        key = hash_mapping([settings[name] for name in _COST_SECTIONS])
        if key not in self._costs:
            try:
                self._costs[key] = make_cost_model(experiment)
            except CbsimError:
                self._costs[key] = None
        return self._costs[key]


def is_determined(experiment: Experiment, workload: Workload, cost: CostModel) -> bool:
    """Whether a run would be the same under any seed; `workload` and `cost` are the experiment's.

    Workloads and cost models say so themselves. Of cbsim's own schedulers only those that predict lengths
    draw; one of a third party is taken to, unless its class has `uses_seed = False`.
    """
    scheduler_class = SCHEDULERS.get(experiment.scheduler.type)
    if scheduler_class.__module__.startswith("cbsim."):
        scheduler_draws = getattr(experiment.scheduler, "length_knowledge", None) == "predicted"
    else:
        scheduler_draws = bool(getattr(scheduler_class, "uses_seed", True))
    return not (
        workload.uses_seed
        or workload.config.draws_think_times
        or cost.uses_seed
        or scheduler_draws
        or (experiment.replicas.router == "random" and experiment.replicas.count > 1)
    )
