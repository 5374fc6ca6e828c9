"""Latencies that NVIDIA and InferenceMAX measured on real servers, predicted from timings of kernels alone.

    pip install 'cbsim[nvidia]'
    pip download --no-deps aiconfigurator==0.7.0                   # older kernels, read and not installed
    python -m calibration.served_runs --out served --older aiconfigurator-0.7.0-py3-none-any.whl
                                                                   # half an hour on two cores; or --sample 10
    python -m calibration.served_runs --out served --assumptions   # what each assumption is worth, bf16 runs
    python -m calibration.served_runs --out served --apart         # servers that prefill and decode apart

The package that holds the kernel timings also holds mean TTFT and TPOT of real servers under a closed loop of
equal requests. Rules beside the code put its rows right and leave out what can't be predicted. A profile is
imported from each framework's own kernels, and each run simulated with it; nothing is tuned to the runs. It
writes served-runs.csv and served-runs.png, and prints how far the simulation is off, and what a formula
without a simulation says. Answers are kept in --out as they come: a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from calibration.served_runs.answers import AnswerFile, Found, answer_all, run_all
from calibration.served_runs.assumptions import DOCUMENTED, OTHERS, Assumption
from calibration.served_runs.estimates import FIGURES, estimate_all
from calibration.served_runs.picture import served_picture
from calibration.served_runs.prediction import (
    Prediction,
    RunOrder,
    import_profile,
    predict,
    profile_order,
    run_order,
)
from calibration.served_runs.sample import ServedRun, every, read_sample, sift, sift_apart
from calibration.served_runs.tables import (
    Answer,
    apart_estimator_table,
    apart_table,
    assumptions_table,
    errors_table,
    estimator_table,
    runs_table,
    shown,
    sifting_table,
    write_runs,
)
from cbsim.base.errors import CalibrationError, CbsimError, refusals
from cbsim.show.style import save_figure
from cbsim.studies.worker_pool import Pool, open_pool

ESTIMATES = 20
"""Runs of each group that the estimator is asked for."""
COMPILED_FROM = 100
"""Runs from which compiling the simulation pays."""
TITLE = "Served runs, predicted from kernel timings"
CAPTION = (
    "Each point is a closed loop of like requests; TP: GPUs of the replica. Grey: within 10%; "
    "errors beyond 50% stand at the edge."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all; 2 if something is missing or wrong."""
    options = parse_options(arguments)
    try:
        served_runs(options)
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
    parser.add_argument("--older", type=Path, help="the wheel of aiconfigurator 0.7.0, for older kernels")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N runs of each model and framework")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--assumptions", action="store_true", help="bf16 runs alone, assumptions one by one")
    of.add_argument("--apart", action="store_true", help="runs of servers that prefill and decode apart")
    parser.add_argument(
        "--estimator",
        type=Path,
        metavar="PYTHON",
        help=f"a Python with aiconfigurator, asked for {ESTIMATES} runs of each model and framework",
    )
    return parser.parse_args(arguments)


def served_runs(options: argparse.Namespace) -> None:
    """Read, import, predict, write and print.

    Raises `CalibrationError` if the package or something in it is missing, `CbsimError` if the folder can't
    be written.
    """
    sifted = (sift_apart if options.apart else sift)(read_sample(options.wheel))
    print(sifting_table(sifted), end="\n\n")
    runs, out = sifted.runs, options.out
    if options.assumptions:
        runs = [run for run in runs if run.checkpoint.dtype == "bf16"]
    if options.sample:
        runs = every(runs, options.sample)
    if not runs:
        raise CalibrationError("the sample holds no run that can be predicted")
    with refusals(out, "written"):
        out.mkdir(parents=True, exist_ok=True)
    pool = open_pool(options.workers)
    runs = with_profiles(pool, runs, options.wheel, options.older, out)
    predictions = AnswerFile(out / "predictions.csv", Prediction._fields)
    if options.assumptions:
        tables = {
            each: predict_runs(pool, runs, each, out, predictions, {}) for each in (DOCUMENTED, *OTHERS)
        }
        print("Error, %: median / p90, bias\n")
        print(assumptions_table(tables))
        return
    estimates: dict[str, Found] = {}
    if options.estimator:
        file = AnswerFile(out / "estimates.csv", FIGURES)
        asked = runs if options.apart else every(runs, ESTIMATES)
        estimates = estimate_all(options.estimator, asked, file)
    table = predict_runs(pool, runs, DOCUMENTED, out, predictions, estimates)
    if options.apart:
        write_runs(table, out / "served-runs-apart.csv")
        print("Error, %: median / p90\n")
        print(apart_table(table))
        if estimates:
            print(f"\n{apart_estimator_table(table)}")
        return
    write_runs(table, out / "served-runs.csv")
    save_figure(served_picture(shown(table), TITLE, CAPTION), out / "served-runs.png")
    print("Error, %: median / p90\n")
    print(errors_table(table))
    if estimates:
        print(f"\n{estimator_table(table)}")


def with_profiles(
    pool: Pool, runs: Sequence[ServedRun], wheel: Path | None, older: Path | None, out: Path
) -> list[ServedRun]:
    """The runs whose profile the tables have kernels for; the others' lacks are printed.

    Raises `CalibrationError` if there are none.
    """
    servers = [server for run in runs for server in run.servers]
    orders = {
        order.folder: order for order in (profile_order(server, wheel, older, out) for server in servers)
    }
    lacking = dict(zip(orders, run_all(pool, "profiles", import_profile, list(orders.values())), strict=True))
    _tell(Counter(problem for problem in lacking.values() if problem), "profiles")
    found = [
        run
        for run in runs
        if not any(lacking[profile_order(server, wheel, older, out).folder] for server in run.servers)
    ]
    if not found:
        raise CalibrationError(*dict.fromkeys(problem for problem in lacking.values() if problem))
    return found


def predict_runs(
    pool: Pool,
    runs: Sequence[ServedRun],
    assumption: Assumption,
    out: Path,
    file: AnswerFile,
    estimates: dict[str, Found],
) -> pd.DataFrame:
    """A table of the runs that an assumption says something of."""
    runs = [run for run in runs if run.framework in assumption.changes]
    engine = "compiled" if len(runs) >= COMPILED_FROM else "auto"
    orders: dict[str, tuple[ServedRun, RunOrder]] = {}
    for run in runs:
        changes = assumption.changes[run.framework](run)
        profiles = [profile_order(server, None, None, out).folder for server in run.servers]
        order = run_order(run, profiles, changes, assumption.requests_per_client, engine)
        orders[order.key] = run, order
    found = answer_all(pool, "runs", predict, {key: order for key, (_, order) in orders.items()}, file)
    _tell(Counter(answer for answer in found.values() if isinstance(answer, str)), "runs")
    predicted = []
    for key, (run, _) in orders.items():
        figures, estimate = found[key], estimates.get(run.id)
        if not isinstance(figures, str):
            theirs = estimate if isinstance(estimate, tuple) else ()
            predicted.append((run, Answer(*figures, *theirs)))
    return runs_table(predicted)


def _tell(problems: Counter[str], what: str) -> None:
    for problem, number in problems.items():
        print(f"{number:,} {what} left out: {problem}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
