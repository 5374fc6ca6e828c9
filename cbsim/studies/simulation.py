"""From an experiment to a run of the core, and from its record to a `RunLog`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, tee
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbsim.base.binding import Bound, CannotCompile, can_compile
from cbsim.base.errors import CbsimError, ConfigError, PluginError, plugin_error
from cbsim.base.machine_code import kind_of
from cbsim.base.records import pieces
from cbsim.base.units import GIGA
from cbsim.cluster.autoscaler import AUTOSCALERS, scaler_numbers
from cbsim.cluster.router import ROUTERS, Rules
from cbsim.cluster.simpy_world import ROUTER_STREAM, make_router
from cbsim.cluster.simpy_world import World as SimpyWorld
from cbsim.cluster.watched_run import WatchedRun
from cbsim.core import layout
from cbsim.core.building import ChangeParts, KvPool, LinkParts, PoolParts, RouterParts, TierParts, new_cluster
from cbsim.core.driver import Parts, Progress, RuleFault, drive
from cbsim.core.feed import run
from cbsim.core.intake import take_in
from cbsim.core.layout import World
from cbsim.core.loop import close_decodes
from cbsim.core.record import Record, StepColumns
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.core.without import (
    WITHOUT_CHANGES,
    WITHOUT_LINKS,
    WITHOUT_RANKS,
    WITHOUT_TIERS,
)
from cbsim.cost import CostModel, StepShape
from cbsim.observers import ObservedRun
from cbsim.observers.audience import Audience
from cbsim.observers.views import SchedulerView
from cbsim.results.latency import request_parts
from cbsim.results.metrics import DEFAULT_POOL
from cbsim.results.run_log import Deferred, RunLog, Slices, event_columns
from cbsim.results.tables import step_columns
from cbsim.schedulers import SCHEDULERS, Means, Scheduler, SchedulerConfig
from cbsim.schedulers.no_connector import WITHOUT_CONNECTOR
from cbsim.studies.cluster_config import ClusterConfig
from cbsim.studies.experiment import Experiment
from cbsim.workload import Workload
from cbsim.workload.request import RequestBatch, RequestState
from cbsim.workload.streams import ThinkTimes

Array = NDArray[Any]
LOGGER = logging.getLogger("cbsim")
ENDED = (layout.FINISHED, layout.REJECTED, layout.FAILED)
TOKENS_TO_COMPILE = 3_000_000
TOKENS_TO_LOAD = 15_000
"""Output tokens from which a run is compiled: where the core has yet to be compiled (some 15 s), and where it
is only loaded from the cache folder (0.04 s). Interpreting takes some 2.5 us a token."""
LEFT = (layout.FINISHED, layout.HANDED_OVER)
FORESEEN_TOKENS = 2048
"""Tokens of the step by which the time is foreseen that prompts take."""
FAULT_STREAM = 0x6661756C
"""Spawn key of the random stream of faults."""
NUM_DRAWS = 65_536


def class_step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Seconds of a step by a cost model that has `step_s` alone: the core's shape becomes a `StepShape`."""
    return cost.step_s(  # type: ignore[no-any-return]
        StepShape(
            tuple((chunk.num_tokens, chunk.num_computed_tokens) for chunk in chunks[: shape.num_chunks]),
            shape.num_finishing_chunks,
            shape.num_decodes,
            shape.decode_context,
            shape.max_decode_context,
            shape.windowed_context,
            shape.num_other_tokens,
        )
    )


def pooled_step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Seconds of a step where pools have costs of several kinds: each brings its own formula along."""
    step_s, figures = cost
    return step_s(figures, shape, chunks)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Setup:
    """What a run of the core is made from; `until_s` is the instant at which it is stopped, seconds."""

    workload: Workload
    cost: CostModel
    rung: type[Scheduler]
    scheduler: SchedulerConfig
    pool: KvPool
    means: Means
    num_replicas: int = 1
    router: RouterParts = field(default_factory=RouterParts)
    until_s: float = inf
    with_batches: bool = False
    num_stages: int = 1
    """Stages of the pipeline that a step passes through."""
    num_ranks: int = 1
    """Replicas that work in step, one after the other in number: the ranks of data parallelism."""
    window: int = 0
    """Tokens that the model's sliding layers reach back; 0 if there are none."""
    front_end_s: float = 0.0
    """Seconds that a client waits for besides the engine, each time."""
    draft_share: float = 0.0
    """Seconds of a pass of the drafter over those of a decode of one request by the model."""
    pool_name: str = DEFAULT_POOL
    role: Literal["both", "prefill", "decode"] = "both"
    others: tuple[Setup, ...] = ()
    """Further pools of replicas; those to whom requests come stand before those that take them over."""
    decode_router: RouterParts = field(default_factory=RouterParts)
    link: LinkParts | None = None
    """What KV caches are handed over on; with pools for prefill and decode."""
    gives_back_preempted: bool = False
    """Whether requests that it preempts go back to the router."""
    num_up: int | None = None
    """Replicas that take requests from the beginning; `None`: all."""
    changes: ChangeParts | None = None
    """What changes in the cluster by itself."""
    tiers: tuple[TierParts, ...] = ()
    """Tiers of KV below the GPU, from the nearest on."""
    stores_through: bool = True
    """Whether a block gets into the first tier as its content becomes known, not as the GPU drops it."""
    loads_ahead: bool = True
    """Whether a request waits for what is loaded while others run, not its first step for it."""
    rules: Rules = field(default_factory=dict)
    """Rules of third parties' routers and autoscalers, by name."""

    @property
    def pools(self) -> tuple[Setup, ...]:
        """All pools, this one first."""
        return (self, *self.others)

    @property
    def is_staged(self) -> bool:
        """Whether requests are handed over from one pool to another."""
        return self.link is not None

    @property
    def num_entries(self) -> int:
        """Replicas to whom requests come."""
        return sum(pool.num_replicas for pool in self.pools if pool.role != "decode")

    @property
    def foresees(self) -> bool:
        """Whether a router or an autoscaler asks for more than how replicas stand."""
        scalers = self.changes.scalers if self.changes is not None else ()
        by_ttft = any(numbers["kind"] in (layout.BY_TTFT, layout.BY_RULE) for _, numbers, _ in scalers)
        return self.router.foresees or self.decode_router.foresees or by_ttft

    @property
    def by_session(self) -> bool:
        """Whether routers take requests to belong together by their sessions alone."""
        return layout.SESSION_AFFINITY in (self.router.kind, self.decode_router.kind)

    @property
    def comes_again(self) -> bool:
        """Whether a request may come to several replicas, or to one several times."""
        return self.is_staged or (self.changes is not None and self.changes.num_more_visits > 0)

    @property
    def is_closed(self) -> bool:
        """Whether clients send the requests."""
        return self.workload.config.concurrency is not None

    @property
    def numbers(self) -> dict[str, float]:
        """`Replica.config`."""
        numbers = self.rung.numbers(self.scheduler, self.means)
        drafting = self.scheduler.drafting
        if drafting is not None:
            numbers["draft_s"] = self.draft_share * self.cost.step_s(StepShape((), 0, 1, 1, 1))
        if self.num_ranks > 1:
            numbers["async_scheduling"] = 0
        if self.role != "both":
            role = layout.PRODUCER if self.role == "prefill" else layout.CONSUMER
            numbers |= {"connector": layout.REMOTE, "role": role, "load_failure_policy": layout.FAIL}
        elif self.tiers:
            numbers |= {
                "connector": layout.TIER_ALONE,
                "role": layout.BOTH,
                "load_failure_policy": layout.FAIL,
            }
        if self.tiers:
            numbers["reads_in_step"] = not self.loads_ahead
        return {
            **numbers,
            "stores_through": self.stores_through,
            "num_ranks": self.num_ranks,
            "with_batches": self.with_batches,
            "num_stages": self.num_stages,
            "window": self.window,
            "gives_back_preempted": self.gives_back_preempted,
            "seed": self.means.seed % 2**31,
        }

    @property
    def num_in_flight(self) -> int:
        """Most calls of the scheduler whose results are awaited."""
        return self.scheduler.num_in_flight(self.num_stages) if self.num_ranks == 1 else 1

    @property
    def chances(self) -> list[float] | None:
        """The chance of each draft to be accepted; `None` without speculation and connectors."""
        drafting = self.scheduler.drafting
        if drafting is not None:
            return drafting.chances
        return [] if any(pool.has_connector for pool in self.pools) else None

    @property
    def has_connector(self) -> bool:
        """Whether KV comes or goes."""
        return self.scheduler.has_connector or self.role != "both" or len(self.tiers) > 0

    def parts(
        self, longest: int, names: set[str] | None = None, *, with_formula: bool, foresees: bool
    ) -> PoolParts:
        """What the core makes the pool of; requests of up to `longest` tokens come.

        Of a scheduler's own settings it gets those in `names` (`None`: all): for others code is compiled
        anew.
        """
        numbers, prices = self.numbers, None
        if names is not None:
            known = names.union(layout.CONFIG.names or ())
            numbers = {name: value for name, value in numbers.items() if name in known}
        if foresees:
            num_tokens = int(min(numbers.get("max_tokens_per_step", FORESEEN_TOKENS), FORESEEN_TOKENS))
            numbers["prefill_token_s"] = prefill_s(self.cost, num_tokens) / num_tokens
        if numbers.get("preemption") == layout.CHEAPER:
            prices = np.array([prefill_s(self.cost, n) for n in range(longest + 1)])
        figures = self.priced() if with_formula else self.priced()[1]
        return PoolParts(
            figures,
            self.pool,
            numbers,
            self.num_replicas,
            self.num_in_flight,
            prices,
            self.num_up,
            self.tiers,
        )

    @property
    def has_ranks(self) -> bool:
        """Whether replicas of any pool work in step."""
        return any(pool.num_ranks > 1 for pool in self.pools)

    def core(self, step_s: Callable[..., float]) -> Bound:
        """The core with the setup's rules and a cost model's price, less rules that it has no use for."""
        unused = {} if self.has_ranks else WITHOUT_RANKS
        if self.changes is None and not self.foresees:
            # Clusters that need more of the rules take all of them: each choice is compiled anew.
            unused = {**unused, **WITHOUT_CHANGES, **({} if self.is_staged else WITHOUT_LINKS)}
            unused |= WITHOUT_TIERS
            if not self.has_connector:
                unused |= WITHOUT_CONNECTOR
        return Parts({**self.rung.rules(), **self.rules}, step_s, unused).bound(run)

    def priced(self) -> tuple[Callable[..., float], Any]:
        """What prices a step, and the first thing that it takes."""
        rules = self.cost.rules()
        return (rules.step_s, rules.record) if rules else (class_step_s, self.cost)


def setup_of(experiment: Experiment, workload: Workload, cost: CostModel) -> Setup:
    """The setup of an experiment of one point."""
    rung = SCHEDULERS.get(experiment.scheduler.type)
    kv_cache, model, gpu = experiment.kv_cache, experiment.model, experiment.gpu
    num_blocks = experiment.num_kv_blocks
    drafting, has_connector = experiment.scheduler.drafting, experiment.scheduler.has_connector
    is_eagle = drafting is not None and drafting.method == "eagle"
    looks_ahead = drafting is not None and drafting.lookahead_block_hashes and not has_connector
    return Setup(
        workload=workload,
        cost=cost,
        rung=rung,
        scheduler=experiment.scheduler,
        pool=KvPool(
            num_blocks,
            kv_cache.block_size,
            kv_cache.prefix_caching and not rung.reserves_ahead,
            experiment.scheduler.reuses_unknown_blocks_first,
            has_identities=has_connector,
            looks_ahead=is_eagle and looks_ahead,
            drops_last_hit=is_eagle and not looks_ahead,
            groups=() if rung.reserves_ahead else kv_cache.layer_groups(model),
            retention_interval=kv_cache.prefix_cache_retention_interval,
            max_model_len=model.max_model_len,
        ),
        means=Means(
            num_blocks=num_blocks,
            block_size=kv_cache.block_size,
            block_bytes=kv_cache.plan(model, experiment.sharing).block_bytes,
            host_link_bytes_per_s=gpu.host_link_bytes_per_s,
            max_model_len=model.max_model_len,
            seed=experiment.seed,
        ),
        num_replicas=experiment.replicas.count * experiment.parallel.data,
        num_ranks=experiment.parallel.data,
        router=router_parts(experiment.replicas.router),
        rules=ROUTERS.get(experiment.replicas.router.type).rules(),
        until_s=inf if experiment.stop_at_s is None else experiment.stop_at_s,
        with_batches=experiment.output.batches,
        num_stages=experiment.parallel.pipeline,
        window=model.window,
        front_end_s=experiment.front_end_s,
        tiers=kv_cache.tier_parts(model),
        stores_through=kv_cache.tier_write == "through",
        loads_ahead=kv_cache.tier_load == "overlapped",
        # What shares a tier's bandwidth goes on in the order of time.
        changes=ChangeParts() if kv_cache.tiers else None,
        draft_share=0.0 if drafting is None else drafting.share_of(model.num_parameters),
    )


def cluster_setup(
    experiment: Experiment, workload: Workload, make_cost: Callable[[Experiment], CostModel]
) -> Setup:
    """The setup of an experiment with a cluster; `make_cost` makes each pool's cost model.

    Those to whom requests come stand first.
    """
    cluster = experiment.cluster
    assert cluster is not None
    setups, scalers = [], []
    rules: dict[str, Callable[..., Any]] = {}
    pools = sorted(experiment.pools(), key=lambda each: each[0].role == "decode")
    for place, (pool, own) in enumerate(pools):
        setup = setup_of(own, workload, make_cost(own))
        num_ranks, scaling = own.parallel.data, cluster.scaling(pool)
        setup = replace(
            setup,
            pool_name=pool.name,
            role=pool.role,
            num_replicas=cluster.most_replicas(pool) * num_ranks,
            num_up=pool.count,
            gives_back_preempted=cluster.preempted == "give_back" and pool.role == "decode",
        )
        setups.append(setup)
        if scaling is not None:
            scaler = AUTOSCALERS.get(scaling.type)
            rules |= scaler.rules()
            numbers = scaler_numbers(scaler.kind, scaling, own.model.weight_bytes_of_gpu(own.sharing))
            scalers.append((place, numbers, scaling.planned))
    link = None
    if cluster.is_staged:
        link = LinkParts(
            cluster.link.bandwidth_gb_s * GIGA,
            cluster.link.latency_s,
            experiment.model.kv_bytes_per_token,
            experiment.model.num_layers,
            cluster.link.layer_by_layer,
        )
    routers = []
    for router in (cluster.router, cluster.decode_router):
        routers.append(router_parts(router))
        rules |= ROUTERS.get(router.type).rules()
    entry = replace(
        routers[0],
        max_queue=layout.NOBODY if cluster.max_queue is None else cluster.max_queue,
        holds=cluster.when_full == "hold",
        chooses_pairs=cluster.decode_chosen_at == "arrival",
    )
    return replace(
        setups[0],
        others=tuple(setups[1:]),
        router=entry,
        decode_router=replace(routers[1], holds=True),
        link=link,
        changes=(
            _changes(cluster, setups, scalers, experiment.seed)
            if cluster.changes
            else next((setup.changes for setup in setups if setup.changes is not None), None)
        ),
        rules=rules,
    )


def router_parts(config: Any) -> RouterParts:
    """A router's settings, as the core has them."""
    return RouterParts(ROUTERS.get(config.type).kind, getattr(config, "weight", 1.0), config.refresh_s)


def _changes(
    cluster: ClusterConfig, setups: Sequence[Setup], scalers: Sequence[Any], seed: int
) -> ChangeParts:
    """What changes in a cluster by itself."""
    clients, faults = cluster.clients, cluster.faults
    drawn: dict[str, Any] = {}
    firsts, first = {}, 0
    for setup in setups:
        firsts[setup.pool_name] = first
        first += setup.num_replicas
    if not isinstance(faults, list):
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(FAULT_STREAM,)))
        drawn = {"mtbf_s": faults.mtbf_s, "repair_s": faults.repair_s}
        drawn["draws"] = random.exponential(size=NUM_DRAWS)
    listed = [
        (
            fault.at_s,
            inf if fault.repair_s is None else fault.repair_s,
            fault.slowdown,
            layout.NOBODY if fault.pool is None else firsts[fault.pool] + fault.replica,
        )
        for fault in (faults if isinstance(faults, list) else ())
    ]
    return ChangeParts(
        first_token_timeout_s=clients.first_token_timeout_s or inf,
        timeout_s=clients.timeout_s or inf,
        backoff_s=clients.backoff_s,
        max_retries=clients.max_retries,
        max_reroutes=cluster.max_reroutes if faults or cluster.preempted == "give_back" else 0,
        faults=listed,
        scalers=scalers,
        **drawn,
    )


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
    """Run a setup. Returns its record, its world as it stands at the end, and whether it was compiled.

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
    step_s, can_compile_costs = _priced_alike(setup)
    bound = setup.core(step_s)
    with _memory_for(setup):
        world = new_cluster(
            requests,
            **_cluster_parts(setup, longest, step_s, bound.names()),
            num_clients=min(setup.workload.config.concurrency or 0, max(len(requests), 1)),
            watched=layout.UNWATCHED if told is None else told.watched,
            segments=intake.segments,
            extras=intake.extras,
            acceptance=intake.acceptance,
            turns=turns,
        )
    # Of what is planned the records of the intake need not be held too.
    requests = world.requests if turns is None else world.planned
    del intake
    if setup.is_closed:
        think = ThinkTimes(setup.workload.config, setup.workload.seed)
        world.requests["think_s"] = [
            think.after(index) + setup.front_end_s for index in range(len(world.requests))
        ]
    draw = drawn_routes(setup)
    if draw is not int:
        world.requests["route"] = [draw() for _ in range(len(world.requests))]
    record, outcome = Record(), Speed(False)
    if can_compile_costs and is_worth_compiling(engine, bound, requests):
        outcome = compiled(world, bound)

    def watch(as_run: World) -> Callable[[int], None]:
        assert told is not None
        requests = chain.from_iterable(batch.requests() for batch in kept)
        watched = WatchedRun(as_run, requests, told.audience, bound)
        views = [SchedulerView(replica, rung.__name__) for replica in watched.replicas]
        told.audience.started(ObservedRun(told.name, told.model, views))
        return watched.tell

    try:
        with blaming_plugins(setup, lambda: float(world.clients["now"])):
            drive(
                world,
                bound,
                record,
                is_compiled=outcome.is_compiled,
                until_s=setup.until_s,
                progress=progress,
                watch=None if told is None else watch,
            )
    except RuleFault as fault:
        sources = slice(None) if turns is None else world.requests["source"]
        raise told_fault(fault, setup, make_names()[sources]) from fault
    clients = world.clients
    sent = world.requests[: int(clients["num_sent"])]
    is_first = sent["previous"] == layout.NOBODY
    answers_first = setup.is_closed or (turns is not None and is_first.sum() > int(clients["num_started"]))
    # Of the records themselves nothing may be held: a million of them take 240 MB.
    sources = slice(len(sent)) if turns is None else sent["source"][is_first]
    log = log_of(
        sent,
        lambda: make_names()[sources],
        world.own,
        record,
        setup,
        answers_first=answers_first,
        num_output_tokens=requests["num_output_tokens"][sent["source"]] if setup.comes_again else None,
        from_tiers=_from_tiers(setup, world),
    )
    if told is not None:
        told.audience.ended(log.end_s)
    return log, world, outcome


def _cluster_parts(
    setup: Setup, longest: int, step_s: Callable[..., float], names: set[str] | None = None
) -> dict[str, Any]:
    """What `new_cluster` makes pools of, and what is between them; `names` as for `Setup.parts`."""
    with_formula = step_s is pooled_step_s
    return {
        "pools": [
            pool.parts(longest, names, with_formula=with_formula, foresees=setup.foresees)
            for pool in setup.pools
        ],
        "routers": [setup.router, setup.decode_router][: 1 + setup.is_staged],
        "num_entries": setup.num_entries,
        "link": setup.link,
        "changes": setup.changes,
    }


def drawn_routes(setup: Setup) -> Callable[[], int]:
    """Gives the `route` of one request after the other; `int`, 0 for all, where no router draws."""
    kinds = {setup.router.kind, setup.decode_router.kind} if setup.is_staged else {setup.router.kind}
    if not kinds & {layout.RANDOM, layout.POWER_OF_TWO}:
        return int
    is_plain = setup.router.kind == layout.RANDOM and not (setup.is_staged or setup.changes)
    most = setup.num_entries if is_plain else 2**31 - 1
    random = np.random.default_rng(np.random.SeedSequence(setup.means.seed, spawn_key=(ROUTER_STREAM,)))
    return lambda: int(random.integers(most))


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


def _priced_alike(setup: Setup) -> tuple[Callable[..., float], bool]:
    """What prices a step in every pool, and whether that can be compiled: for costs of one kind alone."""
    priced = [pool.priced() for pool in setup.pools]
    step_s = priced[0][0]
    if any(each is not step_s for each, _ in priced):
        return pooled_step_s, False
    kinds = {kind_of((record,)) for _, record in priced} if step_s is not class_step_s else set()
    return step_s, len(kinds) == 1


@dataclass(frozen=True, slots=True)
class Speed:
    """Whether the core ran compiled, and what that took."""

    is_compiled: bool
    compile_s: float = 0.0
    """Seconds spent on compiling it or on loading what had been compiled before."""
    notes: tuple[str, ...] = ()
    """What kept it from being compiled, where that was asked for."""


def is_worth_compiling(engine: str, bound: Bound, requests: Array) -> bool:
    """Whether a run is long enough for compiled code to pay, or is asked to have it."""
    if engine == "interpreted" or not can_compile():
        return False
    if engine == "compiled":
        return True
    num_tokens = int(requests["num_output_tokens"].sum(dtype=np.int64)) + len(requests)
    return num_tokens >= TOKENS_TO_COMPILE or (num_tokens >= TOKENS_TO_LOAD and bound.is_cached)


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
    return Speed(True, bound.compiled.seconds)


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
    priced_by = step_s or _priced_alike(setup)[0]
    parts = _cluster_parts(setup, 0, priced_by)
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
        raise told_fault(fault, setup, _ids(world)) from fault


def prefill_s(cost: CostModel, num_tokens: int) -> float:
    """Seconds of a step that computes a prompt of `num_tokens` tokens and nothing else."""
    return cost.step_s(StepShape(((max(num_tokens, 1), 0),), 1, 0, 0, 0))


def stepwise_log(world: StepwiseWorld, setup: Setup) -> RunLog:
    """The record of a stepwise run that has ended."""
    for request in world.requests:
        close_decodes(world.replicas[max(request.replica, 0)].records, request)
    answers_first = setup.is_closed or any(request.follows >= 0 for request in world.requests)
    rows, own, planned = world.request_rows(), world.own_rows(), world.records.planned
    num_output_tokens = None
    if setup.comes_again:
        output = [planned[visit.source].num_output_tokens for visit in world.requests]
        num_output_tokens = np.array(output, "i4")
    return log_of(
        rows,
        lambda: _ids(world)[rows["previous"] == layout.NOBODY],
        own,
        world.record(),
        setup,
        answers_first=answers_first,
        num_output_tokens=num_output_tokens,
    )


def _ids(world: StepwiseWorld) -> NDArray[np.object_]:
    ids = np.empty(len(world.requests), dtype=object)
    ids[:] = [request.request_id for request in world.requests]
    return ids


def log_of(
    rows: Array,
    names_of: Callable[[], NDArray[np.object_]],
    own: Array,
    record: Record,
    setup: Setup,
    *,
    answers_first: bool,
    num_output_tokens: Array | None = None,
    from_tiers: Mapping[str, int] | None = None,
) -> RunLog:
    """The core's record as a `RunLog`, as results need it; `rows`: the records of visits, as they came.

    `answers_first`: whether answers make clients send, so that at one instant they come before arrivals.
    `num_output_tokens`, of the request that a row is a visit of, where requests are handed over.
    `from_tiers`: tokens that each tier of KV brought.
    """
    until_s, visits = setup.until_s, Visits.of(rows)
    # Column by column: whole records would take several times as much memory.
    state = rows["state"][visits.last]
    known: dict[str, Array] = {
        **{name: rows[name][visits.first] for name in OF_FIRST_VISIT},
        "first_scheduled_at_s": visits.earliest(rows["first_scheduled_at_s"]),
        **{name: rows[name][visits.last] for name in OF_LAST_VISIT},
        "finished_at_s": np.where(state == layout.FINISHED, rows["last_token_at_s"][visits.last], np.nan),
        "state": np.where(np.isin(state, ENDED), state, RequestState.UNFINISHED),
    }
    if num_output_tokens is not None:
        known["num_output_tokens"] = num_output_tokens[visits.first]
    counted = {"num_preemptions": rows["num_preemptions"], "num_generated_tokens": visits.kept_tokens(rows)}
    for name, values in counted.items():
        known[name] = np.bincount(visits.request, values, len(visits.first)).astype(values.dtype)
    requests = Deferred(lambda: {"request_id": names_of()}, known)
    pool_of = np.repeat(np.arange(len(setup.pools)), [pool.num_replicas for pool in setup.pools])
    rejections = {}
    for request in np.flatnonzero(state == layout.REJECTED).tolist():
        last = rows[visits.last[request]]
        pool = setup.pools[pool_of[last["replica"]]]
        is_full = last["rejection"] == layout.QUEUES_FULL
        rejections[request] = (
            f"every replica has its queue full (max_queue: {setup.router.max_queue}): HTTP 429"
            if is_full
            else setup.rung.rejection(last, pool.numbers, pool.means)
        )
    columns_of = partial(visits.columns, record)
    slices = Slices(*(Deferred(partial(columns_of, table)) for table in ("prefills", "decodes")))
    has_drafts = setup.scheduler.drafting is not None
    num_blocks = np.array([setup.pools[pool].means.num_blocks for pool in pool_of])
    costs = [setup.pools[pool].cost for pool in pool_of]
    names = step_columns(has_drafts=has_drafts, has_window=setup.window > 0)
    events = Deferred(
        lambda: event_columns(requests, columns_of("events"), rejections, answers_first=answers_first)
    )
    steps = StepColumns(record, names, num_blocks)
    # Parts of latencies take steps to follow one another, each with a token of a request at most, and that a
    # request comes to a replica once.
    comes_back = setup.changes is not None and setup.changes.num_more_visits > 0
    is_shared = has_drafts or comes_back or setup.num_stages > 1 or setup.has_ranks
    parts_of = partial(
        request_parts,
        requests,
        events,
        record,
        costs,
        requests_of=None if len(visits.first) == len(rows) else visits.request,
        is_staged=setup.is_staged,
        has_window=setup.window > 0,
    )
    end_s = max(float(own["last_end_s"].max()), float(rows["arrival_s"].max(initial=0.0)))
    if until_s < inf and own["num_outstanding"].any():
        end_s = until_s
    return RunLog(
        requests=requests,
        steps=steps,
        events=events,
        batches=_in_order_of_time(columns_of("batches")) if setup.with_batches else None,
        gaps=Gaps(record),
        rejections=rejections,
        num_tokens_recomputed=int(own["num_tokens_recomputed"].sum()),
        num_prompt_tokens_queried=int(own["num_tokens_queried"].sum()),
        num_prompt_tokens_hit=int(own["num_tokens_hit"].sum()),
        num_padding_tokens=int(own["num_padding_tokens"].sum()),
        end_s=end_s,
        front_end_s=setup.front_end_s,
        slices=slices,
        has_drafts=has_drafts,
        parts=None if is_shared else Deferred(parts_of),
        visits=visits.table(rows, record) if setup.comes_again else None,
        changes=record.columns("changes") if setup.changes is not None else None,
        losses=visits.losses(rows),
        num_tokens_from_tiers=dict(from_tiers or {}),
        pool_of=pool_of if setup.others or setup.changes else None,
        pools=tuple((pool.pool_name, pool.role) for pool in setup.pools),
    )


OF_FIRST_VISIT = ("arrival_s", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "priority")
OF_LAST_VISIT = ("replica", "first_token_at_s", "max_itl_s")
"""Columns of requests that are those of their records."""
LOSSES = {
    "num_lost_to_failures": (layout.REPLICA_LOST, layout.KV_LOST),
    "num_given_back": (layout.PREEMPTED_THERE,),
    "num_timed_out": (layout.TIMED_OUT,),
    "num_refused": (layout.QUEUES_FULL,),
}
"""Counts of visits that ended before their time, by why."""


@dataclass(frozen=True, slots=True)
class Visits:
    """Which records are visits of one request: rows of the first and the last, the request of each row."""

    first: Array
    last: Array
    request: Array
    handed_over: Array
    """By row, whether another replica went on."""

    @classmethod
    def of(cls, rows: Array) -> Visits:
        """Of records as they came."""
        is_first = rows["previous"] == layout.NOBODY
        first = np.flatnonzero(is_first)
        last, request = first, np.cumsum(is_first) - 1
        if len(first) < len(rows):
            request = np.searchsorted(first, _ends_of(rows["previous"]))
            last = _ends_of(rows["next_visit"])[first]
        return cls(first, last, request, rows["state"] == layout.HANDED_OVER)

    def earliest(self, instants: Array) -> Array:
        """Of each request the first visit's that has one; NaN if none has."""
        if len(self.first) == len(self.request):
            return instants.copy()
        known = np.flatnonzero(~np.isnan(instants))[::-1]
        found = np.full(len(self.first), np.nan)
        found[self.request[known]] = instants[known]
        return found

    def kept_tokens(self, rows: Array) -> Array:
        """Tokens that each visit brought, but for those that clients threw away as they started anew."""
        is_kept = rows["attempt"] == rows["attempt"][self.last][self.request]
        return np.where(is_kept, rows["num_generated_tokens"], 0)

    def losses(self, rows: Array) -> dict[str, int]:
        """How many visits ended before their time, by why; and how many followed."""
        if not rows["rejection"].any():
            return {}
        counts = {name: int(np.isin(rows["rejection"], codes).sum()) for name, codes in LOSSES.items()}
        further = {"num_reroutes": "num_reroutes", "num_retries": "attempt"}
        counts |= {name: int(rows[field][self.last].sum()) for name, field in further.items()}
        return {name: count for name, count in counts.items() if count}

    def columns(self, record: Record, table: str) -> dict[str, Array]:
        """A table of the record, in which requests are named instead of their visits."""
        columns = record.columns(table)
        if len(self.first) == len(self.request):
            return columns
        row = columns["request"]
        if table == "events":
            over = (columns["event"] == layout.FINISHED_NOW) & self.handed_over[row]
            columns["event"] = np.where(over, layout.HANDED_OVER_NOW, columns["event"])
        return columns | {"request": self.request[row]}

    def table(self, rows: Array, record: Record) -> dict[str, Array]:
        """`RunLog.visits`."""
        # Copies, since columns would hold the records.
        names = ("replica", "arrival_s", "first_scheduled_at_s", "num_prompt_tokens", "num_generated_tokens")
        kept = {name: rows[name].copy() for name in (*names, "state")}
        state = kept["state"]
        left_at_s = np.where(np.isin(state, LEFT), rows["last_token_at_s"], np.nan)
        events = {name: record.column("events", name) for name in ("event", "request", "time_s")}
        has_failed = events["event"] == layout.FAILED_NOW
        left_at_s[events["request"][has_failed]] = events["time_s"][has_failed]
        return {
            "request": self.request,
            "replica": kept["replica"],
            "arrived_at_s": kept["arrival_s"],
            "admitted_at_s": kept["first_scheduled_at_s"],
            "left_at_s": np.where(state == layout.REJECTED, kept["arrival_s"], left_at_s),
            "num_prefill_tokens": kept["num_prompt_tokens"],
            "num_output_tokens": kept["num_generated_tokens"],
            "state": np.where(np.isin(state, (*ENDED, layout.HANDED_OVER)), state, RequestState.UNFINISHED),
        }


def _ends_of(following: Array) -> Array:
    """Where each row's way ends that leads from row to row; `NOBODY` ends one."""
    ends = np.where(following == layout.NOBODY, np.arange(len(following)), following)
    while not np.array_equal(further := ends[ends], ends):
        ends = further
    return ends


def _in_order_of_time(batches: dict[str, Array]) -> dict[str, Array]:
    """`RunLog.batches`: rows by start of their step, then replica, then position."""
    order = np.lexsort((batches["position"], batches["replica"], batches["start_s"]))
    return {name: column[order] for name, column in batches.items()}


class Gaps:
    """`RunLog.gaps`: the gaps between tokens as pieces `(seconds, how often)`, read when asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for gap_s, count in self._record.pieces("steps", "gap_s", "num_usual_gaps"):
            for rows in pieces(len(count)):
                is_gap = count[rows] > 0
                yield gap_s[rows][is_gap], count[rows][is_gap]
        gap_s = self._record.column("gaps", "gap_s")
        yield gap_s, np.ones(len(gap_s), dtype=np.int64)
        num_joint = sum(int(count.sum()) for (count,) in self._record.pieces("steps", "num_joint_tokens"))
        yield np.zeros(int(num_joint > 0)), np.full(int(num_joint > 0), num_joint)
