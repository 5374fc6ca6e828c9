"""`cbsim run` and `cbsim sweep`: one run, or every point of a sweep and all of them compared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import counted, watch_run, watch_study
from cbsim.results.output import check_run_target, other_points
from cbsim.results.result import hash_mapping
from cbsim.show.reader_tables import compare_points, point_labels, run_answer, run_tables
from cbsim.show.sweep_text import Sweep, replicate_table, sentence
from cbsim.show.text import format_figure, print_answer
from cbsim.studies.experiment import Experiment
from cbsim.studies.intervals import has_replicates
from cbsim.studies.labels import full_text
from cbsim.studies.run import run_experiment
from cbsim.studies.sweep import Point, SweepProgress, save_table
from cbsim.studies.sweep import sweep as run_sweep
from cbsim.studies.worker_pool import Pool, open_pool

MOST_DRAWN = 6
"""Points whose runs are drawn unless asked for."""
PICTURES = "cbsim.show.run_pictures"
"""Takes half a second to import."""


@args.command()
def run(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    out: Path | None = args.OUT,
    workers: int = args.WORKERS,
    plots: bool | None = args.PLOTS,
    with_timeline: bool = args.flag("--timeline", "Write timeline.json.gz, for Perfetto."),
    as_json: bool = args.JSON,
    quiet: bool = args.QUIET,
) -> None:
    """Run CONFIG: an experiment file, or the name of a shipped one (`cbsim list experiments`).

    Prints the figures and writes the run folder (default: runs/NAME-HASH). A configuration with `sweep:` is
    run as `cbsim sweep` would.
    """
    experiment = args.load_experiment(config, overrides)
    if experiment.sweep:
        if with_timeline:
            raise CbsimError("--timeline: is of one run; pin the sweep's keys, as in --set seed=0")
        if not quiet:
            click.echo(f"{experiment.name} has a sweep: running all its points", err=True)
        _run_points(experiment, out, workers, None, plots, as_json, quiet)
        return
    if experiment.tune and not quiet:
        click.echo(f"{experiment.name} has a tune: running what is written; `cbsim tune` searches", err=True)
    folder = out or Path("runs") / f"{experiment.name}-{hash_mapping(experiment.resolved())[:8]}"
    check_run_target(folder)
    with watch_run(experiment, quiet) as progress:
        result = run_experiment(experiment, progress)
    result.save(folder)
    if with_timeline:
        from cbsim.show.perfetto import write_timeline

        for note in write_timeline(result, folder / "timeline.json.gz"):
            click.echo(f"timeline: {note}", err=True)
    if plots:
        from cbsim.show.run_pictures import draw_runs

        draw_runs({experiment.name: result}, experiment.slo.limits(), folder)
    if as_json:
        args.print_json(result.summary)
        return
    print_answer(*run_answer(result))
    for table in run_tables(result):
        table.print()
        click.echo()
    click.echo(f"written to {folder}")


@args.command()
def sweep(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    out: Path | None = args.OUT,
    workers: int = args.WORKERS,
    cluster: str | None = args.CLUSTER,
    plots: bool | None = args.PLOTS,
    as_json: bool = args.JSON,
    quiet: bool = args.QUIET,
) -> None:
    """Run every point of CONFIG's sweep and compare them.

    Points that are in the folder already (default: runs/NAME) are not run again. Of another sweep there the
    runs stay, and what was drawn goes.
    """
    _run_points(args.load_experiment(config, overrides), out, workers, cluster, plots, as_json, quiet)


def _run_points(
    experiment: Experiment,
    out: Path | None,
    workers: int,
    cluster: str | None,
    plots: bool | None,
    as_json: bool,
    quiet: bool,
) -> None:
    folder = out or Path("runs") / experiment.name
    limits = experiment.slo.limits()
    with _Workers(workers, cluster, plots) as helpers:
        with watch_study(quiet, "planning the points", _counts, failure=_failure) as progress:
            tell = partial(helpers.tell, progress)
            table = run_sweep(experiment, folder, progress=tell, pool_of=helpers.pool_of)
        ran = table["error"].isna()
        if not ran.any():
            problems = [line for error in table["error"] for line in str(error).splitlines()]
            raise CbsimError(*dict.fromkeys(problems), f"none of the {len(table)} points could run")
        written = ["table.csv", "table.parquet", "points/"]
        if plots or (plots is None and ran.sum() <= MOST_DRAWN):
            from cbsim.show.run_pictures import draw_points

            points = dict(zip(point_labels(table[ran]), table["point"][ran], strict=True))
            with helpers.executor() as executor:
                written += draw_points(points, limits, folder, executor)
    sweep = Sweep.of(table, limits, experiment.resolved())
    if plots is not False:
        from cbsim.show.style import save_figures
        from cbsim.show.sweep_plot import sweep_pictures

        pictures = sweep_pictures(sweep, experiment.name)
        written += save_figures({stem: picture.figure for stem, picture in pictures.items()}, folder)
    told = compare_points(table, sweep.slo)
    if has_replicates(table[ran]):
        save_table(sweep.points, folder, "intervals")
        written += ["intervals.csv", "intervals.parquet"]
        told = replicate_table(sweep)
    if as_json:
        click.echo(table.to_json(orient="records", indent=2))
    else:
        print_answer(sentence(sweep))
        told.print()
        click.echo(f"\nwritten to {folder}: {', '.join(written)}")
    others = other_points(folder, table["point"])
    if others and not quiet:
        former = "a run of a former sweep" if len(others) == 1 else f"{len(others):,} runs of former sweeps"
        click.echo(f"{folder / 'points'} also keeps {former}, which no table or picture here shows", err=True)
    if not ran.all():
        raise click.exceptions.Exit(1)


class _Workers(ExitStack):
    """The processes that points go to; one that has no more of them helps to draw."""

    def __init__(self, num_workers: int, cluster: str | None, plots: bool | None) -> None:
        super().__init__()
        self._num_workers, self._cluster, self._plots = num_workers, cluster, plots
        self._kept: Pool | None = None

    def pool_of(self, num_points: int) -> Pool:
        """The pool on which `num_points` points run; meanwhile this process imports what draws them."""
        pool = open_pool(min(self._num_workers, num_points), self._cluster)
        if self._cluster is None and pool.max_in_flight > 1 and self._plots is not False:
            pool = self._kept = self.enter_context(pool.kept_open())
            threading.Thread(target=import_module, args=[PICTURES], daemon=True).start()
        return pool

    def tell(self, progress: Callable[[SweepProgress], None] | None, state: SweepProgress) -> None:
        """Pass on how far the sweep is; where but one point is left, a worker that has none gets ready."""
        if progress is not None:
            progress(state)
        is_drawn = self._plots or state.num_points <= MOST_DRAWN
        if is_drawn and state.num_reused + state.num_done == state.num_points - 1:
            with suppress(BrokenExecutor), self.executor() as executor:
                if executor is not None:
                    executor.submit(import_module, PICTURES)

    def executor(self) -> AbstractContextManager[Executor | None]:
        """What runs in these processes, if there are any."""
        return self._kept.open_executor() if self._kept else nullcontext()


def _counts(state: SweepProgress) -> str:
    done = f"{state.num_reused + state.num_done} of {state.num_points} points"
    counts = (state.num_reused, "there already"), (state.num_failed, "failed")
    told = counted(done, *counts, left_s=state.time_left_s)
    if state.best is None:
        return told
    point, summary = state.best
    aim = f"{format_figure(summary['goodput_per_s'])} req/s goodput"
    if summary["goodput_per_s"] is None:
        aim = f"{format_figure(summary['output_token_throughput_per_s'])} output tokens/s"
    unmet = " (SLO not met)" if summary.get("slo_met") is False else ""
    return f"{told}, best so far {aim}{unmet} with {_swept(point)}"


def _failure(state: SweepProgress) -> str:
    """The point that has just failed, and why; empty if none has."""
    return "" if state.error is None else f"failed: {_swept(state.error[0])}: {state.error[1]}"


def _swept(point: Point) -> str:
    """The values of a point; of sections their types or names, if they have one."""
    return ", ".join(f"{key}={full_text(value, [value])}" for key, value in point.swept.items())
