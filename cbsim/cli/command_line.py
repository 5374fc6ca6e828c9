"""The command line: `cbsim COMMAND`. Bodies import what they need, so that `cbsim --help` is quick."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.command_group import INTERRUPTED, Commands
from cbsim.cli.commands.arguments import (
    load_experiment,
    print_json,
    with_cluster,
    with_json,
    with_out,
    with_plots,
    with_quiet,
    with_set,
    with_workers,
)

if TYPE_CHECKING:
    from cbsim.show.sweep_points import Sweep
    from cbsim.studies.experiment import Experiment


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cbsim", prog_name="cbsim")
def main() -> None:
    """What an LLM serving engine does with your traffic: simulated, before any GPU hour is spent."""


@main.command()
@click.argument("config")
@with_set
@with_out
@with_workers
@with_plots
@click.option("--timeline", "with_timeline", is_flag=True, help="Write timeline.json.gz, for Perfetto.")
@with_json
@with_quiet
def run(
    config: str,
    overrides: tuple[str, ...],
    out: Path | None,
    workers: int,
    plots: bool | None,
    with_timeline: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run CONFIG: an experiment file, or the name of a shipped one (`cbsim list experiments`).

    Prints the figures and writes the run folder (default: runs/NAME-HASH). A configuration with `sweep:` is
    run as `cbsim sweep` would.
    """
    experiment = load_experiment(config, overrides)
    if experiment.sweep:
        if with_timeline:
            raise CbsimError("--timeline: is of one run; pin the sweep's keys, as in --set seed=0")
        if not quiet:
            click.echo(f"{experiment.name} has a sweep: running all its points", err=True)
        _sweep(experiment, out, workers, None, plots, as_json, quiet)
        return
    from cbsim.cli.progress import watch_run
    from cbsim.results.manifest import hash_mapping
    from cbsim.results.output import check_run_target
    from cbsim.studies.run import run_experiment

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
        _draw({experiment.name: result}, experiment, folder)
    if as_json:
        print_json(result.summary)
        return
    from cbsim.show.reader_tables import run_tables

    for table in run_tables(result):
        table.print()
        click.echo()
    click.echo(f"written to {folder}")


@main.command()
@click.argument("config")
@with_set
@with_out
@with_workers
@with_cluster
@with_plots
@with_json
@with_quiet
def sweep(
    config: str,
    overrides: tuple[str, ...],
    out: Path | None,
    workers: int,
    cluster: str | None,
    plots: bool | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run every point of CONFIG's sweep and compare them.

    Points that are in the folder already (default: runs/NAME) are not run again. Of another sweep there the
    runs stay, and what was drawn goes.
    """
    _sweep(load_experiment(config, overrides), out, workers, cluster, plots, as_json, quiet)


@main.command()
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG...")
@with_set
def check(configs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check configurations and the traces they name without running them."""
    from cbsim.cli.preview import preview

    problems: list[str] = []
    for config in configs:
        try:
            click.echo(f"ok  {config}: {preview(load_experiment(config, overrides))}")
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))


@main.command("list")
@click.argument("kind", required=False)
@with_json
def list_parts(kind: str | None, as_json: bool) -> None:
    """List schedulers, workloads, cost-models, observers, models, gpus, slos or experiments; else all."""
    from cbsim.base.registry import did_you_mean
    from cbsim.cli.catalog import KINDS, catalog

    if kind is not None and kind not in KINDS:
        raise CbsimError(f"no list of '{kind}'{did_you_mean(kind, KINDS)}")
    found = {name: catalog(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        print_json(found)
        return
    for i, (name, entries) in enumerate(found.items()):
        width = max(map(len, entries), default=0)
        click.echo("\n" * (i > 0) + f"{name}:")
        for entry, meaning in entries.items():
            click.echo(f"  {entry:{width}}  {meaning}".rstrip())


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write schema and reference.md.",
)
def schema(out: Path | None) -> None:
    """Print the JSON Schema of experiment files, for editors; with --out write it and the reference."""
    from cbsim.config.reference_page import make_reference, make_schema
    from cbsim.studies.experiment import Experiment

    text = json.dumps(make_schema(Experiment), indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    from cbsim.base.paths import write_text

    for name, content in (("experiment.schema.json", text), ("reference.md", make_reference(Experiment))):
        write_text(out / name, content)
        click.echo(f"written to {out / name}")


@main.group()
def workload() -> None:
    """Look into traces and generators, and convert them."""


@workload.command()
@click.argument("file")
@with_set
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="PNG", help="Draw arrivals and lengths there."
)
@with_json
def stats(file: str, overrides: tuple[str, ...], plot: Path | None, as_json: bool) -> None:
    """Print what FILE holds: a trace, a generator's YAML, or an experiment's workload."""
    from cbsim.cli.workload_file import load_workload
    from cbsim.workload.stats import describe

    source = load_workload(file, overrides)
    figures = describe(source)
    if as_json:
        print_json(figures.to_json())
    else:
        click.echo(figures.to_text())
    if plot is not None:
        from cbsim.show.workload_plot import plot_workload

        plot_workload(source, plot)
        click.echo(f"written to {plot}", err=as_json)


@workload.command("convert")
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@with_set
def convert_trace(source: str, target: Path, overrides: tuple[str, ...]) -> None:
    """Write SOURCE in cbsim's own format to TARGET: .jsonl, .csv (with .gz or .zst too) or .parquet."""
    from cbsim.cli.workload_file import load_workload
    from cbsim.workload.convert import convert

    read = load_workload(source, overrides)
    convert(read, target)
    for note in read.notes():
        click.echo(note, err=True)
    click.echo(f"written to {target}")


def _sweep(
    experiment: Experiment,
    out: Path | None,
    workers: int,
    cluster: str | None,
    plots: bool | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from cbsim.cli.progress import watch_sweep
    from cbsim.results.output import other_points
    from cbsim.show.reader_tables import compare_points, point_labels
    from cbsim.show.sweep_points import Sweep
    from cbsim.show.sweep_text import replicate_table
    from cbsim.studies.replicates import has_replicates, is_known_by_spread
    from cbsim.studies.sweep import SweepInterrupted, save_table
    from cbsim.studies.sweep import sweep as run_sweep

    folder = out or Path("runs") / experiment.name
    try:
        with watch_sweep(quiet) as progress:
            table = run_sweep(experiment, folder, workers, cluster, progress=progress)
    except SweepInterrupted as interrupted:
        click.echo(f"\n{interrupted}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    ran = table["error"].isna()
    if not ran.any():
        problems = [line for error in table["error"] for line in str(error).splitlines()]
        raise CbsimError(*dict.fromkeys(problems), f"none of the {len(table)} points could run")
    written = ["table.csv", "table.parquet", "points/"]
    if ran.any() and (plots or (plots is None and ran.sum() <= 6)):
        from cbsim.results.result import load_run

        labels = dict(zip(point_labels(table), table["point"], strict=True))
        results = {
            label: load_run(folder / "points" / key)
            for (label, key), did_run in zip(labels.items(), ran, strict=True)
            if did_run
        }
        written += _draw(results, experiment, folder)
    sweep = Sweep.of(table, experiment.slo.limits(), is_known_by_spread(experiment.resolved()))
    if plots is not False:
        written += _draw_sweep(sweep, experiment.name, folder)
    told = compare_points(table)
    if has_replicates(table[ran]):
        save_table(sweep.points, folder, "intervals")
        written += ["intervals.csv", "intervals.parquet"]
        told = replicate_table(sweep)
    if as_json:
        click.echo(table.to_json(orient="records", indent=2))
    else:
        told.print()
        click.echo(f"\nwritten to {folder}: {', '.join(written)}")
    others = other_points(folder, table["point"])
    if others and not quiet:
        runs = "a run of a former sweep" if len(others) == 1 else f"{len(others):,} runs of former sweeps"
        click.echo(f"{folder / 'points'} also keeps {runs}, which no table or picture here shows", err=True)
    if not ran.all():
        raise click.exceptions.Exit(1)


def _draw_sweep(sweep: Sweep, name: str, folder: Path) -> list[str]:
    """Draw what the settings do; returns the names of the PNG files."""
    from cbsim.show.style import save_figure
    from cbsim.show.sweep_plot import sweep_pictures

    pictures = sweep_pictures(sweep, name)
    return [save_figure(picture.figure, folder / stem)[0].name for stem, picture in pictures.items()]


def _draw(results: Mapping[str, Any], experiment: Experiment, folder: Path) -> list[str]:
    """Draw PNG and SVG pictures; returns the names of the PNG files."""
    from cbsim.show.cdf_plot import latency_cdfs
    from cbsim.show.style import save_figure
    from cbsim.show.timeline_plot import timeline, utilization

    save_figure(latency_cdfs(results, experiment.slo.limits()), folder / "latency_cdfs")
    save_figure(timeline(results), folder / "timeline")
    save_figure(utilization(results), folder / "utilization")
    return ["latency_cdfs.png", "timeline.png", "utilization.png"]
