"""Run one experiment: put the parts together, let the world run, hand back the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.base.paths import data_folder
from cbsim.base.plugin_errors import blaming, plugin_error
from cbsim.cluster.engine.engine_interface import Engine
from cbsim.cluster.engine.fast import FastEngine
from cbsim.cluster.engine.recorder import Deferred, MergedSteps, Recorder, RunLog
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.cluster.engine.slice_log import Slices
from cbsim.cluster.engine.token_gaps import distinct_gaps
from cbsim.cluster.router import make_router
from cbsim.cluster.simpy_world import Progress, World
from cbsim.cost import COST_MODELS, CostModel, StepShape
from cbsim.observers import OBSERVERS, Needs, ObservedRun, Observer
from cbsim.observers.audience import Audience
from cbsim.results.backlog import backlog_notes
from cbsim.results.latency import Replica, mean_parts, request_parts
from cbsim.results.manifest import make_manifest
from cbsim.results.metrics import Deployment, request_latencies, summarize
from cbsim.results.output import REPORT, RUN_FILES
from cbsim.results.result import Result
from cbsim.schedulers import SCHEDULERS, Prices, Resources, Scheduler
from cbsim.schedulers.kvcache import BlockPool, IdentityPool
from cbsim.studies.experiment import Experiment
from cbsim.studies.simulation import setup_of, simulate_core
from cbsim.workload import WORKLOADS, Workload
from cbsim.workload.request import RequestState


def run(
    config: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run an experiment given as a YAML file or a mapping; `overrides` are `{"a.b": value}`.

    Writes the run folder `out` if one is given. `observers` watch it beside those that the experiment names.
    Raises `CbsimError` with one line for each of the user's mistakes, `PluginError` where an observer fails.
    """
    result = run_experiment(Experiment.of(config, overrides or {}), observers=observers)
    if out is not None:
        result.save(out)
    return result


def run_experiment(
    experiment: Experiment, progress: Progress | None = None, observers: Sequence[Observer] = ()
) -> Result:
    """Run an experiment of one point (its `sweep` is not looked at), watched by its observers and further."""
    audience = make_audience(experiment, observers)
    workload, cost = make_workload(experiment), make_cost_model(experiment)
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    log, noted = simulate(experiment, workload, progress, cost, audience)
    simulation = {"cpu_s": time.process_time() - cpu_start, "wall_s": time.perf_counter() - wall_start}
    deployment = Deployment(
        model=experiment.model,
        gpu=experiment.gpu,
        tensor_parallel=experiment.replicas.tensor_parallel,
        num_replicas=experiment.replicas.count,
        kv_block_size=experiment.kv_cache.block_size,
    )
    notes = [*workload.notes(), *log_notes(experiment, log), *noted]
    summary = summarize(log, deployment, experiment.slo.limits(), simulation=simulation, notes=notes)
    if log.parts is not None:
        began = time.process_time()
        summary["parts"] = mean_parts(request_latencies(log), log.parts)
        summary["simulation"]["parts_cpu_s"] = time.process_time() - began
    specs = {"model": experiment.model, "gpu": experiment.gpu}
    inputs = [*workload.inputs(), *cost.inputs()]
    manifest = make_manifest(experiment.seed, inputs, specs)
    return Result.from_log(log, summary, experiment.resolved(), manifest, audience.observers)


def make_audience(experiment: Experiment, further: Sequence[Observer] = ()) -> Audience:
    """The experiment's observers, then further ones. Raises `PluginError` for files they can't write."""
    named = []
    for config in experiment.observers:
        observer_class = OBSERVERS.get(config.type)
        with blaming("observer", observer_class):
            named.append(observer_class(config))
    audience = Audience([*named, *further])
    audience.check_files({*RUN_FILES, REPORT})
    return audience


def make_workload(experiment: Experiment) -> Workload:
    """The experiment's workload, which has read nothing yet."""
    workload_class = WORKLOADS.get(experiment.workload.type)
    with blaming("workload", workload_class):
        return workload_class(experiment.workload, seed=experiment.seed, folder=experiment.folder)


def make_cost_model(experiment: Experiment) -> CostModel:
    """The experiment's cost model, with what it draws from the seed."""
    cost_class = COST_MODELS.get(experiment.cost_model.type)
    with blaming("cost model", cost_class):
        cost = cost_class(
            experiment.cost_model, experiment.model, experiment.gpu, experiment.replicas.tensor_parallel
        )
        return cost.drawn(experiment.seed)


def make_scheduler(experiment: Experiment, cost: CostModel) -> Scheduler:
    """A scheduler of the experiment with a KV block pool of its own."""
    kv_cache, config = experiment.kv_cache, experiment.scheduler
    num_blocks = kv_cache.size(experiment.model, experiment.gpu, experiment.replicas.tensor_parallel)
    pool: BlockPool
    if kv_cache.prefix_caching and not SCHEDULERS.get(config.type).reserves_ahead:
        pool = IdentityPool(num_blocks, kv_cache.block_size, unknown_first=config.reuses_unknown_blocks_first)
    else:
        pool = BlockPool(num_blocks, kv_cache.block_size)
    resources = Resources(
        pool=pool,
        prices=make_prices(experiment, cost),
        max_model_len=experiment.model.max_model_len,
        seed=experiment.seed,
    )
    scheduler_class = SCHEDULERS.get(config.type)
    with blaming("scheduler", scheduler_class):
        return scheduler_class(config, resources)


def make_prices(experiment: Experiment, cost: CostModel) -> Prices:
    """What the scheduler may know of costs: a prompt's time by the cost model, a block's by the host link."""
    block_bytes = experiment.kv_cache.block_size * experiment.model.kv_bytes_per_token
    bytes_per_s = experiment.gpu.host_link_bytes_per_s * experiment.replicas.tensor_parallel
    return Prices(
        recompute_s=partial(_prefill_s, cost),
        move_s=lambda n: n * block_bytes / bytes_per_s,
        block_bytes=block_bytes,
    )


def _prefill_s(cost: CostModel, num_tokens: int) -> float:
    return cost.step_s(StepShape(((num_tokens, 0),), 1, 0, 0, 0))


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
    audience = audience or Audience(())
    cost = cost or make_cost_model(experiment)
    if not audience.observers:
        setup = setup_of(experiment, workload, cost)
        log, ended, speed = simulate_core(setup, experiment.speed, progress)
        told = setup.rung.notes(experiment.scheduler, ended.requests, ended.own)
        return log, [*speed.notes, *told, *cost.notes(log.steps)]
    recorder = Recorder(
        with_batches=experiment.output.batches, audience=audience if audience.observers else None
    )
    engine_class = choose_engine(experiment, audience)
    world = make_world(
        experiment,
        workload,
        cost,
        lambda replica, scheduler, in_flight: engine_class(replica, scheduler, cost, recorder, in_flight),
        step_by_step=audience.needs >= Needs.STEPS,
        progress=progress,
    )
    engines = world.engines
    schedulers = [engine.scheduler for engine in engines]
    audience.started(ObservedRun(experiment.name, experiment.model.name, schedulers))
    run_world(world, cost)
    is_closed_loop = workload.config.concurrency is not None
    # Replicas find the same things to note.
    notes = dict.fromkeys(note for engine in engines for note in engine.scheduler.notes())
    log = collect(recorder, engines, world.end_s, is_closed_loop=is_closed_loop)
    audience.ended(world.end_s)
    return log, [*notes, *cost.notes(log.steps)]


def make_world(
    experiment: Experiment,
    workload: Workload,
    cost: CostModel,
    make_engine: Callable[[int, Scheduler, int], Engine],
    *,
    step_by_step: bool = False,
    progress: Progress | None = None,
) -> World:
    """The experiment's replicas behind its router; `make_engine` is given the number of a replica, its
    scheduler, and how many steps may be under way at once.
    """
    num_in_flight = 2 if experiment.scheduler.async_scheduling else 1
    engines = [
        make_engine(replica, make_scheduler(experiment, cost), num_in_flight)
        for replica in range(experiment.replicas.count)
    ]
    router = make_router(experiment.replicas.router, experiment.seed)
    return World(
        workload,
        engines,
        router,
        stop_at_s=experiment.stop_at_s,
        step_by_step=step_by_step,
        progress=progress,
    )


def run_world(world: World, cost: CostModel, passes: tuple[type[Exception], ...] = ()) -> None:
    """Let a world run to its end. Raises `PluginError` for what a third party's part of it raises.

    Errors of the classes in `passes`, and cbsim's own, stay what they are.
    """
    stay: tuple[type[Exception], ...] = (CbsimError, *passes)
    try:
        world.run()
    except stay:
        raise
    except Exception as error:
        parts = {
            "scheduler": type(world.engines[0].scheduler),
            "cost model": type(cost),
            "workload": type(world.workload),
        }
        failure = plugin_error(error, parts, f" at {world.env.now:.6g} s")
        if failure is None:
            raise
        raise failure from error


def choose_engine(experiment: Experiment, audience: Audience) -> type[Engine]:
    """The fast engine, unless the experiment, its batches or whoever watches asks for the naive one."""
    is_asked_for = experiment.engine == "reference" or experiment.output.batches
    return ReferenceEngine if is_asked_for or audience.needs is Needs.STATE else FastEngine


def collect(
    recorder: Recorder, engines: Sequence[Engine], end_s: float, *, is_closed_loop: bool = False
) -> RunLog:
    """The log of a run that has ended."""
    for engine in engines:
        engine.finish_record()
    gap_s, gap_count = distinct_gaps(engine.gaps() for engine in engines)
    schedulers = [engine.scheduler for engine in engines]
    requests = recorder.request_columns()
    steps = [engine.step_columns() for engine in engines]
    events = Deferred(partial(recorder.event_columns, requests, answers_first=is_closed_loop))
    replicas = [
        Replica(engine.replica, columns, slices, engine.cost)
        for engine, columns in zip(engines, steps, strict=True)
        if (slices := engine.slice_columns()) is not None
    ]
    return RunLog(
        requests=requests,
        steps=MergedSteps(steps),
        events=events,
        batches=recorder.batches.to_columns() if recorder.with_batches else None,
        gaps=[(gap_s, gap_count)],
        rejections=recorder.rejections,
        num_tokens_recomputed=sum(scheduler.num_tokens_recomputed for scheduler in schedulers),
        num_prompt_tokens_queried=sum(scheduler.num_tokens_queried for scheduler in schedulers),
        num_prompt_tokens_hit=sum(scheduler.num_tokens_hit for scheduler in schedulers),
        num_padding_tokens=sum(engine.num_padding_tokens for engine in engines),
        end_s=end_s,
        slices=Slices.joined([replica.slices for replica in replicas]) if replicas else None,
        parts=Deferred(partial(request_parts, requests, events, replicas)) if replicas else None,
    )


def is_measured(profile: str) -> bool:
    """Whether a profile `GPU/MODEL` is shipped."""
    return (data_folder("calibration") / "profiles" / profile / "cost.json").is_file()


def log_notes(experiment: Experiment, log: RunLog) -> list[str]:
    """Sentences on what a reader of the figures must know about this run."""
    notes = []
    if log.num_padding_tokens:
        num_real = int(log.steps["num_prefill_tokens"].sum() + log.steps["num_decode_tokens"].sum())
        share = log.num_padding_tokens / (log.num_padding_tokens + num_real)
        notes.append(f"{share:.0%} of the tokens computed were padding of static batches")
    state, requests = log.requests["state"], log.requests
    num_unfinished = int((state == RequestState.UNFINISHED).sum())
    if num_unfinished:
        why = "" if experiment.stop_at_s else ": the scheduler had nothing it could do for them"
        notes.append(f"{num_unfinished:,} requests left unfinished at {log.end_s:.6g} s{why}")
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
    profile = f"{experiment.gpu.name}/{experiment.model.name}"
    if experiment.cost_model.type == "roofline" and is_measured(profile):
        notes.append(
            f"costs are a roofline's, though {profile} is measured: cost_model.type=profile with "
            f"profile={profile} uses that"
        )
    if experiment.kv_cache.prefix_caching and SCHEDULERS.get(experiment.scheduler.type).reserves_ahead:
        notes.append(f"kv_cache.prefix_caching has no effect with scheduler {experiment.scheduler.type}")
    return notes
