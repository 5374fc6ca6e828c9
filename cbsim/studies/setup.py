"""Setup: what a run of the core is made from, of an experiment of one pool of replicas or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbsim.base.binding import Bound
from cbsim.base.machine_code import kind_of
from cbsim.base.units import GIGA
from cbsim.cluster.autoscaler import AUTOSCALERS, scaler_numbers
from cbsim.cluster.router import ROUTERS, Rules
from cbsim.cluster.simpy_world import ROUTER_STREAM
from cbsim.core import layout
from cbsim.core.building import ChangeParts, KvPool, LinkParts, PoolParts, RouterParts, TierParts
from cbsim.core.driver import Parts
from cbsim.core.feed import run
from cbsim.core.without import (
    WITHOUT_CHANGES,
    WITHOUT_LINKS,
    WITHOUT_RANKS,
    WITHOUT_TIERS,
)
from cbsim.cost import CostModel, StepShape
from cbsim.results.metrics import DEFAULT_POOL
from cbsim.schedulers import SCHEDULERS, Means, Scheduler, SchedulerConfig
from cbsim.schedulers.no_connector import WITHOUT_CONNECTOR
from cbsim.studies.cluster_config import ClusterConfig
from cbsim.studies.experiment import Experiment
from cbsim.workload import Workload

Array = NDArray[Any]

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
            shape.num_shared_tokens,
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
        rules = self.cost.usual_rules
        return (rules.step_s, rules.record) if rules else (class_step_s, self.cost)


def make_setup(
    experiment: Experiment, workload: Workload, make_cost: Callable[[Experiment], CostModel]
) -> Setup:
    """The setup of an experiment of one point; `make_cost` makes the cost model of it or of each pool."""
    if experiment.cluster is None:
        return setup_of(experiment, workload, make_cost(experiment))
    return cluster_setup(experiment, experiment.cluster, workload, make_cost)


def setup_of(experiment: Experiment, workload: Workload, cost: CostModel) -> Setup:
    """The setup of equal replicas."""
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
    experiment: Experiment,
    cluster: ClusterConfig,
    workload: Workload,
    make_cost: Callable[[Experiment], CostModel],
) -> Setup:
    """The setup of an experiment with a cluster; those to whom requests come stand first."""
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


def cluster_parts(
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


def priced_alike(setup: Setup) -> tuple[Callable[..., float], bool]:
    """What prices a step in every pool, and whether that can be compiled: for costs of one kind alone."""
    priced = [pool.priced() for pool in setup.pools]
    step_s = priced[0][0]
    if any(each is not step_s for each, _ in priced):
        return pooled_step_s, False
    kinds = {kind_of((record,)) for _, record in priced} if step_s is not class_step_s else set()
    return step_s, len(kinds) == 1


def prefill_s(cost: CostModel, num_tokens: int) -> float:
    """Seconds of a step that computes a prompt of `num_tokens` tokens and nothing else."""
    return cost.step_s(StepShape(((max(num_tokens, 1), 0),), 1, 0, 0, 0))
