"""Misfits: settings that are right alone and wrong together, or with the files that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import ConfigError, PluginError, WorkloadError
from cbsim.config.bounds import MAX_BLOCKS_IN_ALL
from cbsim.config.document import Document
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.cluster_config import ClusterConfig
from cbsim.workload import WORKLOADS
from cbsim.workload.frames import WORKLOAD
from cbsim.workload.trace import missing_traces

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment


def traces_not_there(document: Document, folder: Path) -> Iterator[str]:
    """A line for each trace that the workload names and that is not there."""
    for keys, problem in missing_traces(document.get((WORKLOAD,)), folder):
        yield document.place((WORKLOAD, *keys)).problem(problem)


def misfits(experiment: Experiment, document: Document) -> Iterator[str]:
    """Settings that are right alone and wrong together, or with the files that are there."""
    missing = list(traces_not_there(document, experiment.folder))
    yield from missing
    if not missing:
        try:
            WORKLOADS.get(experiment.workload.type)(
                experiment.workload, seed=experiment.seed, folder=experiment.folder
            ).inputs()
        except WorkloadError as error:
            keys = (WORKLOAD, "path") if document.get((WORKLOAD, "path")) else (WORKLOAD,)
            yield from (document.place(keys).problem(problem) for problem in error.problems)
    for key, problem in experiment.cost_model.missing_files():
        yield document.place(("cost_model", key)).problem(problem)
    try:
        experiment.audience()
    except PluginError as error:
        yield from map(document.place(("observers",)).problem, error.problems)
    if experiment.cluster is not None:
        yield from _pool_misfits(experiment, experiment.cluster, document)
    num_gpus, num_heads = experiment.tensor_parallel, experiment.model.num_heads
    is_old = experiment.replicas.tensor_parallel > 1
    if is_old and experiment.parallel.tensor not in (1, num_gpus):
        yield document.place(("replicas", "tensor_parallel")).problem(
            f"got {experiment.replicas.tensor_parallel}, with parallel.tensor: "
            f"{experiment.parallel.tensor}; expected one of the two, which mean the same"
        )
        return
    if num_heads % num_gpus:
        allowed = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
        place = document.place(("replicas", "tensor_parallel") if is_old else ("parallel", "tensor"))
        yield place.problem(
            f"got {num_gpus}; expected a divisor of the model's {num_heads} query heads: {allowed}"
        )
        return
    stages, scheduler = experiment.parallel.pipeline, experiment.scheduler
    if stages > 1 and scheduler.async_scheduling and SCHEDULERS.get(scheduler.type).reserves_ahead:
        yield document.place(("parallel", "pipeline")).problem(
            f"got {stages} with async_scheduling: true; expected 1, or async_scheduling: false, as "
            f"{scheduler.type} does not wait for tokens to leave the stages"
        )
    if experiment.kv_cache.tiers:
        yield from _tier_misfits(experiment, document)
    if experiment.parallel.data > 1:
        place = document.place(("parallel", "data"))
        if experiment.model.experts is None:
            yield place.problem(
                f"got {experiment.parallel.data} with a model without experts; expected 1: ranks would share "
                "nothing, as replicas (replicas.count) do"
            )
        if stages > 1:
            yield place.problem(f"got {experiment.parallel.data} with {stages} pipeline stages; expected 1")
        if scheduler.has_connector:
            yield place.problem(f"got {experiment.parallel.data} with a connector; expected 1")
    try:
        num_replicas = experiment.replicas.count * experiment.parallel.data
        yield from _too_many_blocks([(num_replicas, experiment)], document)
    except ConfigError as error:
        where = document.place(("kv_cache",)).where
        yield from (f"{where}: {problem}" for problem in error.problems)


def _too_many_blocks(pools: Sequence[tuple[int, Experiment]], document: Document) -> Iterator[str]:
    """What is wrong with the number of KV blocks that have records; pools come with their replicas."""
    most = max(own.num_kv_blocks for _, own in pools)
    num_replicas = sum(number for number, _ in pools)
    if num_replicas * most > MAX_BLOCKS_IN_ALL and any(own.has_block_records for _, own in pools):
        yield document.place(("kv_cache", "num_blocks")).problem(
            f"got {most:,} in {num_replicas:,} replicas (replicas.count, or of pools), each with a record as "
            f"with prefix_caching; expected at most {MAX_BLOCKS_IN_ALL:,} in all"
        )


def _tier_misfits(experiment: Experiment, document: Document) -> Iterator[str]:
    """What tiers of KV can't go with."""
    place, scheduler = document.place(("kv_cache", "tiers")), experiment.scheduler
    if SCHEDULERS.get(scheduler.type).reserves_ahead:
        yield place.problem(
            f"got scheduler {scheduler.type}, which shares no KV; expected preemptive or vllm"
        )
    elif not experiment.kv_cache.prefix_caching:
        yield place.problem("got prefix_caching: false; expected true: tiers hold what it knows")
    if scheduler.has_connector:
        yield place.problem(
            "got a connector; expected null beside tiers, which are loaded from by themselves"
        )
    names = [tier.name for tier in experiment.kv_cache.tiers]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield place.problem(f"got '{name}' {names.count(name)} times; allowed: each name once")


def _pool_misfits(experiment: Experiment, cluster: ClusterConfig, document: Document) -> Iterator[str]:
    """What pools have of their own that is wrong, or that a cluster can't have."""
    place = document.place(("cluster",))
    if experiment.replicas.count > 1:
        yield document.place(("replicas", "count")).problem(
            f"got {experiment.replicas.count} beside cluster; expected counts of its pools alone"
        )
    try:
        pools = experiment.pools()
    except ConfigError as error:
        yield from (place.problem(problem.removeprefix("cluster: ")) for problem in error.problems)
        return
    stores: dict[str, Any] = {}
    for pool, own in pools:
        kind = own.scheduler.type
        if kind != pools[0][1].scheduler.type:
            first = pools[0][1].scheduler.type
            yield place.problem(f"pool '{pool.name}': got scheduler {kind}; expected {first} in all pools")
        if own.parallel.data > 1 and cluster.changes:
            yield place.problem(
                f"pool '{pool.name}': got parallel.data {own.parallel.data}; expected 1 where replicas "
                "come and go"
            )
        if cluster.is_staged and SCHEDULERS.get(kind).reserves_ahead:
            yield place.problem(
                f"pool '{pool.name}': got scheduler {kind}, which takes in no KV; expected preemptive or vllm"
            )
        for tier in own.kv_cache.tiers:
            cache, drafting = own.kv_cache, own.scheduler.drafting
            contents = (
                tier,
                cache.layer_groups(own.model),
                cache.plan(own.model),
                drafting and drafting.method,
            )
            first, known = stores.setdefault(tier.name, (pool.name, contents))
            if tier.shared and known != contents:
                yield place.problem(
                    f"pool '{pool.name}': kv_cache.tiers: got '{tier.name}' unlike in pool '{first}'; "
                    "expected equal settings, and equal blocks in both caches, of a shared tier"
                )
        if cluster.is_staged and own.scheduler.has_connector:
            yield place.problem(f"pool '{pool.name}': got a connector; expected null: the role says it")
    try:
        counts = ((cluster.most_replicas(pool) * own.parallel.data, own) for pool, own in pools)
        yield from _too_many_blocks(list(counts), document)
    except ConfigError as error:
        yield from map(place.problem, error.problems)
