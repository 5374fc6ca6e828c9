"""A calibration session on one device: checks, peaks, models one after another, reports, until time is up.

`run_on_gpu.py` starts it, in a new process whenever one can time nothing more. Everything is on disk as it
is made, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

from calibration.attainable import attainable_bytes_per_s, attainable_flop_per_s
from calibration.fake_card import FakeTimer, fake_device
from calibration.kernel_report import KernelReport
from calibration.reached_peaks import (
    Attainable,
    Sum,
    additivity,
    additivity_by_form,
    tunings_table,
)
from calibration.variants import load_variant, variant_name
from cbsim.base.errors import CalibrationError, CbsimError
from cbsim.base.paths import write_text
from cbsim.cost.costfile import CostFile, read_cost_file
from cbsim.lab.calibrate.device_check import check_device, memory_findings, told
from cbsim.lab.calibrate.fit import fit_cost_file, fit_unreported
from cbsim.lab.calibrate.kernel_tuning import compare_tunings, decode_sizes, first_tunings, name_of
from cbsim.lab.calibrate.measurement import (
    Measurement,
    ProcessSpent,
    find_room,
    kernels_left_out,
    measure,
    seconds_or_nan,
    time_point,
    use_best_kernels,
)
from cbsim.lab.calibrate.named_spec import gpu_of_device, load_gpu
from cbsim.lab.calibrate.point import Op
from cbsim.lab.calibrate.profile_folder import COST, POINTS
from cbsim.lab.calibrate.timing_plan import Limits, make_plan
from cbsim.lab.kernels.graph_capture import CaptureFailed, one_line
from cbsim.lab.kernels.kernel_choice import DecodeTuning
from cbsim.lab.kernels.rig import Rig
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import Device, DeviceLost, Timer, make_timer, open_device
from cbsim.results.result import hash_files
from cbsim.specs import GpuSpec, ModelSpec

T = TypeVar("T")

FAKE_BACKEND = "calibration.fake_card:FakeBackend"
NUM_SUMS = 20
REPORT_S = 25.0
"""What a report takes at most on a slow host: fits without the points they are held against."""
REPORT_SHARE = 0.3
"""Share of the time left that is kept for reports at most."""
TUNING_SHARE, MAX_TUNING_S = 0.25, 60.0
"""Choosing kernels takes at most this share of a model's time, and at most these seconds."""
EXTRAS_S = 10.0
"""With less time than this left nothing further is timed."""


class Session:
    """What is timed on, until when, and where to."""

    def __init__(self, options: argparse.Namespace, until_s: float = math.inf) -> None:
        """`until_s` is an instant of `time.monotonic`. Raises `CalibrationError` for names of nothing."""
        self.options = options
        self.until_s = until_s
        self.out: Path = options.out
        is_fake: bool = options.fake
        self.device: Device = fake_device() if is_fake else open_device(options.device)
        self.timer: Timer = FakeTimer() if is_fake else make_timer(self.device)
        self.backend = FAKE_BACKEND if is_fake else None
        self.gpu, self.models = named_specs(options, self.device)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.until_s - time.monotonic()

    def say(self, line: str) -> None:
        """A line, at once, with the time that is left."""
        left = "" if math.isinf(self.left_s) else f"[{max(0.0, self.left_s):4.0f} s left] "
        print(f"{left}{line}", flush=True)

    def run(self) -> None:
        """All of it. Raises `CalibrationError` where nothing can be timed, or too little was."""
        self.check()
        attainable = self.attainable()
        measured = [self.measure(model, len(self.models) - place) for place, model in enumerate(self.models)]
        for place, model in enumerate(self.models):
            # What models after it left of their time.
            if measured[place].num_unreached and self.left_s > REPORT_S * len(self.models) + EXTRAS_S:
                measured[place] = self.measure(model, 1)
        problems = []
        for model, timings in zip(self.models, measured, strict=True):
            try:
                self.report(model, timings, attainable)
            except ProcessSpent:
                raise
            except CalibrationError as error:
                problems += [f"{variant_name(model)}: {problem}" for problem in error.problems]
        for model in self.models:
            self.compare_tunings(model)
        if problems:
            raise CalibrationError(*problems, "the same command goes on from here")
        self.say("done")

    def check(self) -> None:
        """What works here and what does not; raises `CalibrationError` if nothing can be timed."""
        findings = [] if self.options.fake else check_device(self.options.device)
        shown = "unknown: no share of a peak is told" if self.gpu is None else f"as {self.gpu.name}"
        self.say(f"{self.device.name}, its peaks {shown}")
        for model in self.models:
            findings += memory_findings(model, 1, self.device)
        text = told(findings)
        print(text, flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "check.txt", text + "\n")
        stops = [finding.text for finding in findings if finding.level == "stop"]
        if stops:
            raise CalibrationError(*stops)

    def attainable(self) -> Attainable | None:
        """What a large copy and a large product reach here; of the first model's dtype."""
        path = self.out / "attainable.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            return Attainable(**found) if found else None

        def timed() -> Attainable:
            return Attainable(
                attainable_bytes_per_s(self.device, self.timer),
                attainable_flop_per_s(self.device, self.timer, self.models[0].dtype),
            )

        found = self.extra("what is attainable", path, "null", timed)
        if found is not None:
            write_text(path, json.dumps(asdict(found)) + "\n")
        return found

    def extra(self, what: str, path: Path, instead: str, timed: Callable[[], T]) -> T | None:
        """Time what a profile can do without. Where that fails, so it is said, and `instead` stands in its
        file, so that it isn't tried again; raises `ProcessSpent` if the process can time nothing more.
        """
        try:
            return timed()
        except CbsimError:
            raise
        except Exception as error:
            write_text(path, instead + "\n")
            self.say(f"{what} could not be timed: {one_line(error)}")
            if isinstance(error, CaptureFailed | DeviceLost):
                raise ProcessSpent(
                    f"{what}: {one_line(error)}; the same command goes on from here"
                ) from error
            return None

    def measure(self, model: ModelSpec, num_left: int) -> Measurement:
        """Time a model's plan in its share of the time, and fit it at once: a kill loses only reports."""
        kept_s = min(num_left * REPORT_S, REPORT_SHARE * self.left_s)
        share_s = (self.left_s - kept_s) / num_left
        measured = measure(
            model,
            self.folder(model),
            device=self.device,
            plan=self.options.plan,
            backend=self.backend,
            gpu=self.gpu.name if self.gpu else None,
            command=shlex.join(["python3", *sys.argv]),
            progress=lambda done, total, left_s: self._progress(variant_name(model), done, total, left_s),
            timer=self.timer,
            tuning_s=min(MAX_TUNING_S, TUNING_SHARE * share_s),
            until_s=time.monotonic() + share_s,
        )
        for warning in measured.meta.warnings:
            self.say(f"{variant_name(model)}: {warning}")
        try:
            self.quick_fit(model, measured)
            self.say(f"{variant_name(model)}: {len(measured.points)} points timed and fitted")
        except CalibrationError as error:
            self.say(f"{variant_name(model)}: not fitted yet: {error}")
        return measured

    def quick_fit(self, model: ModelSpec, measured: Measurement) -> CostFile:
        """`cost.json` of the points that are there, without its errors unless those were told before."""
        folder = self.folder(model)
        if (folder / COST).exists():
            before = read_cost_file(folder / COST)
            if before.points_sha256 == hash_files([folder / POINTS]):
                return before
        lacking = [op for op in needed(model) if all(point.op != op for point in measured.points)]
        if lacking:
            raise CalibrationError(f"no timings yet of {', '.join(lacking)}")
        cost = fit_unreported(measured.points, measured.meta, folder / POINTS)
        cost.save(folder / COST)
        return cost

    def report(self, model: ModelSpec, measured: Measurement, attainable: Attainable | None) -> None:
        """`report.md`, and `cost.json` with its errors, as far as there is time for either."""
        folder = self.folder(model)
        cost = self.quick_fit(model, measured)
        if not cost.accuracy and self.left_s > REPORT_S:
            cost, _ = fit_cost_file(measured.points, measured.meta, folder / POINTS)
            cost.save(folder / COST)
        sums = self.sums(model) or additivity_by_form(measured.points, cost.form)
        report = KernelReport(model, measured.meta, measured.points, cost, self.gpu, attainable)
        text = "\n\n".join(report.sections(sums, folder)) + "\n"
        write_text(folder / "report.md", text)
        print("\n" + text, flush=True)
        self.say(f"{variant_name(model)}: {folder / 'report.md'} is written")

    def sums(self, model: ModelSpec) -> list[Sum]:
        """Mixed attention and its parts, timed anew, unless a run before has them on disk."""
        path = self.folder(model) / "sums.json"
        if path.exists():
            return [sum_of(row) for row in json.loads(path.read_text(encoding="utf-8"))]
        if self.left_s < EXTRAS_S:
            return []

        def timed() -> list[Sum]:
            rig, limits = self.rig(model)
            mixed = [point for point in make_plan(self.options.plan, limits) if point.op == "mixed"]
            ends_s = self.until_s - EXTRAS_S / 2
            return additivity(
                mixed[:NUM_SUMS], lambda point: time_point(rig, self.timer, point).median_s, ends_s
            )

        found = self.extra(f"{variant_name(model)}: mixed attention and its parts", path, "[]", timed)
        if found is None:
            return []
        write_text(path, json.dumps([asdict(row) for row in found]) + "\n")
        return found

    def compare_tunings(self, model: ModelSpec) -> None:
        """Every way to cut decodes, if there is time: the last thing, below the report."""
        path, report = self.folder(model) / "tunings.md", self.folder(model) / "report.md"
        if not path.exists():
            self.time_tunings(model, path)
        if path.exists() and report.exists():
            text = path.read_text(encoding="utf-8")
            write_text(report, f"{report.read_text(encoding='utf-8')}\n{text}")
            print(f"\n{text}", flush=True)

    def time_tunings(self, model: ModelSpec, path: Path) -> None:
        """Time them into a file, if there is time and something to choose."""
        if self.left_s < EXTRAS_S:
            return
        title = "### Decode kernel, ways to cut its work: TB/s of keys and values read"

        def progress(done: int, total: int) -> None:
            self._progress(f"{variant_name(model)}, ways to cut decodes", done, total, None)

        def timed() -> str:
            rig, limits = self.rig(model)
            if rig.backend.choice is None:
                return "There is only one."
            folder, sizes = self.folder(model), decode_sizes(limits)
            seconds = partial(seconds_or_nan, rig, self.timer, folder)
            without = kernels_left_out(folder)
            tunings = [tuning for tuning in all_tunings() if name_of(tuning) not in without]
            ends_s = self.until_s - EXTRAS_S / 2
            return tunings_table(compare_tunings(rig, seconds, tunings, progress, ends_s, sizes), sizes)

        failed = f"{title}\n\nThey could not be timed."
        table = self.extra(f"{variant_name(model)}: ways to cut decodes", path, failed, timed)
        if table is not None:
            write_text(path, f"{title}\n\n{table}\n")

    def rig(self, model: ModelSpec) -> tuple[Rig, Limits]:
        """What times points beside the plan, with the kernels chosen; and how large they may be."""
        shard = Shard(model)
        room = find_room(self.device, shard)
        rig = room.rig(shard, self.device, self.backend)
        use_best_kernels(rig, self.timer, self.folder(model), room.limits)
        return rig, room.limits

    def folder(self, model: ModelSpec) -> Path:
        """Where a model's files are."""
        return self.out / variant_name(model)

    def _progress(self, name: str, done: int, total: int, left_s: float | None) -> None:
        """A line every tenth of the way."""
        if done == total or done % max(1, total // 10) == 0:
            left = "" if left_s is None else f", about {left_s:.0f} s for the rest"
            self.say(f"{name}: {done} of {total}{left}")


def named_specs(options: argparse.Namespace, device: Device) -> tuple[GpuSpec | None, list[ModelSpec]]:
    """The GPU and the models named, all mistakes at once, before minutes are spent on the first."""
    problems: list[str] = []

    def loaded(load: Callable[[str], GpuSpec] | Callable[[str], ModelSpec], name: str) -> object:
        try:
            return load(name)
        except CalibrationError as error:
            problems.extend(error.problems)
            return None

    known = options.gpu or (gpu_of_device(device.name) if device.is_cuda else None)
    gpu = loaded(load_gpu, known) if known else None
    models = [loaded(load_variant, name) for name in options.models]
    if problems:
        raise CalibrationError(*problems)
    return gpu, models  # type: ignore[return-value]


def all_tunings() -> list[DecodeTuning]:
    """`first_tunings`, then a grid about them."""
    tiles, warps, stages, programs = (64, 128), (4, 8), (2, 3, 4), (2, 4, 8)
    rest = (DecodeTuning(*values) for values in product(tiles, warps, stages, programs))
    return list(dict.fromkeys((*first_tunings(), *rest)))


def needed(model: ModelSpec) -> Sequence[Op]:
    """What a profile can't do without."""
    ops: list[Op] = ["dense", "logits", "prefill", "decode"]
    return [*ops, "experts"] if model.experts is not None else ops


def sum_of(row: dict[str, object]) -> Sum:
    """A row of `sums.json`."""
    chunks = tuple(map(tuple, row["chunks"]))  # type: ignore[call-overload]
    return Sum(**(row | {"chunks": chunks}))  # type: ignore[arg-type]
