"""Measure: the whole plan timed on a device, a row on disk for each timing, resumed where it was killed."""

from __future__ import annotations

import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cbsim.base.errors import CalibrationError, refusals
from cbsim.base.units import MIB, format_bytes
from cbsim.cost.costfile import model_shape
from cbsim.lab.calibrate.accuracy import repeats
from cbsim.lab.calibrate.kernel_tuning import choose_kernels, name_of
from cbsim.lab.calibrate.left_out import (
    MAX_DEATHS,
    NO_POINT,
    DeathMark,
    LeftOut,
    Trouble,
    append_left_out,
    read_left_out,
)
from cbsim.lab.calibrate.named_spec import gpu_of_device
from cbsim.lab.calibrate.point import Op, Point
from cbsim.lab.calibrate.pointsfile import Meta, append_point, read_points, save_meta
from cbsim.lab.calibrate.profile_folder import (
    LEFT_OUT,
    META,
    POINTS,
    UNDER_WAY,
    check_resumable,
    resume,
)
from cbsim.lab.calibrate.timing_plan import Limits, PlanName, PlanPoint, make_plan
from cbsim.lab.kernels.all_reduce import can_all_reduce, time_all_reduces
from cbsim.lab.kernels.graph_capture import CaptureFailed, one_line
from cbsim.lab.kernels.kernel_choice import KERNELS, read_choice, save_choice
from cbsim.lab.kernels.rig import BLOCK_SIZE, Rig
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import (
    UNSTABLE_SPREAD,
    Device,
    DeviceLost,
    MakeCalls,
    Timer,
    Timing,
    make_timer,
    open_device,
)
from cbsim.specs import ModelSpec

MAX_DRIFT = 0.05
"""How far repeats of a point may lie from it, at the median, before it is worth a warning."""

KV_SHARE = 0.7
"""Share of what is free beside the weights that the KV cache takes; activations and graphs have the rest."""
MAX_CPU_KV_BYTES = 128 * MIB
MIN_KV_BLOCKS = 1024
EVEN = "tokens were dealt out to experts evenly, in turn: uneven routing keeps some of them longer"
BY_TORCH = (
    "all-reduces are torch.distributed's, launched one by one; engines have faster ones for small steps"
)
"""What runs are told of timed experts and all-reduces."""

Progress = Callable[[int, int, float | None], None]
"""Called after each point: how many are done, how many there are, the seconds left if they can be told."""


class ProcessSpent(CalibrationError):
    """This process can time nothing more; what it has is on disk, and the same command goes on from there."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a calibration has on disk."""

    points: list[Point]
    meta: Meta
    num_unreached: int = 0
    """Points of the plan that there was no time for."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much KV cache fits beside a model's weights."""

    num_blocks: int
    """Blocks of one layer; a whole step has them shared out over the layers."""
    limits: Limits

    def rig(self, shard: Shard, device: Device, backend: str | None = None, seed: int = 0) -> Rig:
        """The rig that everything is timed on. Raises `CalibrationError` if it doesn't fit after all."""
        longest = max(self.limits.max_context, self.limits.max_tokens) + 1
        sizes = {"num_blocks": self.num_blocks, "max_positions": longest}
        return Rig(shard, device, **sizes, backend=backend, seed=seed)


def measure(
    model: ModelSpec,
    out: Path,
    *,
    device: str | Device,
    plan: PlanName = "full",
    tensor_parallel: int = 1,
    backend: str | None = None,
    gpu: str | None = None,
    seed: int = 0,
    command: str | None = None,
    progress: Progress | None = None,
    timer: Timer | None = None,
    tuning_s: float = math.inf,
    until_s: float = math.inf,
) -> Measurement:
    """Time a model's kernels into `out/points.csv` and `out/meta.json`.

    Rows that a run of the same plan left there are kept. `gpu` names the device in `configs/gpus`, by default
    the one that it calls itself; `command` is what `meta.json` says to have made the timings. No point is
    begun after `until_s`, an instant of `time.monotonic`. A point that fails is written to
    `out/left_out.csv` and not tried again; `warnings` of the result say so. First kernels are chosen, for at
    most `tuning_s` seconds, and written to `out/kernels.json`, which a resumed run takes them from.

    Raises `CalibrationError` if there is no such device, the model doesn't fit, or `out` holds other timings
    or can't be written; `ProcessSpent` where the same call in a new process can go on.
    """
    shard = Shard(model, tensor_parallel)
    opened = open_device(device) if isinstance(device, str) else device
    room = find_room(opened, shard)
    ops: list[Op] = ["experts"] if model.experts is not None else []
    assumptions = [EVEN] if ops else []
    if can_all_reduce(opened, tensor_parallel):
        ops.append("collectives")
        assumptions.append(BY_TORCH)
    elif tensor_parallel > 1:
        assumptions.append("all-reduces between GPUs were not measured: one GPU timed its shard alone")
    planned = make_plan(plan, room.limits, seed, ops=ops, window=model.window)
    meta = Meta(
        device=opened.name,
        gpu=gpu or gpu_of_device(opened.name),
        model=model_shape(model),
        tensor_parallel=tensor_parallel,
        source=f"cbsim calibrate, plan {plan}, seed {seed}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command or shlex.join(["cbsim", *sys.argv[1:]]),
        software=opened.software,
        assumptions=assumptions,
    )
    check_resumable(out, meta)
    timer = timer or make_timer(opened)
    with refusals(out, "written", CalibrationError):
        rig = room.rig(shard, opened, backend, seed)
        use_best_kernels(rig, timer, out, room.limits, tuning_s)
    kernels = {"attention": rig.backend.describe(), "layers": rig.decoder.ops.told}
    meta = meta.model_copy(update={"software": {**meta.software, **kernels}})
    with refusals(out, "written", CalibrationError):
        done = resume(out, meta, planned)
        save_meta(meta, out / META)
        deaths = DeathMark(out / UNDER_WAY)
        if deaths.count >= MAX_DEATHS:
            told = next((point for point in planned if point.order == deaths.order), None)
            if told is not None:
                died = LeftOut(
                    told.order, told.op, told.window, "failed", "the process died while it was timed"
                )
                append_left_out(out / LEFT_OUT, died)
        troubles = read_left_out(out / LEFT_OUT)
        known = {point.order for point in done} | {row.order for row in troubles if row.trouble == "failed"}
        left = [point for point in planned if point.order not in known]
        tokens = sorted({point.tokens for point in left if point.op == "collectives"})
        reduces: dict[int, Timing] = {}
        if tokens and time.monotonic() < until_s:
            reduces = time_all_reduces(shard, opened, tokens, timer.num_runs, timer.num_warmups)
        bench = Bench(rig, timer, out, reduces, seed, frozenset(r.kind for r in troubles if r.is_uncaptured))
        start, num_unreached = time.monotonic(), 0
        for count, point in enumerate(left, start=1):
            if time.monotonic() >= until_s:
                num_unreached = len(left) - count + 1
                break
            with deaths.around(point.order):
                bench.add(point)
            if progress is not None:
                left_s = (time.monotonic() - start) / count * (len(left) - count)
                progress(len(known) + count, len(planned), left_s if count >= 5 else None)
        points = read_points(out / POINTS) if (out / POINTS).exists() else []
        troubles = read_left_out(out / LEFT_OUT)
        warnings = warnings_of(points, planned, opened, troubles, num_unreached)
        meta = meta.model_copy(update={"warnings": warnings})
        save_meta(meta, out / META)
    return Measurement(points, meta, num_unreached)


def use_best_kernels(rig: Rig, timer: Timer, out: Path, limits: Limits, tuning_s: float = math.inf) -> None:
    """Have the rig compute attention by the fastest kernels: those of `out/kernels.json`, else timed now, as
    far as `tuning_s` seconds go; by the usual ones where there is no time at all.

    Raises `ProcessSpent` where one of them brings the process down; the next doesn't try it.
    """
    choice = read_choice(out / KERNELS)
    if choice is None and tuning_s > 0:
        without = kernels_left_out(out)
        choice = choose_kernels(
            rig, partial(seconds_or_nan, rig, timer, out), limits, without, time.monotonic() + tuning_s
        )
        if choice is not None:
            out.mkdir(parents=True, exist_ok=True)
            save_choice(choice, out / KERNELS)
    if choice is not None:
        rig.use(rig.backend.with_choice(choice))


def kernels_left_out(out: Path) -> list[str]:
    """Names of kernels, and of ways to cut decodes, that brought a process down."""
    return [row.op for row in read_left_out(out / LEFT_OUT) if row.order == NO_POINT]


def seconds_or_nan(rig: Rig, timer: Timer, out: Path, point: PlanPoint) -> float:
    """Median seconds with the kernels that the rig has now; NaN where they can't run.

    Raises `ProcessSpent` where one brings the process down, and writes its name into `out/left_out.csv`.
    """
    try:
        return time_point(rig, timer, point).median_s
    except MemoryError:
        return math.nan
    except Exception as error:
        try:
            if isinstance(error, CaptureFailed | DeviceLost):
                raise error
            timer.check()
        except (CaptureFailed, DeviceLost) as lost:
            choice = rig.backend.choice
            assert choice is not None
            name = name_of(choice.decode) if point.op == "decode" else choice.prefill.timed[0][2]
            out.mkdir(parents=True, exist_ok=True)
            append_left_out(out / LEFT_OUT, LeftOut(NO_POINT, name, 0, "failed", one_line(error)))
            raise _spent(f"kernel '{name}'", error, "can't be timed") from lost
        return math.nan


def find_room(device: Device, shard: Shard) -> Room:
    """What can be timed here. Raises `CalibrationError` if weights and a small KV cache don't fit."""
    block_bytes = BLOCK_SIZE * shard.layer_kv_token_bytes
    num_layers = shard.model.num_layers
    wanted = Limits()
    # A sequence's last block is only partly filled: count one block more for each.
    partial_tokens = wanted.max_decodes * BLOCK_SIZE
    wanted_tokens = max(wanted.max_kv_tokens, (wanted.max_step_kv_tokens + partial_tokens) * num_layers)
    left_bytes = device.free_bytes - shard.weight_bytes
    kv_bytes = min(int(left_bytes * KV_SHARE), wanted_tokens * shard.layer_kv_token_bytes)
    least_bytes = MIN_KV_BLOCKS * num_layers * block_bytes
    if not device.is_cuda:
        longest = shard.model.max_model_len
        wanted = Limits(longest, longest, longest, 32 * longest, 16 * longest, max_decodes=128)
        kv_bytes = min(kv_bytes, max(MAX_CPU_KV_BYTES, least_bytes))
    if kv_bytes < least_bytes:
        needed = shard.weight_bytes + int(least_bytes / KV_SHARE)
        raise CalibrationError(
            f"model {shard.model.name} needs {format_bytes(needed)} for weights and a small KV cache; "
            f"{device.name} has {format_bytes(device.free_bytes)} free; allowed: a smaller model or a "
            f"higher --tp"
        )
    num_blocks = kv_bytes // block_bytes
    kv_tokens = _stable(num_blocks * BLOCK_SIZE - partial_tokens)
    step_kv_tokens = _stable(num_blocks // num_layers * BLOCK_SIZE - partial_tokens)
    limits = replace(
        wanted,
        max_context=min(wanted.max_context, kv_tokens) if device.is_cuda else wanted.max_context,
        max_kv_tokens=min(wanted.max_kv_tokens, kv_tokens),
        max_step_kv_tokens=min(wanted.max_step_kv_tokens, step_kv_tokens),
    )
    return Room(num_blocks, limits)


def _stable(num_tokens: int) -> int:
    """A power of two at most that: a run that is resumed with a little less free memory has the same plan."""
    return 1 << max(0, num_tokens.bit_length() - 1)


def calls_of(rig: Rig, point: PlanPoint) -> list[tuple[float, MakeCalls]]:
    """Calls of what a point of the plan names, by kinds of layers where these differ.

    With them the share of layers that are so; a point by tokens is the average over all layers.
    """
    num_layers = rig.shard.model.num_layers
    match point.op:
        case "dense":
            kinds = [layers for layers in (rig.mlp_layers, rig.expert_layers) if layers]
            return [(len(layers) / num_layers, partial(rig.dense, layers, point.tokens)) for layers in kinds]
        case "experts":
            return [(len(rig.expert_layers) / num_layers, partial(rig.experts, point.tokens))]
        case "logits":
            return [(1.0, partial(rig.logits, point.num_logits))]
        case "step":
            num_finishing = point.num_logits - len(point.contexts)
            return [(1.0, partial(rig.step, point.chunks, point.contexts, num_finishing))]
    attention = partial(rig.attention, point.chunks, point.contexts, slides=point.window > 0)
    return [(1.0, attention)]


def time_point(rig: Rig, timer: Timer, point: PlanPoint, *, as_graph: bool = True) -> Timing:
    """Time what a point of the plan names."""
    parts = calls_of(rig, point)
    timed = [(share, timer.time(calls, what=point, as_graph=as_graph)) for share, calls in parts]
    return Timing.summed(timed)


@dataclass(frozen=True, slots=True)
class Bench:
    """Times points of a plan one by one, into the files of a folder."""

    rig: Rig
    timer: Timer
    out: Path
    reduces: Mapping[int, Timing]
    """All-reduces, timed beforehand, by tokens."""
    seed: int
    uncaptured: frozenset[tuple[str, int]] = frozenset()
    """Kinds of points that are timed kernel by kernel."""

    def add(self, point: PlanPoint) -> None:
        """Time a point into `points.csv`, or write into `left_out.csv` why not.

        One for which there is too little memory is passed over, and tried again by the next run. Raises
        `ProcessSpent` where nothing more should be timed in this process.
        """
        try:
            append_point(self.out / POINTS, self._timed(point))
        except MemoryError:
            return
        except CaptureFailed as error:
            # Where memory ran out the point is at fault, not its kind.
            self._leave_out(point, "failed" if error.is_of_memory else "no graph", error)
            raise _spent(point.told, error, "can't be captured into a CUDA graph") from error
        except DeviceLost as error:
            self._leave_out(point, "failed", error)
            raise _spent(point.told, error, "made the device fail") from error
        except OSError:
            raise
        except Exception as error:
            self._leave_out(point, "failed", error)
            try:
                self.timer.check()
            except DeviceLost as lost:
                raise _spent(point.told, error, "made the device fail") from lost

    def _leave_out(self, point: PlanPoint, trouble: Trouble, error: Exception) -> None:
        row = LeftOut(point.order, point.op, point.window, trouble, one_line(error))
        append_left_out(self.out / LEFT_OUT, row)

    def _timed(self, point: PlanPoint) -> Point:
        if point.op == "collectives":
            timing = self.reduces[point.tokens]
        else:
            as_graph = (point.op, point.window) not in self.uncaptured
            timing = time_point(self.rig, self.timer, point, as_graph=as_graph)
        return point.timed(
            timing.median_s,
            backend=type(self.rig.backend).__name__.removesuffix("Backend").lower(),
            page_size=BLOCK_SIZE,
            dtype=self.rig.shard.model.dtype,
            graph=timing.graph,
            l2="cold" if timing.is_cold else "warm",
            num_runs=timing.num_runs,
            t_min_s=timing.min_s,
            t_p90_s=timing.p90_s,
            seed=self.seed,
        )


def _spent(who: str, error: Exception, what: str) -> ProcessSpent:
    return ProcessSpent(
        f"{who} {what}: {one_line(error)}. Nothing more is timed in this process; "
        f"the same command goes on from here"
    )


def warnings_of(
    points: Sequence[Point],
    planned: Sequence[PlanPoint],
    device: Device,
    troubles: Sequence[LeftOut] = (),
    num_unreached: int = 0,
) -> list[str]:
    """What to know about the timings, in words; `num_unreached` are points that there was no time for."""
    warnings = []
    unstable = [
        p for p in points if Timing(p.t_median_s, p.t_min_s, p.t_p90_s, p.num_runs, p.graph).is_unstable
    ]
    if unstable:
        worst = max(unstable, key=lambda point: point.t_p90_s / point.t_median_s)
        several_threads = not device.is_cuda and device.software.get("threads") != "1"
        warnings.append(
            f"{len(unstable)} of {len(points)} timings are unstable: the slowest tenth of their runs took "
            f"over {UNSTABLE_SPREAD:.0%} more than the median (worst: {worst.op}, "
            f"{worst.t_p90_s / worst.t_median_s:.1f} times); other work ran there, or clocks moved"
            + ("; with OMP_NUM_THREADS=1 no thread waits for another" if several_threads else "")
        )
    drifts = [abs(math.log(again.t_median_s / first.t_median_s)) for again, first in repeats(points)]
    drift = statistics.median(drifts or [0.0])
    if drift > MAX_DRIFT:
        warnings.append(
            f"timings drifted: repeats of the same point differ by {drift:.0%} at the median; let the device "
            f"warm up, and run nothing beside the calibration"
        )
    failed = [row for row in troubles if row.trouble == "failed" and row.order != NO_POINT]
    for row in troubles:
        if row.order == NO_POINT:
            warnings.append(f"kernel '{row.op}' was not tried: it brought a process down ({row.error})")
    if failed:
        told = {point.order: point.told for point in planned}
        first = failed[0]
        warnings.append(
            f"{len(failed)} of {len(planned)} points failed and were left out ({LEFT_OUT} has them; remove "
            f"it to try again); the first, {told.get(first.order, first.op)}: {first.error}"
        )
    for row in {row.kind: row for row in troubles if row.is_uncaptured}.values():
        window = f" with a window of {row.window}" if row.window else ""
        warnings.append(f"{row.op}{window} was timed without CUDA graphs, launch times included: {row.error}")
    if num_unreached:
        warnings.append(f"{num_unreached} of {len(planned)} points were not reached: time was up")
    missing = len(planned) - len(points) - len(failed) - num_unreached
    if missing > 0:
        warnings.append(f"{missing} of {len(planned)} points could not be timed: too little memory")
    return warnings
