"""Run an experiment live: its own workload, scheduler and metrics, a real model instead of a cost model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from cbsim.base.errors import ConfigError
from cbsim.base.units import GIB, format_bytes
from cbsim.core.building import KvGroup, KvPool
from cbsim.cost.costfile import find_cost_file
from cbsim.cost.profile import ProfileConfig
from cbsim.lab.kernels.kernel_choice import KERNELS, KernelChoice, read_choice
from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import free_bytes
from cbsim.lab.live.live_engine import LiveEngine, LiveWorld, any_step_s, live_engine, wall_clock
from cbsim.lab.live.runner import ModelRunner, deal_layers
from cbsim.lab.live.tokens import TokenBook
from cbsim.lab.live.weights import Checkpoint
from cbsim.observers import ObservedRun, Observer
from cbsim.observers.views import SchedulerView
from cbsim.results.measured import measured_log
from cbsim.results.metrics import summarize
from cbsim.results.result import Result, make_manifest
from cbsim.results.tables import SLICE_STEPS
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import deployment_of, log_notes, make_cost_model, make_workload
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import stepwise
from cbsim.workload.request_source import Workload

KV_SHARE = 0.8
"""Share of what is free beside the weights that the KV cache may take."""
MAX_CPU_KV_BYTES = 2 * GIB
"""And on a CPU, which serves so little at once, unless the experiment says how many blocks."""
MAX_GRAPH_DECODES = 512
"""The most decodes of a step that is worth a CUDA graph."""


def run_live(
    experiment: Experiment,
    *,
    device: str = "cpu",
    time_scale: float = 1.0,
    sampling: SamplingParams | None = None,
    backend: str | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float], None] | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Serve an experiment's workload with a real model and return what a simulation would.

    Arrivals come `time_scale` times as fast. Weights are random from the experiment's seed unless a
    `checkpoint` is given. `observers` watch beside the experiment's own; what they do takes part of the time
    that is measured. Raises `ConfigError` for what only a simulation can do, or what doesn't fit.
    """
    torch_device = _open(device)
    _check(experiment, time_scale)
    audience = experiment.audience(observers)
    workload = make_workload(experiment)
    num_blocks, notes = fit_blocks(experiment, torch_device)
    setup = setup_of(experiment, workload, make_cost_model(experiment))
    pool = replace(setup.pool, num_blocks=num_blocks, has_identities=True)
    setup = replace(setup, pool=pool, means=replace(setup.means, num_blocks=num_blocks))
    world = stepwise(
        setup,
        step_s=any_step_s,
        make_replica=partial(
            LiveEngine,
            runner=_make_runner(experiment, workload, torch_device, pool, backend),
            book=TokenBook(experiment.model.vocab_size, experiment.seed, sampling or SamplingParams()),
            audience=audience,
        ),
    )
    engine = live_engine(world)
    if checkpoint is not None:
        checkpoint.load_into(engine.runner.decoder)
    engine.runner.warm_up()
    view = SchedulerView(engine, setup.rung.__name__)
    audience.started(ObservedRun(experiment.name, experiment.model.name, [view]))
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    engine.clock = wall_clock()
    LiveWorld(workload, engine, time_scale=time_scale, progress=progress).run()
    spent = {"cpu_s": time.process_time() - cpu_start, "wall_s": time.perf_counter() - wall_start}
    # Nobody can say what a live step would have taken with less in it.
    log = stepwise_log(world, setup)
    modelled = {field.name for field in SLICE_STEPS}
    steps = {name: values for name, values in log.steps.items() if name not in modelled}
    log = replace(log, steps=steps, slices=None, parts=None)
    audience.ended(log.end_s)
    told = setup.rung.notes(experiment.scheduler, world.request_rows(), world.own_rows())
    notes = [f"live on this machine's {device}, not simulated", *notes, *engine.runner.notes, *told]
    notes += [*workload.notes(), *log_notes(experiment, log)]
    notes += experiment.measure.notes(log.requests["arrival_s"])
    kv_cache = experiment.kv_cache.model_copy(update={"num_blocks": num_blocks})
    deployment = deployment_of(experiment.model_copy(update={"kv_cache": kv_cache}))
    measured = measured_log(log, experiment.measure)
    summary = summarize(measured, deployment, experiment.slo.limits(), simulation=spent, notes=notes)
    manifest = make_manifest(experiment.seed, workload.inputs(), {"model": experiment.model})
    return Result.from_log(log, summary, experiment.resolved(), manifest, audience.observers, measured)


def _make_runner(
    experiment: Experiment, workload: Workload, device: torch.device, pool: KvPool, backend: str | None
) -> ModelRunner:
    model = experiment.model
    longest = max((r.num_prompt_tokens + r.num_output_tokens for r in workload.requests()), default=1)
    most = min(int(getattr(experiment.scheduler, "max_num_seqs", MAX_GRAPH_DECODES)), MAX_GRAPH_DECODES)
    return ModelRunner(
        model,
        device,
        num_blocks=pool.num_blocks,
        block_size=pool.block_size,
        backend=backend,
        choice=kernel_choice(experiment),
        seed=experiment.seed,
        max_positions=max(longest, model.max_model_len),
        graph_decodes=most if device.type == "cuda" else 0,
        windows=_windows(pool.groups),
    )


def kernel_choice(experiment: Experiment) -> KernelChoice | None:
    """The kernels that the experiment's profile was timed with, where it says which: those serve then."""
    cost_model = experiment.cost_model
    if not isinstance(cost_model, ProfileConfig):
        return None
    return read_choice(find_cost_file(cost_model.profile).with_name(KERNELS))


def _check(experiment: Experiment, time_scale: float) -> None:
    replicas, scheduler, kv_cache = experiment.replicas, experiment.scheduler, experiment.kv_cache
    parallel = "replicas.tensor_parallel" if replicas.tensor_parallel > 1 else "parallel"
    preemption = getattr(scheduler, "preemption", "recompute")
    swaps_groups = preemption != "recompute" and bool(kv_cache.layer_groups(experiment.model))
    checks = {
        f"replicas.count: got {replicas.count}; a live run has one replica": replicas.count == 1,
        "cluster: got pools; a live run has one replica": experiment.cluster is None,
        f"{parallel}: got {experiment.num_gpus}; a live run has one device": experiment.num_gpus == 1,
        "scheduler.speculative: got a drafter; a live run has none": scheduler.drafting is None,
        "scheduler.connector: got one; a live run has its own KV cache alone": not scheduler.has_connector,
        "kv_cache.groups: got some; a live run has those of the model": kv_cache.groups is None,
        f"scheduler.preemption: got {preemption}; a live run computes layers with windows again": (
            not swaps_groups
        ),
        "stop_at_s: a live run goes on until every request has ended": experiment.stop_at_s is None,
        f"time_scale: got {time_scale}; allowed: more than 0": time_scale > 0,
    }
    if problems := [told for told, is_right in checks.items() if not is_right]:
        raise ConfigError(*problems)


def _open(device: str) -> torch.device:
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device: unknown '{device}'; allowed: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device cuda: no CUDA here (torch {torch.__version__}); allowed: --device cpu")
    return torch.device(device)


def _windows(groups: Sequence[KvGroup]) -> list[int]:
    """The window of each group of layers that share blocks."""
    return [group.window for group in groups] or [0]


def fit_blocks(experiment: Experiment, device: torch.device) -> tuple[int, list[str]]:
    """As many KV blocks as the experiment has; fewer if its GPU decides that and this device is smaller."""
    shard = Shard(experiment.model)
    kv_cache = experiment.kv_cache
    rung = SCHEDULERS.get(experiment.scheduler.type)
    groups = () if rung.reserves_ahead else kv_cache.layer_groups(experiment.model)
    num_caches = max(deal_layers(shard, _windows(groups))[1]) + 1
    block_bytes = kv_cache.block_size * shard.layer_kv_token_bytes * num_caches
    left_bytes = free_bytes(device) - shard.weight_bytes
    fitting = int(left_bytes * KV_SHARE) // block_bytes
    if device.type == "cpu" and kv_cache.num_blocks is None:
        fitting = min(fitting, MAX_CPU_KV_BYTES // block_bytes)
    wanted = experiment.num_kv_blocks
    if fitting < 1 or (kv_cache.num_blocks is not None and wanted > fitting):
        raise ConfigError(
            f"kv_cache: {wanted} blocks take {format_bytes(wanted * block_bytes)} beside "
            f"{format_bytes(shard.weight_bytes)} of weights; {max(0, fitting)} fit on this device; "
            f"allowed: a smaller model or kv_cache.num_blocks"
        )
    if wanted <= fitting:
        return wanted, []
    return fitting, [
        f"KV cache of {fitting} blocks, what fits here; {experiment.gpu.name} would have {wanted}"
    ]
