"""Latencies that NVIDIA measured on real servers, predicted from timings of kernels alone.

    pip install 'cbsim[nvidia]'
    python -m calibration.served_runs --out served          # a few minutes

The package that holds the kernel timings also holds mean TTFT and TPOT of real servers under a closed loop of
equal requests. For each framework and degree of tensor parallelism a profile is imported from the framework's
own kernels, and each run simulated with it; nothing is tuned to the runs. It writes served-runs.csv and
served-runs.png, and prints how far the simulation is off, what a formula without a simulation says, and what
each assumption about the servers is worth.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pandas as pd

from calibration.served_runs.assumptions import DOCUMENTED, OTHERS, Assumption
from calibration.served_runs.picture import served_picture
from calibration.served_runs.prediction import ProfileOrder, import_profile, predict, run_order
from calibration.served_runs.sample import ServedRun, read_runs
from calibration.served_runs.servers import SERIES, SYSTEM, Series
from calibration.served_runs.tables import (
    PredictedRun,
    assumptions_table,
    errors_table,
    runs_table,
    shown,
    write_runs,
)
from cbsim.base.errors import CbsimError
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
from cbsim.show.style import save_figure
from cbsim.studies.worker_pool import Pool, open_pool

Task = TypeVar("Task")
Answer = TypeVar("Answer")

LINES = 10
"""Of progress."""
TITLE = "Served runs on H100s, predicted from kernel timings"
CAPTION = (
    "Each point is a closed loop of equal requests; TP: GPUs of the replica. Grey: within 10%; "
    "errors beyond 50% stand at the edge."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; 2 if something is missing or wrong."""
    options = parse_options(arguments)
    try:
        served_runs(options.wheel, options.out, options.workers)
    except CbsimError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.served_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("served"), help="folder to write to")
    parser.add_argument("--wheel", type=Path, help="the wheel of aiconfigurator-core, not installed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")
    return parser.parse_args(arguments)


def served_runs(wheel: Path | None, out: Path, workers: int) -> None:
    """Read, import, predict, write and print.

    Raises `CalibrationError` if the package or something in it is missing, `CbsimError` if `out` can't be
    written.
    """
    tables = NvidiaTables(SYSTEM, wheel)
    runs = [(series, run) for series in SERIES for run in read_runs(tables, series)]
    pool = open_pool(workers)
    try:
        out.mkdir(parents=True, exist_ok=True)
        import_profiles(pool, runs, wheel, out)
        predicted = predict_runs(pool, runs, (DOCUMENTED, *OTHERS), out)
        write_runs(predicted[DOCUMENTED], out / "served-runs.csv")
    except OSError as error:
        raise CbsimError(f"{out}: can't be written: {error.strerror or error}") from error
    save_figure(served_picture(shown(predicted[DOCUMENTED]), TITLE, CAPTION), out / "served-runs.png")
    print("Error, %: median / p90 / worst\n")
    print(errors_table(predicted[DOCUMENTED]), end="\n\n")
    print("Error, %: median / p90, bias\n")
    print(assumptions_table(predicted))


def profile_folder(out: Path, series: Series, tensor_parallel: int) -> Path:
    """Where the profile of a series' runs is."""
    return out / "profiles" / f"{series.model}-{series.framework}-tp{tensor_parallel}"


def import_profiles(
    pool: Pool, runs: Sequence[tuple[Series, ServedRun]], wheel: Path | None, out: Path
) -> None:
    """A profile for each degree of tensor parallelism of each series."""
    wanted = dict.fromkeys((series, run.tensor_parallel) for series, run in runs)
    orders = [
        ProfileOrder(series.model, series.framework, degree, wheel, profile_folder(out, series, degree))
        for series, degree in wanted
    ]
    run_all(pool, "profiles", import_profile, orders)


def predict_runs(
    pool: Pool, runs: Sequence[tuple[Series, ServedRun]], assumptions: Sequence[Assumption], out: Path
) -> dict[Assumption, pd.DataFrame]:
    """Under each assumption a table of the runs that it says something of."""
    rows = [
        (assumption, series, run)
        for assumption in assumptions
        for series, run in runs
        if series.framework in assumption.changes
    ]
    orders = [
        run_order(run, series, assumption, profile_folder(out, series, run.tensor_parallel))
        for assumption, series, run in rows
    ]
    predicted: dict[Assumption, list[PredictedRun]] = {assumption: [] for assumption in assumptions}
    for (assumption, series, run), prediction in zip(
        rows, run_all(pool, "runs", predict, orders), strict=True
    ):
        predicted[assumption].append((series, run, prediction))
    return {assumption: runs_table(their) for assumption, their in predicted.items()}


def run_all(pool: Pool, what: str, function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    """The answers to all tasks, in order, with a line every tenth of the way; raises what one of them did."""
    answers: dict[int, Answer] = {}
    for outcome in pool.run_all(function, tasks):
        if outcome.error is not None:
            raise outcome.error
        answers[outcome.index] = cast(Answer, outcome.answer)
        if len(answers) * LINES // len(tasks) > (len(answers) - 1) * LINES // len(tasks):
            print(f"{what}: {len(answers):,} of {len(tasks):,}", file=sys.stderr, flush=True)
    return [answers[index] for index in range(len(tasks))]


if __name__ == "__main__":
    raise SystemExit(main())
