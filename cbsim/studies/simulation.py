"""Runs of the core: all at once at either speed, or gone through step by step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, tee
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.base.binding import Bound, CannotCompile, can_compile
from cbsim.base.errors import CbsimError, ConfigError, PluginError, plugin_error
from cbsim.cluster.simpy_world import World as SimpyWorld
from cbsim.cluster.simpy_world import make_router
from cbsim.cluster.watched_run import WatchedRun
from cbsim.core import layout
from cbsim.core.building import new_cluster
from cbsim.core.driver import Parts, Progress, RuleFault, drive
from cbsim.core.intake import take_in
from cbsim.core.layout import World
from cbsim.core.record import Record, RequestColumns
from cbsim.core.request_rows import RequestRows
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.observers import ObservedRun
from cbsim.observers.audience import Audience
from cbsim.observers.views import SchedulerView
from cbsim.results.run_log import RunLog
from cbsim.studies.core_log import ids_of, log_of
from cbsim.studies.setup import Setup, cluster_parts, drawn_routes, prefill_s, priced_alike
from cbsim.workload.request import RequestBatch
from cbsim.workload.streams import ThinkTimes

Array = NDArray[Any]

LOGGER = logging.getLogger("cbsim")
TOKENS_TO_COMPILE = 3_000_000
TOKENS_TO_LOAD = 15_000
"""Output tokens from which a run is compiled: where the core has yet to be compiled (some 10 s), and where it
is only loaded from the cache folder (0.04 s). Interpreting takes some 2.2 us a token."""
_INTERPRETED: Counter[str] = Counter()
"""Output tokens of runs of this process that were not worth compiling, by the key of their core."""


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of a run, and what of: the experiment's name and that of its model."""

    audience: Audience
    name: str
    model: str

    @property
    def watched(self) -> int:
        """The run's `layout.CLIENTS.watched`."""
        return layout.STEPS_WATCHED if self.audience.hears_steps else layout.REQUESTS_WATCHED


def simulate_core(
    setup: Setup, engine: str = "auto", progress: Progress | None = None, told: Told | None = None
) -> tuple[RunLog, World, Speed]:
    """Run a setup. Returns its record, its world at the end, and whether it was compiled.

    Of that world's requests there are columns, `RequestColumns`, alone.
    `engine` is `auto`, `compiled` or `interpreted`. Raises `PluginError` for what a third party's part does.
    """
    rung = setup.rung
    batches = setup.workload.batches()
    kept: Iterator[RequestBatch] = iter(())
    if told is not None:
        batches, kept = tee(batches)
    with blaming_plugins(setup, float):
        intake = take_in(
            batches,
            inf if setup.is_closed else setup.until_s,
            with_segments=any(pool.pool.prefix_caching for pool in setup.pools),
            with_extras=setup.chances is not None,
            chances=setup.chances or (),
            by_session=setup.by_session,
        )
    requests, make_names = intake.requests, intake.names
    turns, seed = intake.turns, setup.means.seed
    if turns is not None:
        turns["delay_s"] += setup.front_end_s
    job_length = rung.job_length(setup.scheduler, seed)
    if job_length is not None:
        lengths = (requests[name].tolist() for name in ("num_prompt_tokens", "num_output_tokens"))
        requests["job_length"] = list(map(job_length, make_names(), *lengths))
    if setup.comes_again and turns is None:
        turns = np.zeros(len(requests), layout.FOLLOWING)
        turns["next"] = layout.NOBODY
    longest = int((requests["num_prompt_tokens"] + requests["num_output_tokens"]).max(initial=0))
    step_s, can_compile_costs = priced_alike(setup)
    bound = setup.core(step_s)
    with _memory_for(setup):
        world = new_cluster(
            requests,
            **cluster_parts(setup, longest, step_s, bound.names()),
            num_clients=min(setup.workload.config.concurrency or 0, max(len(requests), 1)),
            watched=layout.UNWATCHED if told is None else told.watched,
            segments=intake.segments,
            extras=intake.extras,
            acceptance=intake.acceptance,
            turns=turns,
        )
    del intake
    think = ThinkTimes(setup.workload.config, setup.workload.seed) if setup.is_closed else None
    draw = drawn_routes(setup)

    def fill(rows: Array) -> None:
        if think is not None:
            rows["think_s"] = [think.after(index) + setup.front_end_s for index in rows["index"].tolist()]
        if draw is not int:
            rows["route"] = [draw() for _ in rows]

    record, outcome = Record(), Speed(False)
    if can_compile_costs and is_worth_compiling(engine, bound, requests):
        outcome = compiled(world, bound)
    # Others' rules may look at any request, and so may whoever watches; objects stand for all of them.
    all_at_once = not outcome.is_compiled or told is not None or not bound.is_own
    rows, clients = RequestRows(world, requests, fill, all_at_once=all_at_once), world.clients

    def watch(as_run: World) -> Callable[[int], None]:
        assert told is not None
        requests = chain.from_iterable(batch.requests() for batch in kept)
        watched = WatchedRun(as_run, requests, told.audience, bound)
        views = [SchedulerView(replica, rung.__name__) for replica in watched.replicas]
        told.audience.started(ObservedRun(told.name, told.model, views))
        return watched.tell

    try:
        with blaming_plugins(setup, lambda: float(clients["now"])):
            drive(
                world,
                bound,
                record,
                rows,
                is_compiled=outcome.is_compiled,
                until_s=setup.until_s,
                progress=progress,
                watch=None if told is None else watch,
            )
    except RuleFault as fault:
        sent = slice(None) if turns is None else world.requests["source"]
        raise told_fault(fault, setup, make_names()[sent]) from fault
    world = world._replace(requests=RequestColumns(rows.sent, record), replicas=())
    del rows
    sources: Any = slice(len(world.requests))
    answers_first, num_output_tokens = setup.is_closed, None
    if turns is not None:
        source = world.requests["source"]
        sources = source[world.requests["previous"] == layout.NOBODY]
        answers_first = answers_first or len(sources) > int(clients["num_started"])
        num_output_tokens = requests["num_output_tokens"][source] if setup.comes_again else None
    del requests
    log = log_of(
        world.requests,
        lambda: make_names()[sources],
        world.own,
        record,
        setup,
        answers_first=answers_first,
        num_output_tokens=num_output_tokens,
        from_tiers=_from_tiers(setup, world),
    )
    if told is not None:
        told.audience.ended(log.end_s)
    return log, world, outcome


@contextmanager
def _memory_for(setup: Setup) -> Iterator[None]:
    """Name what takes a setup's memory where there is too little of it."""
    try:
        yield
    except MemoryError:
        num_replicas = sum(pool.num_replicas for pool in setup.pools)
        most = max(pool.means.num_blocks for pool in setup.pools)
        raise ConfigError(
            f"kv_cache.num_blocks: got {most:,}, and {num_replicas:,} replicas (replicas.count, or of "
            "pools), whose records need more memory than there is; expected fewer, or smaller "
            "scheduler.max_num_seqs"
        ) from None


def _from_tiers(setup: Setup, world: World) -> dict[str, int]:
    """Tokens that each tier of KV brought, by its name, in all pools."""
    found: dict[str, int] = {}
    first = 0
    seen: set[int] = set()
    for pool in setup.pools:
        for place, tier in enumerate(pool.tiers):
            rows = set(world.stores[first : first + pool.num_replicas, place].tolist()) - seen
            seen |= rows
            found[tier.name] = found.get(tier.name, 0) + int(
                world.tiers["num_tokens_loaded"][sorted(rows)].sum()
            )
        first += pool.num_replicas
    return found


@contextmanager
def blaming_plugins(
    setup: Setup, now: Callable[[], float], passes: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """What a third party's part raises in here becomes a `PluginError` that names it and the instant.

    Errors of the classes in `passes`, and cbsim's own, stay what they are.
    """
    stay: tuple[type[Exception], ...] = (CbsimError, RuleFault, *passes)
    try:
        yield
    except stay:
        raise
    except Exception as error:
        parts = {"scheduler": setup.rung, "cost model": type(setup.cost), "workload": type(setup.workload)}
        failure = plugin_error(error, parts, f" at {now():.6g} s")
        if failure is None:
            raise
        raise failure from error


def told_fault(fault: RuleFault, setup: Setup, ids: Sequence[str] | NDArray[np.object_]) -> PluginError:
    """What a rule or a cost model did that it must not, in words; `ids` are the requests' names by row."""
    if fault.code == layout.BAD_DURATION:
        return PluginError(f"{type(setup.cost).__name__}: a step's seconds; allowed: more than 0 and finite")
    name, request = setup.rung.__name__, ids[fault.request]
    if fault.code == layout.SCHEDULED_TOO_MUCH:
        return PluginError(
            f"{name} schedules {fault.num_asked} tokens of request {request}, which has {fault.num_allowed} "
            f"left, with {fault.budget} left of the step's budget"
        )
    if fault.code == layout.ADMITTED_TOO_MANY:
        return PluginError(f"{name} admits request {request}, though {fault.num_allowed} run, max_num_seqs")
    return PluginError(
        f"{name} takes {fault.num_asked} KV blocks for request {request}, {fault.num_allowed} are free"
    )


class Speed(NamedTuple):
    """Whether the core ran compiled."""

    is_compiled: bool
    notes: tuple[str, ...] = ()
    """What kept it from being compiled, where that was asked for."""


def is_worth_compiling(engine: str, bound: Bound, requests: Array) -> bool:
    """Whether a run is long enough for compiled code to pay, or is asked to have it.

    Runs that this process has interpreted count too: the points of a sweep share their core.
    """
    if engine == "interpreted" or not can_compile():
        return False
    if engine == "compiled":
        return True
    num_tokens = int(requests["num_output_tokens"].sum(dtype=np.int64)) + len(requests)
    if num_tokens < TOKENS_TO_LOAD or bound.is_cached:
        return num_tokens >= TOKENS_TO_LOAD
    _INTERPRETED[bound.key] += num_tokens
    return _INTERPRETED[bound.key] >= TOKENS_TO_COMPILE


def compiled(world: World, bound: Bound) -> Speed:
    """Compile the core for a world, or load it from the cache folder; logs a line if it must be compiled."""
    is_new = not bound.is_cached
    if is_new:
        LOGGER.warning("compiling the core for these settings, once; later runs load it")
    try:
        bound.compiled.prepare(world, len(world.requests), inf)
    except CannotCompile as error:
        return Speed(False, notes=(f"interpreted, since numba can't compile it: {error}",))
    if is_new:
        LOGGER.warning("compiled in %.0f s", bound.compiled.seconds)
    return Speed(True)


def stepwise(
    setup: Setup,
    *,
    step_s: Callable[..., float] | None = None,
    is_planned: bool = False,
    watches: Mapping[str, Callable[..., Any]] | None = None,
    make_replica: Callable[[StepwiseWorld, int], Stepper] | None = None,
) -> StepwiseWorld:
    """The setup's replicas, to be gone through step by step: nobody has arrived yet.

    `step_s(cost, shape, chunks)` stands for the cost model's. With `is_planned` requests are planned, and
    `feed.run` sends them. The others as for `StepwiseWorld`.
    """
    if any(pool.tiers for pool in setup.pools):
        raise ConfigError(
            "kv_cache.tiers: can't be gone through step by step; allowed: none in play and replays"
        )
    priced_by = step_s or priced_alike(setup)[0]
    parts = cluster_parts(setup, 0, priced_by)
    if step_s is not None:
        parts["pools"] = [replace(pool, cost=setup.cost) for pool in parts["pools"]]
    if is_planned:
        parts |= {"turns": np.zeros(0, layout.FOLLOWING), "watched": layout.STEPS_WATCHED}
    return StepwiseWorld(
        Parts({**setup.rung.rules(), **setup.rules}, priced_by),
        chances=setup.chances,
        prefill_s=[partial(prefill_s, pool.cost) for pool in setup.pools],
        job_length=setup.rung.job_length(setup.scheduler, setup.means.seed),
        draw=drawn_routes(setup),
        by_session=setup.by_session,
        watches=watches,
        make_replica=make_replica,
        **parts,
    )


def step_through(
    world: StepwiseWorld,
    setup: Setup,
    *,
    progress: Progress | None = None,
    passes: tuple[type[Exception], ...] = (),
) -> None:
    """Feed the setup's workload to its replicas until all is done, or until it is stopped.

    Raises `PluginError` as `blaming_plugins` does, and for what a rule must not do.
    """
    feeding = SimpyWorld(
        setup.workload,
        world.replicas,
        make_router(setup.router.kind, setup.means.seed),
        stop_at_s=None if setup.until_s == inf else setup.until_s,
        progress=progress,
    )
    try:
        with blaming_plugins(setup, lambda: feeding.now, passes):
            feeding.run()
    except RuleFault as fault:
        raise told_fault(fault, setup, ids_of(world)) from fault
