"""Run one experiment: put the parts together, let the world run, hand back the result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from cbsim.base.errors import CbsimError, WorkloadError, blaming
from cbsim.base.units import format_seconds
from cbsim.cluster.router import ROUTERS
from cbsim.cluster.simpy_world import Progress
from cbsim.config.bounds import MAX_IN_A_RUN, unreal
from cbsim.cost import COST_MODELS, CostModel
from cbsim.cost.costfile import shipped_profile
from cbsim.observers import Observer
from cbsim.observers.audience import Audience
from cbsim.results.latency import mean_parts
from cbsim.results.measured import measured_log
from cbsim.results.metrics import Deployment, PoolSteps, request_latencies, summarize
from cbsim.results.result import Result, hash_files, hash_mapping, make_manifest, package_version
from cbsim.results.run_log import RunLog
from cbsim.results.run_notes import backlog_notes
from cbsim.schedulers import SCHEDULERS
from cbsim.schedulers.vllm import VllmConfig
from cbsim.studies.experiment import Experiment
from cbsim.studies.run_interval import (
    MAX_TOKENS,
    MAX_TOKENS_INTERPRETED,
    alternative_note,
    known_error,
    run_interval,
)
from cbsim.studies.setup import make_setup
from cbsim.studies.simulation import Speed, Told, simulate_core
from cbsim.workload import WORKLOADS, Workload
from cbsim.workload.request import RequestState


def run(
    config: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run an experiment given as a YAML file or a mapping; `overrides` are `{"a.b": value}` or nested.

    A pandas DataFrame of requests may be the workload. Writes the run folder `out` if one is given.
    `observers` watch it beside those that the experiment names. Of an experiment with a sweep the first point
    is run, and a note and a warning say so. Raises `CbsimError` with a line for each of the user's mistakes,
    `PluginError` where an observer fails.
    """
    experiment = Experiment.of(config, overrides or {})
    result = run_experiment(experiment, observers=observers)
    if experiment.sweep:
        axes, num_points = ", ".join(experiment.sweep), len(experiment.points())
        told = f"the first of {num_points:,} points of a sweep over {axes}; cbsim.sweep runs all of them"
        warnings.warn(told, stacklevel=2)
        result.summary["notes"].insert(0, told)
    if out is not None:
        result.save(out)
    return result


def run_experiment(
    experiment: Experiment,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
    *,
    with_interval: bool = True,
) -> Result:
    """Run an experiment of one point (its `sweep` is not looked at), watched by its observers and further.

    `with_interval` says what its latencies may be in truth too, and what they would be without what is least
    certain of the cost model: two to four more simulations, of a million tokens at most.
    """
    audience = experiment.audience(observers)
    workload, cost = make_workload(experiment), make_cost_model(experiment)
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    log, noted, speed = _simulate(experiment, workload, progress, cost, audience)
    simulation = {"cpu_s": time.process_time() - cpu_start, "wall_s": time.perf_counter() - wall_start}
    deployment = deployment_of(experiment)
    measured = measured_log(log, experiment.measure)
    notes = [
        *experiment.assumed,
        *experiment.at_odds,
        *experiment.measure.notes(log.requests["arrival_s"]),
        *workload.notes(),
        *log_notes(experiment, log),
        *noted,
    ]
    summary = summarize(measured, deployment, experiment.slo.limits(), simulation=simulation, notes=notes)
    if with_interval:
        budget = MAX_TOKENS if speed.is_compiled else MAX_TOKENS_INTERPRETED
        cost_of = make_cost_model if experiment.cluster is not None else lambda _: cost
        interval = run_interval(experiment, workload, cost_of, summary, max_tokens=budget)
        if interval is not None:
            summary["interval"] = interval.summary()
        told = alternative_note(experiment, workload, cost_of, budget)
        summary["notes"] += [told] if told else []
    if measured.parts is not None:
        began = time.process_time()
        summary["parts"] = mean_parts(request_latencies(measured), measured.parts)
        summary["simulation"]["parts_cpu_s"] = time.process_time() - began
    specs: dict[str, BaseModel] = {"model": experiment.model, "gpu": experiment.gpu}
    if experiment.cluster is not None:
        specs |= {f"gpu of {pool.name}": own.gpu for pool, own in experiment.pools() if pool.gpu is not None}
    inputs = [*workload.inputs(), *cost_inputs(experiment, cost)]
    manifest = make_manifest(experiment.seed, inputs, specs)
    return Result.from_log(log, summary, experiment.resolved(), manifest, audience.observers, measured)


def deployment_of(experiment: Experiment) -> Deployment:
    """What runs, pool by pool."""
    if experiment.cluster is not None:
        first, *others = (replace(deployment_of(own), pool=pool.name) for pool, own in experiment.pools())
        return replace(first, others=tuple(others))
    return Deployment(
        model=experiment.model,
        gpu=experiment.gpu,
        num_gpus=experiment.sharing.num_rank_gpus,
        num_stages=experiment.parallel.pipeline,
        num_replicas=experiment.replicas.count * experiment.parallel.data,
        kv_block_size=experiment.kv_cache.block_size,
        kv_cache_tokens=experiment.kv_capacity.num_tokens,
    )


def make_workload(experiment: Experiment) -> Workload:
    """The experiment's workload, which has read nothing yet."""
    workload_class = WORKLOADS.get(experiment.workload.type)
    with blaming("workload", workload_class):
        return workload_class(experiment.workload, seed=experiment.seed, folder=experiment.folder)


def check_num_requests(experiment: Experiment, workload: Workload) -> int | None:
    """How many requests will come, if that is known; raises `WorkloadError` for more than a run can hold."""
    with blaming("workload", type(workload)):
        number = workload.num_requests()
    most = number
    if most is None and workload.config.limit is None:
        most = getattr(workload.config, "mean_requests", 0)
    if most is not None and most > MAX_IN_A_RUN and experiment.stop_at_s is None:
        allowed = f"at most {MAX_IN_A_RUN:,} in a run, or a stop_at_s"
        raise WorkloadError(f"workload: got {most:,.0f} requests; expected {allowed}")
    return number


def cost_inputs(experiment: Experiment, cost: CostModel) -> list[Path]:
    """The files that costs are read from: those of `cost`, the experiment's, or of each pool's own."""
    costs = map(make_cost_model, experiment.alone) if experiment.cluster else [cost]
    return list(dict.fromkeys(path for each in costs for path in each.inputs()))


def make_cost_model(experiment: Experiment) -> CostModel:
    """The experiment's cost model, with what it draws from the seed."""
    cost_class = COST_MODELS.get(experiment.cost_model.type)
    with blaming("cost model", cost_class):
        cost = cost_class(experiment.cost_model, experiment.model, experiment.gpu, experiment.sharing)
        return cost.drawn(experiment.seed)


def simulate(
    experiment: Experiment,
    workload: Workload,
    progress: Progress | None = None,
    cost: CostModel | None = None,
    audience: Audience | None = None,
) -> tuple[RunLog, list[str]]:
    """What happens when the experiment runs, and what schedulers and cost model note about it.

    `cost` is the experiment's cost model, where the caller has made it already. `audience` watches.
    """
    log, notes, _ = _simulate(experiment, workload, progress, cost or make_cost_model(experiment), audience)
    return log, notes


def _simulate(
    experiment: Experiment,
    workload: Workload,
    progress: Progress | None,
    cost: CostModel,
    audience: Audience | None,
) -> tuple[RunLog, list[str], Speed]:
    """See `simulate`; whether the run was compiled, too."""
    check_num_requests(experiment, workload)
    told = None
    if audience is not None and audience.observers:
        told = Told(audience, experiment.name, experiment.model.name)
    setup = make_setup(experiment, workload, make_cost_model if experiment.cluster else lambda _: cost)
    log, ended, speed = simulate_core(setup, experiment.speed, progress, told)
    notes = setup.rung.notes(experiment.scheduler, ended.requests, ended.own)
    num_unsent = len(ended.planned) - len(log.requests["arrival_s"])
    if num_unsent > 0:
        unsent = f"{num_unsent:,} requests were never sent: the answers that they wait for had not come"
        notes = [unsent, *notes]
    pools_of: dict[str, list[str]] = {}
    for place, pool in enumerate(setup.pools):
        for note in pool.cost.notes(PoolSteps(log, place) if setup.others else log.steps):
            pools_of.setdefault(note, []).append(pool.pool_name)
    for note, names in pools_of.items():
        whose = "" if len(names) == len(setup.pools) else f"pool {' and '.join(names)}: "
        notes = [*notes, whose + note]
    error = known_error(pool.cost for pool in setup.pools)
    return log, [*speed.notes, *notes, *([error.told()] if error is not None else [])], speed


def too_long_notes(experiment: Experiment) -> list[str]:
    """A sentence for each pool, or the replicas, whose KV cache can't hold every request that may come to it.

    Raises as reading the workload does.
    """
    pools = [("", "both", experiment)]
    if experiment.cluster is not None:
        pools = [(f"pool {pool.name}: ", pool.role, own) for pool, own in experiment.pools()]
    batches = list(make_workload(experiment).batches())
    prompts, answers = (
        np.concatenate([np.zeros(0, np.int64), *(getattr(batch, name) for batch in batches)])
        for name in ("num_prompt_tokens", "num_output_tokens")
    )
    notes = []
    for prefix, role, own in pools:
        num_tokens = prompts if role == "prefill" else prompts + answers - 1
        num_held = own.num_kv_blocks * own.kv_cache.block_size
        num_over = int((num_tokens > num_held).sum())
        if num_over and not own.kv_cache.layer_groups(own.model):
            notes.append(
                f"{prefix}{num_over:,} of {len(num_tokens):,} requests can't be served: the longest needs KV "
                f"of {int(num_tokens.max()):,} tokens, the cache of a replica holds {num_held:,}"
            )
    return notes


def log_notes(experiment: Experiment, log: RunLog) -> list[str]:
    """Sentences on what a reader of the figures must know about this run."""
    notes = unreal(log.end_s)
    if log.num_padding_tokens:
        num_real = int(log.steps["num_prefill_tokens"].sum() + log.steps["num_decode_tokens"].sum())
        share = log.num_padding_tokens / (log.num_padding_tokens + num_real)
        notes.append(f"{share:.0%} of the tokens computed were padding of static batches")
    state, requests = log.requests["state"], log.requests
    num_unfinished = int((state == RequestState.UNFINISHED).sum())
    if num_unfinished:
        why = "" if experiment.stop_at_s else ": the scheduler had nothing it could do for them"
        notes.append(f"{num_unfinished:,} requests left unfinished at {log.end_s:.6g} s{why}")
    num_failed = int((state == RequestState.FAILED).sum())
    if num_failed:
        why = "as KV that was to come from elsewhere did not"
        if log.changes is not None:
            why = "lost too often, or given up by clients that had waited long enough"
        notes.append(f"{num_failed:,} requests failed, {why}")
    if not len(state) and experiment.stop_at_s is not None:
        notes.append(f"no request arrives before stop_at_s, {experiment.stop_at_s:g} s")
    if experiment.workload.concurrency is None:
        notes += backlog_notes(requests)
    num_tokens = requests["num_prompt_tokens"] + requests["num_output_tokens"]
    num_longer = int((num_tokens[state == RequestState.FINISHED] > experiment.model.max_model_len).sum())
    if num_longer:
        requests_are = "request is" if num_longer == 1 else "requests are"
        notes.append(
            f"{num_longer:,} served {requests_are} longer than {experiment.model.name}'s context of "
            f"{experiment.model.max_model_len:,} tokens (a real engine would refuse that)"
        )
    notes += [f"{experiment.model.name}: not modelled: {each}" for each in experiment.model.not_modelled]
    pools = [("", experiment)]
    if experiment.cluster is not None:
        pools = [(f"pool {pool.name}: ", own) for pool, own in experiment.pools()]
    shortfalls = [(prefix, own.kv_capacity.shortfall) for prefix, own in pools]
    notes += [f"{prefix}{shortfall}" for prefix, shortfall in shortfalls if shortfall is not None]
    notes += [
        f"{prefix}KV cache: {', '.join(own.kv_at_admission)}"
        for prefix, own in pools
        if getattr(own.scheduler, "watermark", 0)
    ]
    windows = {group.window for group in experiment.kv_cache.layer_groups(experiment.model)}
    if windows - {0, experiment.model.window}:
        notes.append("steps are priced by the windows of the model, whatever those of kv_cache.groups")
    if isinstance(experiment.scheduler, VllmConfig) and experiment.scheduler.entry is not None:
        taken, cache = experiment.scheduler, experiment.kv_cache
        entry = "vllm serve" if taken.entry == "server" else "class LLM"
        notes.append(
            f"defaults of vLLM {taken.version} ({entry}) on {experiment.gpu.name}, unless set otherwise: "
            f"max_num_seqs {taken.max_num_seqs}, max_tokens_per_step {taken.max_tokens_per_step}, "
            f"gpu_memory_utilization {cache.gpu_memory_utilization}, "
            f"prefix_caching {str(cache.prefix_caching).lower()}"
        )
    if experiment.front_end_s and log.parts is not None:
        told = f"TTFT and E2E have {format_seconds(experiment.front_end_s)} of the front end in them"
        notes.append(f"{told}; their parts, queues and events are the engine's own times")
    parallel = experiment.parallel
    if log.has_drafts or parallel.pipeline > 1 or parallel.data > 1:
        notes.append(
            "parts of latencies are not told with speculative decoding, a pipeline or data parallelism: "
            "several tokens of a request, or several steps, share their time"
        )
    elif log.parts is None:
        notes.append(
            "parts of latencies are not told where requests come again: after faults, and of clients"
        )
    if parallel.data > 1:
        notes.append(
            f"each of {parallel.data} data-parallel ranks is a replica of its own in all tables, decides a "
            "step when the one before has ended, and adds nothing to a step while it has no requests"
        )
    if experiment.cost_model.type == "roofline":
        profile = shipped_profile(experiment.model, experiment.gpu, experiment.sharing)
        if profile is not None:
            notes.append(
                f"costs are a roofline's, though {profile} is measured: cost_model.type=profile with "
                f"profile={profile} uses that"
            )
    if experiment.kv_cache.prefix_caching and SCHEDULERS.get(experiment.scheduler.type).reserves_ahead:
        notes.append(f"kv_cache.prefix_caching has no effect with scheduler {experiment.scheduler.type}")
    return notes


SEED = "seed"
_COST_SECTIONS = ("cost_model", "model", "gpu", "replicas", "parallel")
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
        files = sorted({*workload.inputs(), *(cost_inputs(experiment, cost) if cost else ())})
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
        or (experiment.replicas.count > 1 and ROUTERS.get(experiment.replicas.router.type).draws)
        or (experiment.cluster is not None and experiment.cluster.draws)
    )
