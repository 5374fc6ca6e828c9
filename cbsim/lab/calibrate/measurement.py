"""Measure: the whole plan timed on a device, a row on disk for each timing, resumed where it was killed."""

from __future__ import annotations

import contextlib
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cbsim.base.errors import CalibrationError
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.memory_limits import Room, find_room
from cbsim.lab.calibrate.meta import Meta, save_meta
from cbsim.lab.calibrate.named_spec import gpu_of_device
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import append_point, read_points
from cbsim.lab.calibrate.profile_folder import writing
from cbsim.lab.calibrate.resume import check_resumable, resume
from cbsim.lab.calibrate.timing_plan import PlanName, PlanPoint, make_plan
from cbsim.lab.kernels.device import Device, open_device
from cbsim.lab.kernels.rig import BLOCK_SIZE, Call, Rig
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import UNSTABLE_SPREAD, Timer, Timing, make_timer
from cbsim.specs import ModelSpec

MAX_DRIFT = 0.05
"""How far repeats of a point may lie from it, at the median, before it is worth a warning."""

Progress = Callable[[int, int, float | None], None]
"""Called after each point: how many are done, how many there are, the seconds left if they can be told."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a calibration has on disk."""

    points: list[Point]
    meta: Meta


def measure(
    model: ModelSpec,
    out: Path,
    *,
    device: str,
    plan: PlanName = "full",
    tensor_parallel: int = 1,
    backend: str | None = None,
    gpu: str | None = None,
    seed: int = 0,
    command: str | None = None,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> Measurement:
    """Time a model's kernels into `out/points.csv` and `out/meta.json`.

    Rows that a run of the same plan left there are kept. `gpu` names the device in `configs/gpus`, by default
    the one that it calls itself; `command` is what `meta.json` says to have made the timings. Raises
    `CalibrationError` if there is no such device, the model doesn't fit, or `out` holds other timings or
    can't be written.
    """
    shard = Shard(model, tensor_parallel)
    opened = open_device(device)
    room = find_room(opened, shard)
    planned = make_plan(plan, room.limits, seed)
    gpu = gpu or gpu_of_device(opened.name)
    meta = _make_meta(model, opened, tensor_parallel, gpu, plan, seed, command)
    check_resumable(out, meta)
    rig = make_rig(shard, opened, room, backend, seed)
    meta = meta.model_copy(update={"software": {**meta.software, "attention": rig.backend.describe()}})
    with writing(out):
        points = resume(out, meta, planned)
        save_meta(meta, out / "meta.json")
        _time_all(rig, timer or make_timer(opened), planned, points, out / "points.csv", seed, progress)
        points = read_points(out / "points.csv")
        meta = meta.model_copy(update={"warnings": warnings_of(points, planned, opened)})
        save_meta(meta, out / "meta.json")
    return Measurement(points, meta)


def make_rig(shard: Shard, device: Device, room: Room, backend: str | None = None, seed: int = 0) -> Rig:
    """The rig that everything is timed on. Raises `CalibrationError` if it doesn't fit after all."""
    try:
        return Rig(
            shard,
            device,
            num_blocks=room.num_blocks,
            max_positions=max(room.limits.max_context, room.limits.max_tokens) + 1,
            backend=backend,
            seed=seed,
        )
    except MemoryError as error:
        raise CalibrationError(f"model {shard.model.name} doesn't fit on {device.name}: {error}") from error


def calls_of(rig: Rig, point: PlanPoint, count: int) -> list[Call]:
    """Calls of what a point of the plan names."""
    if point.op == "dense":
        return rig.dense(point.tokens, count)
    if point.op == "logits":
        return rig.logits(point.num_logits, count)
    if point.op == "step":
        return rig.step(point.chunks, point.contexts, point.num_logits - len(point.contexts), count)
    return rig.attention(point.chunks, point.contexts, count)


def warnings_of(points: Sequence[Point], planned: Sequence[PlanPoint], device: Device) -> list[str]:
    """What to know about the timings, in words."""
    warnings = []
    unstable = [point for point in points if _timing(point).is_unstable]
    if unstable:
        worst = max(unstable, key=lambda point: point.t_p90_s / point.t_median_s)
        several_threads = not device.is_cuda and device.software.get("threads") != "1"
        warnings.append(
            f"{len(unstable)} of {len(points)} timings are unstable: the slowest tenth of their runs took "
            f"over {UNSTABLE_SPREAD:.0%} more than the median (worst: {worst.op}, "
            f"{worst.t_p90_s / worst.t_median_s:.1f} times); other work ran there, or clocks moved"
            + ("; with OMP_NUM_THREADS=1 no thread waits for another" if several_threads else "")
        )
    drift = statistics.median(_drifts(points) or [0.0])
    if drift > MAX_DRIFT:
        warnings.append(
            f"timings drifted: repeats of the same point differ by {drift:.0%} at the median; let the device "
            f"warm up, and run nothing beside the calibration"
        )
    missing = len(planned) - len(points)
    if missing > 0:
        warnings.append(f"{missing} of {len(planned)} points could not be timed: too little memory")
    return warnings


def _time_all(
    rig: Rig,
    timer: Timer,
    planned: Sequence[PlanPoint],
    done: Sequence[Point],
    path: Path,
    seed: int,
    progress: Progress | None,
) -> None:
    known = {point.order for point in done}
    left = [point for point in planned if point.order not in known]
    start = time.monotonic()
    for count, plan_point in enumerate(left, start=1):
        with contextlib.suppress(MemoryError):
            timing = timer.time(partial(calls_of, rig, plan_point))
            append_point(path, _row(plan_point, timing, rig, seed))
        if progress is not None:
            spent_s = time.monotonic() - start
            left_s = spent_s / count * (len(left) - count) if count >= 5 else None
            progress(len(done) + count, len(planned), left_s)


def _row(plan_point: PlanPoint, timing: Timing, rig: Rig, seed: int) -> Point:
    contexts = plan_point.contexts
    return Point(
        op=plan_point.op,
        t_median_s=timing.median_s,
        chunks=plan_point.chunks,
        num_decodes=len(contexts),
        decode_context=sum(contexts),
        max_decode_context=max(contexts, default=0),
        tokens=plan_point.tokens,
        num_logits=plan_point.num_logits,
        backend=type(rig.backend).__name__.removesuffix("Backend").lower(),
        page_size=BLOCK_SIZE,
        dtype=rig.shard.model.dtype,
        graph=timing.graph,
        l2="cold" if timing.is_cold else "warm",
        num_runs=timing.num_runs,
        t_min_s=timing.min_s,
        t_p90_s=timing.p90_s,
        order=plan_point.order,
        split=plan_point.split,
        seed=seed,
    )


def _make_meta(
    model: ModelSpec,
    device: Device,
    tensor_parallel: int,
    gpu: str | None,
    plan: PlanName,
    seed: int,
    command: str | None,
) -> Meta:
    assumptions = []
    if tensor_parallel > 1:
        assumptions.append("all-reduces between GPUs were not measured: one GPU timed its shard alone")
    return Meta(
        device=device.name,
        gpu=gpu,
        model=model_shape(model),
        tensor_parallel=tensor_parallel,
        source=f"cbsim calibrate, plan {plan}, seed {seed}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command or shlex.join(["cbsim", *sys.argv[1:]]),
        software=device.software,
        assumptions=assumptions,
    )


def _timing(point: Point) -> Timing:
    return Timing(point.t_median_s, point.t_min_s, point.t_p90_s, point.num_runs, point.graph)


def _drifts(points: Sequence[Point]) -> list[float]:
    """How far each repeat lies from its original."""
    firsts = {point.key: point.t_median_s for point in points if point.split != "repeat"}
    return [
        abs(math.log(point.t_median_s / firsts[point.key]))
        for point in points
        if point.split == "repeat" and point.key in firsts
    ]
