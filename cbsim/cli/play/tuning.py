"""Tuning: a scheduler that takes on other settings, or another one in its place, between two steps."""

from __future__ import annotations

from collections.abc import Iterable

from cbsim.base.errors import ConfigError
from cbsim.cli.play.resizable_pool import PlayPool
from cbsim.cost import CostModel
from cbsim.schedulers import SCHEDULERS, Resources, Scheduler, SchedulerConfig, StepPlan
from cbsim.schedulers.kvcache import BlockPool
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_prices
from cbsim.workload.request import Request, RequestState

MAX_BLOCKS = 1_000_000
"""Each block is an object of its own here, so that they can be shown and renumbered."""
_Plain = bool | int | float | str | SchedulerConfig | None


def make_pool(experiment: Experiment) -> PlayPool:
    """The KV blocks of the experiment's replica. Raises `ConfigError` for more than `MAX_BLOCKS`."""
    kv_cache, config = experiment.kv_cache, experiment.scheduler
    num_blocks = kv_cache.size(experiment.model, experiment.gpu, experiment.replicas.tensor_parallel)
    if num_blocks > MAX_BLOCKS:
        raise ConfigError(f"kv_cache.num_blocks: got {num_blocks}; cbsim play has {MAX_BLOCKS} at most")
    return PlayPool(
        num_blocks,
        kv_cache.block_size,
        prefix_caching=kv_cache.prefix_caching and not SCHEDULERS.get(config.type).reserves_ahead,
        unknown_first=config.reuses_unknown_blocks_first,
    )


def make_scheduler(experiment: Experiment, cost: CostModel, pool: BlockPool) -> Scheduler:
    """The experiment's scheduler over a pool."""
    resources = Resources(
        pool=pool,
        prices=make_prices(experiment, cost),
        max_model_len=experiment.model.max_model_len,
        seed=experiment.seed,
    )
    return SCHEDULERS.get(experiment.scheduler.type)(experiment.scheduler, resources)


def check_servable(experiment: Experiment, cost: CostModel, requests: Iterable[Request]) -> None:
    """Raise `ConfigError` if some of these requests, accepted once, could never be served any more."""
    scheduler = _fresh(experiment, cost)
    problems = []
    for request in requests:
        if reason := scheduler.rejection(request):
            problems.append(f"{request.request_id} could never be served: {reason}")
    if problems:
        raise ConfigError(*problems)


def is_tunable(scheduler: Scheduler) -> bool:
    """Whether `tune` knows all that a scheduler derives from its settings: those of cbsim."""
    return type(scheduler).__module__.startswith("cbsim.")


def tune(scheduler: Scheduler, before: Experiment, after: Experiment, cost: CostModel) -> None:
    """Give a scheduler other limits, or what follows from another number of blocks; its requests stay.

    Where two schedulers that have done nothing yet differ is what follows from their settings.
    """
    old, new = (vars(_fresh(experiment, cost)) for experiment in (before, after))
    for name, value in new.items():
        if isinstance(value, _Plain) and value != old.get(name):
            setattr(scheduler, name, value)


def clear(scheduler: Scheduler, now: float) -> StepPlan:
    """Preempt all who run, to be computed again, and give back every block. Needs no step under way.

    Returns what it decided. Host memory keeps nothing: the next scheduler may have none.
    """
    step = StepPlan(now, 0)
    for request in list(scheduler.running):
        scheduler.preempt(step, request)
    for request in getattr(scheduler, "batch", ()):
        scheduler.pool.release(request)
    for request in scheduler.waiting:
        if request.num_computed_tokens:
            request.num_lost_tokens, request.num_computed_tokens = request.num_computed_tokens, 0
    return step


def queue_again(waiting: Iterable[Request], scheduler: Scheduler) -> None:
    """Let requests wait at another scheduler, in order of arrival."""
    for request in sorted(waiting, key=lambda request: request.index):
        if request.state is RequestState.PREEMPTED:
            scheduler.waiting.put_back(request)
        else:
            scheduler.add(request)


def _fresh(experiment: Experiment, cost: CostModel) -> Scheduler:
    """The experiment's scheduler, that has done nothing and never will."""
    return make_scheduler(experiment, cost, make_pool(experiment))
