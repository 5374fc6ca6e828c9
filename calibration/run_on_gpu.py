#!/usr/bin/env python3
"""Calibrate cbsim on the GPU of this machine, which needs torch and Triton but no network, in one command.

    python3 calibration/run_on_gpu.py --out results                       # about ten minutes for both models
    python3 calibration/run_on_gpu.py --wheels                            # the packages to bring, if any

For each model it times the full plan, fits a cost model, and writes a profile and `report.md`: what the
kernels reach, how additive mixing is and how far whole steps lie from the prediction. Rows are on disk as
they are made: run it again to go on.
"""

from __future__ import annotations

import argparse
import importlib.util
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
WRONG, INTERRUPTED = 2, 130


def main() -> int:
    """Run it all; 2 if something is missing or wrong."""
    options = parse_options()
    if sys.version_info < OLDEST_PYTHON:
        print(f"cbsim needs Python 3.11 or newer, and this is {sys.version.split()[0]}", file=sys.stderr)
        return WRONG
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if options.device == "cpu":
        missing = [package for package in missing if package != "triton"]
    if options.wheels or missing:
        return list_wheels(missing)
    sys.path.insert(0, str(ROOT))
    from cbsim.base.errors import CbsimError

    try:
        calibrate_all(options)
    except CbsimError as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpu", help="name in configs/gpus, for its peaks; default: the one that the device calls itself"
    )
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
    return WRONG


def calibrate_all(options: argparse.Namespace) -> None:
    """Every model in turn; names are checked before minutes are spent on the first."""
    from cbsim.base.errors import CalibrationError
    from cbsim.lab.calibrate.named_spec import gpu_of_device, load_gpu, load_model
    from cbsim.lab.kernels.timing import open_device

    device = open_device(options.device)
    specs, problems = [], []
    known = options.gpu or (gpu_of_device(device.name) if device.is_cuda else None)
    for load, name in ((load_gpu, known), *((load_model, name) for name in options.models)):
        try:
            specs.append(load(name) if name else None)
        except CalibrationError as error:
            problems += error.problems
    if problems:
        raise CalibrationError(*problems)
    gpu, *models = specs
    shown = "unknown: no share of a peak is given" if gpu is None else f"as {gpu.name} in configs/gpus"
    say(f"{device.name}, its peaks {shown}")
    attention_shapes: dict[tuple[object, ...], str] = {}
    for model in models:
        shape = (model.num_heads, model.num_kv_heads, model.head_size, model.dtype)
        calibrate(model, gpu, options, tuned_as=attention_shapes.get(shape))
        attention_shapes.setdefault(shape, model.name)
    names = " ".join(str(options.out / model.name) for model in models)
    say(f"to keep them: mv {names} calibration/profiles/{gpu.name if gpu else 'NAME'}-torch/")


def calibrate(model, gpu, options, tuned_as) -> None:  # type: ignore[no-untyped-def]
    """Everything for one model, into a folder of its own."""
    from calibration.kernel_report import KernelReport
    from cbsim.lab.calibrate.fit import fit_cost_file
    from cbsim.lab.calibrate.measurement import measure

    out = options.out / model.name
    start = time.monotonic()
    measured = measure(
        model,
        out,
        device=options.device,
        plan=options.plan,
        gpu=gpu.name if gpu else None,
        command=" ".join(["python3", *sys.argv]),
        progress=lambda done, total, left_s: say_points(model.name, done, total, left_s),
    )
    say(f"{model.name}: {len(measured.points)} points after {time.monotonic() - start:.0f} s")
    for warning in measured.meta.warnings:
        say(f"{model.name}: {warning}")
    cost, _ = fit_cost_file(measured.points, measured.meta, out / "points.csv")
    cost.save(out / "cost.json")
    say(f"{model.name}: fitted after {time.monotonic() - start:.0f} s")
    report = KernelReport(model, measured.meta, measured.points, cost, gpu)
    write_report(report, Bench(model, options), tuned_as, out / "report.md")
    say(f"{model.name}: done after {time.monotonic() - start:.0f} s\n")


def write_report(report, bench, tuned_as, path: Path) -> None:  # type: ignore[no-untyped-def]
    """`report.md`, whole each time: first without the comparison of tunings, which takes a minute or two."""
    from calibration.reached_peaks import additivity
    from cbsim.base.paths import write_text

    sections = report.sections(additivity(bench.mixed[:NUM_SUMS], bench.seconds))
    write_text(path, "\n\n".join(sections) + "\n")
    if bench.device.is_cuda:
        sections.append("### Decode kernel, ways to cut its work: TB/s of keys and values read")
        sections.append(bench.tunings() if tuned_as is None else f"As for {tuned_as}: the same heads.")
        write_text(path, "\n\n".join(sections) + "\n")
    print("\n" + path.read_text(encoding="utf-8"), flush=True)


class Bench:
    """What times points that are not in the plan."""

    def __init__(self, model, options) -> None:  # type: ignore[no-untyped-def]
        from cbsim.lab.calibrate.measurement import find_room
        from cbsim.lab.calibrate.timing_plan import make_plan
        from cbsim.lab.kernels.shard import Shard
        from cbsim.lab.kernels.timing import make_timer, open_device

        shard = Shard(model)
        self.device = open_device(options.device)
        room = find_room(self.device, shard)
        self.rig = room.rig(shard, self.device)
        self.timer = make_timer(self.device)
        self.mixed = [point for point in make_plan(options.plan, room.limits) if point.op == "mixed"]

    def seconds(self, point) -> float:  # type: ignore[no-untyped-def]
        """Median seconds of a plan point."""
        from cbsim.lab.calibrate.measurement import time_point

        return float(time_point(self.rig, self.timer, point).median_s)

    def tunings(self) -> str:
        """Ways to cut the decode kernel's work, against each other."""
        from calibration.reached_peaks import all_tunings, compare_tunings, tunings_table

        def progress(done: int, total: int) -> None:
            say_points("decode kernel", done, total, None, "tunings")

        return tunings_table(compare_tunings(self.rig, self.seconds, all_tunings(), progress))


def say_points(name: str, done: int, total: int, left_s: float | None, what: str = "points") -> None:
    """A line every tenth of the way."""
    if done == total or done % max(1, total // 10) == 0:
        left = "" if left_s is None else f", about {left_s:.0f} s left"
        say(f"{name}: {done} of {total} {what}{left}")


def say(line: str) -> None:
    """A line, at once."""
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
