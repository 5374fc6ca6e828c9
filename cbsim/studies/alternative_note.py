"""A note on what a run's latencies would be without the least certain part of its cost model."""

from __future__ import annotations

from cbsim.base.units import format_seconds
from cbsim.cost import CostModel
from cbsim.studies.experiment import Experiment
from cbsim.studies.run_interval import LATENCIES, rerun
from cbsim.workload import Workload

TOLD_FROM = 0.01
"""Share of a mean latency from which the difference is told."""


def alternative_note(
    experiment: Experiment, workload: Workload, cost: CostModel, max_tokens: float
) -> str | None:
    """Mean latencies with and without the part, if one of them differs by more than `TOLD_FROM`.

    The run, or its beginning of `max_tokens` output tokens, is simulated twice more; `None` of a cost model
    that has no such part or draws its errors.
    """
    if cost.alternative is None or cost.uses_seed:
        return None
    what, without = cost.alternative
    on = rerun(experiment, workload, lambda _: cost, 1.0, max_tokens)
    off = rerun(experiment, workload, lambda _: without, 1.0, max_tokens)
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
    return f"with and without {what}, means{part} are: {', '.join(parts)}"
