#!/usr/bin/env python3
"""Calibrate cbsim on the GPU of this machine, which needs torch and Triton but no network, in one command.

    python3 calibration/run_on_gpu.py --gpu h200 --out results            # about ten minutes for both models
    python3 calibration/run_on_gpu.py --wheels                            # the packages to bring, if any

For each model it times the full plan, fits a cost model, and writes what the kernels reach, how additive
mixing is and how far whole steps lie from the prediction. Rows are on disk as they are made: run it again to
go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("llama-3-8b", "qwen3-8b")
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "scipy": "scipy",
    "yaml": "pyyaml",
    "pydantic": "pydantic",
}
"""Module -> package; Triton is for CUDA alone."""
OLDEST_PYTHON = (3, 11)
NUM_SUMS = 20
TUNED = ((64, 4096), (16, 16384), (256, 1024))
"""Decodes x context at which ways to cut the decode kernel's work are compared."""


def main() -> int:
    """Run it all; 2 if something is missing or wrong."""
    options = parse_options()
    if sys.version_info < OLDEST_PYTHON:
        print(f"cbsim needs Python 3.11 or newer, and this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if options.device == "cpu":
        missing = [package for package in missing if package != "triton"]
    if options.wheels or missing:
        return list_wheels(missing)
    sys.path.insert(0, str(ROOT))
    from cbsim.errors import CbsimError

    try:
        gpu, models = read_specs(options)
        for model in models:
            calibrate(model, gpu, options)
    except CbsimError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="h200", help="name in configs/gpus, for its peaks (default: h200)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names in configs/models")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder to write to")
    parser.add_argument("--plan", choices=("quick", "full"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--wheels", action="store_true", help="only say which packages to bring")
    return parser.parse_args()


def list_wheels(missing: list[str]) -> int:
    """How to bring what isn't here from a machine with a network; 0 if nothing is missing."""
    if not missing:
        print("nothing to bring: every package is here")
        return 0
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = " ".join(missing)
    print(f"missing: {', '.join(missing)}. On a machine with a network:")
    print(f"  pip download --only-binary=:all: --python-version {version} \\")
    print(f"    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest wheels {names}")
    print("and here:")
    print(f"  python3 -m pip install --no-index --find-links wheels --target packages {names}")
    print("  PYTHONPATH=packages python3 calibration/run_on_gpu.py")
    return 2


def read_specs(options):  # type: ignore[no-untyped-def]
    """The GPU and all models, before minutes are spent on the first; raises for names that aren't there."""
    from cbsim.config.document import read_document
    from cbsim.errors import ConfigError
    from cbsim.registry import did_you_mean
    from cbsim.specs import GpuSpec, ModelSpec

    wanted = [("gpu", options.gpu), *(("model", name) for name in options.models)]
    problems = []
    for kind, name in wanted:
        names = [path.stem for path in (ROOT / "configs" / f"{kind}s").glob("*.yaml")]
        if name not in names:
            problems.append(f"unknown {kind} '{name}'{did_you_mean(name, names)}")
    if problems:
        raise ConfigError(*problems)
    gpu, *models = (
        read_document(ROOT / "configs" / f"{kind}s" / f"{name}.yaml").data for kind, name in wanted
    )
    return GpuSpec.model_validate(gpu), [ModelSpec.model_validate(model) for model in models]


def calibrate(model, gpu, options) -> None:  # type: ignore[no-untyped-def]
    """Everything for one model, into a folder of its own."""
    from cbsim.calibrate.fit import fit_cost_file
    from cbsim.calibrate.measure import measure

    name = model.name
    out = options.out / name
    start = time.monotonic()
    measured = measure(
        model,
        out,
        device=options.device,
        plan=options.plan,
        gpu=options.gpu,
        progress=lambda done, total, left_s: say(name, done, total, left_s),
    )
    print(f"{name}: {len(measured.points)} points in {time.monotonic() - start:.0f} s", flush=True)
    for warning in measured.meta.warnings:
        print(f"{name}: {warning}", flush=True)
    cost, _ = fit_cost_file(measured.points, measured.meta, out / "points.csv")
    cost.save(out / "cost.json")
    write_report(model, gpu, measured.points, cost.accuracy, out, options)


def say(name: str, done: int, total: int, left_s: float | None) -> None:
    """A line every tenth of the way."""
    if done == total or done % max(1, total // 10) == 0:
        left = "" if left_s is None else f", about {left_s:.0f} s left"
        print(f"{name}: {done} of {total} points{left}", flush=True)


def write_report(model, gpu, points, accuracy, out, options) -> None:  # type: ignore[no-untyped-def]
    """`report.md`: kernel figures, errors of the fit, additivity, ways to cut the decode kernel's work."""
    from cbsim.calibrate.figures import additivity, additivity_sentence, reached, reached_table

    report = out / "report.md"
    with report.open("w", encoding="utf-8") as file:

        def write(text: str) -> None:
            file.write(text + "\n\n")
            file.flush()

        write(f"# {model.name} on {gpu.name}")
        write(reached_table(reached(points, model, gpu)))
        write("## Errors of the fit, percent: median, p90, worst, bias")
        write(errors_table(accuracy))
        seconds, mixed, compare_tunings = bench(model, options)
        write("## Is the sum the sum?")
        write(additivity_sentence(additivity(mixed[:NUM_SUMS], seconds)))
        write("## Decode kernel, ways to cut its work: TB/s")
        for line in compare_tunings():
            write(line)
    print(report.read_text(encoding="utf-8"), flush=True)


def bench(model, options):  # type: ignore[no-untyped-def]
    """What times a plan point, the plan's mixed points, and what compares tunings of the decode kernel."""
    from functools import partial

    from cbsim.calibrate.measure import calls_of, make_rig
    from cbsim.calibrate.plan import PlanPoint, make_plan
    from cbsim.calibrate.room import find_room
    from cbsim.kernels import timing
    from cbsim.kernels.device import open_device
    from cbsim.kernels.shard import Shard
    from cbsim.units import TERA

    device = open_device(options.device)
    shard = Shard(model)
    room = find_room(device, shard)
    rig = make_rig(shard, device, room)
    timer = timing.make_timer(device)

    def seconds(point: PlanPoint) -> float:
        return timer.time(partial(calls_of, rig, point)).median_s

    def compare_tunings():  # type: ignore[no-untyped-def]
        if not device.is_cuda:
            return
        from cbsim.kernels.triton_backend import DecodeTuning, TritonBackend

        for tile, warps, stages, programs in itertools.product((64, 128), (4, 8), (3, 5), (3, 4, 8)):
            rig.backend = TritonBackend(
                shard, device.torch_device, DecodeTuning(tile, warps, stages, programs)
            )
            rates = []
            for decodes, context in TUNED:
                moved = decodes * context * shard.layer_kv_token_bytes
                try:
                    rates.append(moved / seconds(PlanPoint("decode", contexts=(context,) * decodes)) / TERA)
                except RuntimeError:  # more shared memory than a processor has
                    rates.append(float("nan"))
            yield f"tile {tile}, warps {warps}, stages {stages}, programs {programs}: " + ", ".join(
                f"{decodes} x {context}: {rate:.2f}"
                for (decodes, context), rate in zip(TUNED, rates, strict=True)
            )

    mixed = [point for point in make_plan(options.plan, room.limits) if point.op == "mixed"]
    return seconds, mixed, compare_tunings


def errors_table(accuracy) -> str:  # type: ignore[no-untyped-def]
    """The fit's own report, a line a kind."""
    lines = [
        "| held against | kind | points | median | p90 | worst | bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for table, kinds in accuracy.items():
        for kind, row in kinds.items():
            figures = [row[key] for key in ("median_pct", "p90_pct", "worst_pct", "bias_pct")]
            cells = " | ".join(f"{figure:.2f}" for figure in figures)
            lines.append(f"| {table} | {kind} | {row['num_points']:.0f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
