"""`cbsim run` and `cbsim sweep`: one run, or every point of a sweep and all of them compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import counted, watch_run, watch_study
from cbsim.results.output import check_run_target, other_points
from cbsim.results.result import Result, hash_mapping, load_run
from cbsim.show.reader_tables import compare_points, point_labels, run_answer, run_tables
from cbsim.show.sweep_text import Sweep, replicate_table, sentence
from cbsim.show.text import format_figure, print_answer
from cbsim.studies.experiment import Experiment
from cbsim.studies.intervals import has_replicates
from cbsim.studies.labels import full_text
from cbsim.studies.run import run_experiment
from cbsim.studies.sweep import Point, SweepProgress, save_table
from cbsim.studies.sweep import sweep as run_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        draw(_run_pictures({experiment.name: result}, experiment), folder)
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
    from cbsim.show.sweep_plot import sweep_pictures

    folder = out or Path("runs") / experiment.name
    with watch_study(quiet, "planning the points", _counts, failure=_failure) as progress:
        table = run_sweep(experiment, folder, workers, cluster, progress=progress)
    ran = table["error"].isna()
    if not ran.any():
        problems = [line for error in table["error"] for line in str(error).splitlines()]
        raise CbsimError(*dict.fromkeys(problems), f"none of the {len(table)} points could run")
    written = ["table.csv", "table.parquet", "points/"]
    if plots or (plots is None and ran.sum() <= 6):
        points = zip(point_labels(table), table["point"], ran, strict=True)
        runs = {label: load_run(folder / "points" / point) for label, point, did_run in points if did_run}
        written += draw(_run_pictures(runs, experiment), folder)
    sweep = Sweep.of(table, experiment.slo.limits(), experiment.resolved())
    if plots is not False:
        pictures = sweep_pictures(sweep, experiment.name)
        written += draw({stem: picture.figure for stem, picture in pictures.items()}, folder)
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


def _run_pictures(runs: Mapping[str, Result], experiment: Experiment) -> dict[str, Figure]:
    from cbsim.show.latency_plot import latency_cdfs
    from cbsim.show.timeline_plot import timeline, utilization

    cdfs = latency_cdfs(runs, experiment.slo.limits())
    return {"latency_cdfs": cdfs, "timeline": timeline(runs), "utilization": utilization(runs)}


def draw(figures: Mapping[str, Figure], folder: Path) -> list[str]:
    """Save figures as PNG and SVG; returns the names of the PNG files."""
    from cbsim.show.style import save_figure

    return [save_figure(figure, folder / stem)[0].name for stem, figure in figures.items()]
