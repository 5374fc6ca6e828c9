#!/usr/bin/env python3
"""Calibrate cbsim on the GPU of this machine, which needs torch and Triton but no network, in one command.

    python3 calibration/run_on_gpu.py --seconds 600 --out results         # as much as there is time for
    python3 calibration/run_on_gpu.py --fake --out walked                 # the same on no card: made-up times
    python3 calibration/run_on_gpu.py --wheels                            # the packages to bring, if any

It says what does not work here, chooses kernels, times the plan of each model, fits a cost model, and writes
a profile and `report.md`: what the kernels reach, how they stand against NVIDIA's table, how additive mixing
is, how far whole steps lie from the prediction, and what goes where. Everything is on disk as it is made: run
it again to go on. A process that can time nothing more, after a failed capture or an illegal access, is
followed by another.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS, FAKE_MODELS = ("llama-3-8b", "qwen3-8b"), ("tiny",)
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "scipy": "scipy",
    "yaml": "pyyaml",
    "pydantic": "pydantic",
    "pyarrow": "pyarrow",
}
"""Module -> package; Triton is for CUDA alone."""
OLDEST_PYTHON = (3, 11)
WRONG, SPENT, INTERRUPTED = 2, 3, 130
"""Exit codes: a mistake; this process can time nothing more, a new one goes on; interrupted."""
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
"""Exit codes of a process that a kernel, or a driver, brought down."""
MAX_STARTS = 12
LEAST_S = 20.0
"""With less time left no further process is started."""


def main() -> int:
    """Run it all; 2 if something is missing or wrong."""
    options = parse_options()
    if sys.version_info < OLDEST_PYTHON:
        print(f"cbsim needs Python 3.11 or newer, and this is {sys.version.split()[0]}", file=sys.stderr)
        return WRONG
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if options.device == "cpu" or options.fake:
        missing = [package for package in missing if package != "triton"]
    if options.wheels or missing:
        return list_wheels(missing)
    if options.worker is not None:
        return work(options)
    until = time.time() + (options.seconds or math.inf)
    return supervise(lambda: start_worker(until), until)


def supervise(start: Callable[[], int], until: float) -> int:
    """Start a process, and another whenever one says that it can do no more, until time is up."""
    for _ in range(MAX_STARTS):
        code = start()
        if code != SPENT and code not in CRASHES:
            return code
        if until - time.time() < LEAST_S:
            print("too little time is left for another process; the same command goes on", file=sys.stderr)
            return code if code == SPENT else WRONG
        why = "has died" if code in CRASHES else "can time nothing more"
        print(f"the process {why}: going on in a new one", flush=True)
    print(f"gave up after {MAX_STARTS} processes; the same command goes on from here", file=sys.stderr)
    return WRONG


def start_worker(until: float) -> int:
    """A process that does the work until an instant of `time.time`; its exit code."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", repr(until)]
    with subprocess.Popen(command) as worker:
        signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        while True:
            try:
                return worker.wait()
            except KeyboardInterrupt:
                continue  # the worker was told too, and ends by itself


def work(options: argparse.Namespace) -> int:
    """What a process does; `SPENT` if another should go on."""
    sys.path.insert(0, str(ROOT))
    signal.signal(signal.SIGTERM, interrupt)
    from calibration.gpu_session import Session
    from cbsim.base.errors import CbsimError
    from cbsim.lab.calibrate.measurement import ProcessSpent

    try:
        Session(options, time.monotonic() + options.worker - time.time()).run()
    except ProcessSpent as error:
        print(error, file=sys.stderr)
        return SPENT
    except CbsimError as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


def interrupt(*_: object) -> None:
    """End as on Ctrl-C."""
    raise KeyboardInterrupt


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpu", help="name in configs/gpus, for its peaks; default: the one that the device calls itself"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME[:WEIGHTS[:KV]]",
        help=f"names in configs/models, with dtypes such as fp8; default: {' '.join(MODELS)}",
    )
    parser.add_argument("--seconds", type=float, help="end, with everything fitted, after so many")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder to write to")
    parser.add_argument("--plan", choices=("quick", "full"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--fake", action="store_true", help="walk all of it on a card of made-up times")
    parser.add_argument("--wheels", action="store_true", help="only say which packages to bring")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.models = options.models or list(FAKE_MODELS if options.fake else MODELS)
    if options.seconds is not None and not options.seconds > 0:
        parser.error(f"--seconds: got {options.seconds:g}; allowed: more than 0")
    return options


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


if __name__ == "__main__":
    raise SystemExit(main())
