"""A note on what a run's latencies would be without the least certain part of its cost model."""

from __future__ import annotations

from cbsim.base.units import format_seconds
from cbsim.cost import CostModel
from cbsim.studies.experiment import Experiment
from cbsim.studies.run_interval import LATENCIES, Costs, rerun
from cbsim.workload import Workload

TOLD_FROM = 0.01
"""Share of a mean latency from which the difference is told."""


def alternative_note(
    experiment: Experiment, workload: Workload, cost_of: Costs, max_tokens: float
) -> str | None:
    """Mean latencies with and without the part, if one of them differs by more than `TOLD_FROM`.

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
